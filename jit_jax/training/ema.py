"""Exponential moving averages of the parameters, from which samples are drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class EMA:
    """The numbers of the averages."""

    decays: tuple[float, ...]  # one average each: ema1, ema2 …
    warmup: bool = False  # start with a low decay, so that short runs forget their first steps
    memory: str = 'device'  # where the averages lie between steps: 'device' or 'host'


def start(params: dict, decays: Sequence[float]) -> dict:
    """Averages equal to the parameters: {'ema1': tree like params, 'ema2': …}."""
    return {name: jax.tree.map(jnp.copy, params) for name in names(decays)}


def update(averages: dict, params: dict, step, ema: EMA) -> dict:
    """average ← average + (1 − decay) · (params − average), after every step.

    averages: what `start` or `update` returned. step: steps taken before this one, int32 scalar.
    """
    moved, order = {}, jnp.zeros(())
    for name, decay in zip(names(ema.decays), ema.decays, strict=True):
        rate = 1 - decay_at(step, decay, warmup=ema.warmup)
        if ema.memory == 'host':
            moved[name], order = _move_in_turn(averages[name], params, rate, order)
        else:
            moved[name] = _move(averages[name], params, rate)
    return moved


def names(decays: Sequence[float]) -> list[str]:
    """'ema1', 'ema2' …, one for each decay."""
    return [f'ema{i}' for i in range(1, len(decays) + 1)]


def decay_at(step, decay: float, *, warmup: bool) -> float | jax.Array:
    """The decay of one step: at most (1 + step) / (10 + step) while it warms up."""
    return jnp.minimum(decay, (1 + step) / (10 + step)) if warmup else decay


def _move(average, params, rate):
    return jax.tree.map(lambda a, p: a + rate * (p - a), average, params)


def _move_in_turn(average, params, rate, order):
    """`_move` for an average in the host's memory, one array after the other.

    `order` is a number from the array before, which the next one waits for: otherwise all arrays
    would come to the device at once, and early. Returns the average, in the host's memory again,
    and the next `order`.
    """
    leaves, tree = jax.tree.flatten(average)
    moved = []
    for a, p in zip(leaves, jax.tree.leaves(params), strict=True):
        a, p, order = jax.lax.optimization_barrier((a, p, order))
        a = _move(jax.device_put(a, jax.memory.Space.Device), p, rate)
        order = a[(0,) * a.ndim]
        moved.append(jax.device_put(a, jax.memory.Space.Host))
    return tree.unflatten(moved), order
