"""What training carries from step to step: parameters, their averages, the optimiser."""

import re
from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp
import optax
from jax.tree_util import tree_map_with_path
from optax.contrib import MuonDimensionNumbers, muon

from jit_jax.model.sharding import path_name


@flax.struct.dataclass
class TrainState:
    step: jax.Array  # int32 scalar, steps taken
    params: dict
    ema: dict  # {'ema1': tree like params, 'ema2': …}
    opt: optax.OptState
    loss_mean: jax.Array  # float32 scalar, mean loss since the last line of metrics


def learning_rate(
    base: float, batch_size: int, steps: int, warmup: int, schedule: str
) -> optax.Schedule:
    """Peak base · batch / 256 after a linear warm-up; then constant, or a cosine to zero at `steps`."""
    peak = base * batch_size / 256
    after = {
        'constant': optax.constant_schedule(peak),
        'cosine': optax.cosine_decay_schedule(peak, max(steps - warmup, 1)),
    }
    return optax.join_schedules(
        [optax.linear_schedule(0.0, peak, warmup), after[schedule]], [warmup]
    )


def optimizer(
    rate: optax.Schedule,
    b1: float,
    b2: float,
    weight_decay: float,
    muon_rms: float,
    mu_dtype: str = 'float32',
) -> optax.GradientTransformation:
    """AdamW as published, or with muon_rms > 0 Muon for the kernels of the blocks and Nesterov's Adam for the rest.

    muon_rms is the root mean square of Muon's update at learning rate 1 (arXiv 2502.16982 takes 0.2 to be like
    AdamW's). q, k, v and the two halves of w12 are matrices of their own. Only kernels decay, as in the official
    parameter groups; with Muon, only its own. mu_dtype: of the first moment, 'float32' or 'bfloat16'.
    """
    decays = lambda params: tree_map_with_path(lambda path, _: 'kernel' in path_name(path), params)
    if not muon_rms:
        return optax.adamw(rate, b1, b2, weight_decay=weight_decay, mask=decays, mu_dtype=mu_dtype)

    def matrices(params):
        def numbers(
            path, p
        ):  # kernels of blocks are [L, in, …, out]; q, k, v or w1, w2 lie between
            if not re.fullmatch('blocks/.*/kernel', path_name(path)):
                return None
            return MuonDimensionNumbers(
                reduction_axis=(1,), output_axis=(3, 4) if p.ndim == 5 else (p.ndim - 1,)
            )

        return tree_map_with_path(numbers, params)

    return muon(
        rate,
        weight_decay=weight_decay,
        adam_b1=b1,
        adam_b2=b2,
        mu_dtype=mu_dtype,
        muon_weight_dimension_numbers=matrices,
        consistent_rms=muon_rms,
    )


def init_state(model, key, optimizer, ema: tuple[float, ...]) -> TrainState:
    """A fresh state; pure, so that jit(init, out_shardings=…) makes the same parameters on every mesh."""
    size, channels = model.image_size, model.channels
    params = model.clone(attention='xla').init(
        key, jnp.zeros((1, size, size, channels)), jnp.zeros(1)
    )['params']
    return start_state(params, optimizer, ema)


def start_state(params, optimizer, ema: tuple[float, ...]) -> TrainState:
    """Step 0 from given parameters: fresh optimiser, every average equal to the parameters."""
    averages = {f'ema{i}': jax.tree.map(jnp.copy, params) for i in range(1, len(ema) + 1)}
    return TrainState(
        jnp.zeros((), jnp.int32), params, averages, optimizer.init(params), jnp.zeros(())
    )


def update_ema(
    ema: dict, params, step, decays: tuple[float, ...], warmup: bool, memory: str = 'device'
) -> dict:
    """ema ← ema + (1 − decay)·(params − ema), after every step.

    With `warmup` the decay starts low, (1 + step) / (10 + step), so that short runs forget their first steps. With
    memory 'host' the averages come from there and go back one array after the other.
    """
    averages, done = {}, jnp.zeros(())
    for i, decay in enumerate(decays, 1):
        if warmup:
            decay = jnp.minimum(decay, (1 + step) / (10 + step))
        leaves, tree = jax.tree.flatten(ema[f'ema{i}'])
        moved = []
        for e, p in zip(leaves, jax.tree.leaves(params)):
            if memory == 'host':
                e, p, done = jax.lax.optimization_barrier(
                    (e, p, done)
                )  # or all would come at once, and early
                e = jax.device_put(e, jax.memory.Space.Device)
            e = e + (1 - decay) * (p - e)
            if memory == 'host':
                done = e[(0,) * e.ndim]
                e = jax.device_put(e, jax.memory.Space.Host)
            moved.append(e)
        averages[f'ema{i}'] = tree.unflatten(moved)
    return averages


def apply_gradients(
    state: TrainState, grads, loss, optimizer, average: Callable, log_every: int
) -> TrainState:
    """One optimiser step and one step of every average: average(ema, params, step) → ema."""
    updates, opt = optimizer.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    since = state.step % log_every  # steps already in the running mean
    return TrainState(
        step=state.step + 1,
        params=params,
        ema=average(state.ema, params, state.step),
        opt=opt,
        loss_mean=jnp.where(
            since == 0, loss, state.loss_mean + (loss - state.loss_mean) / (since + 1)
        ),
    )
