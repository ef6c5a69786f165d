"""The learning rate's schedule, and the optimizer: AdamW as published, or Muon."""

import re

import optax
from jax.tree_util import tree_map_with_path
from optax.contrib import MuonDimensionNumbers, muon

from jit_jax.model.sharding import path_name


def learning_rate(
    base: float, batch_size: int, steps: int, warmup: int, schedule: str
) -> optax.Schedule:
    """A linear warm-up to base · batch / 256; then constant, or a cosine to zero at `steps`."""
    peak = base * batch_size / 256
    after = {
        'constant': optax.constant_schedule(peak),
        'cosine': optax.cosine_decay_schedule(peak, max(steps - warmup, 1)),
    }
    rising = optax.linear_schedule(0.0, peak, warmup)
    return optax.join_schedules([rising, after[schedule]], [warmup])


def optimizer(
    rate: optax.Schedule,
    b1: float,
    b2: float,
    weight_decay: float,
    muon_rms: float,
    mu_dtype: str = 'float32',
) -> optax.GradientTransformation:
    """AdamW as published; or Muon, where muon_rms > 0.

    Muon moves the kernels of the blocks, and Nesterov's Adam the rest. muon_rms is the root mean
    square of Muon's update at learning rate 1 (arXiv 2502.16982 takes 0.2, to be like AdamW's).
    Only kernels decay, as in the official parameter groups; with Muon, only its own. mu_dtype: of
    the first moment, 'float32' or 'bfloat16'.
    """
    if not muon_rms:
        return optax.adamw(
            rate, b1, b2, weight_decay=weight_decay, mask=_kernels, mu_dtype=mu_dtype
        )
    return muon(
        rate,
        weight_decay=weight_decay,
        adam_b1=b1,
        adam_b2=b2,
        mu_dtype=mu_dtype,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=muon_rms,
    )


def _kernels(params: dict) -> dict:
    """A tree of bools: the arrays that decay."""
    return tree_map_with_path(lambda path, _: 'kernel' in path_name(path), params)


def _matrices(params: dict) -> dict:
    """Which dimensions of the blocks' kernels are a matrix to Muon; None for every other array.

    Kernels of blocks are [L, in, …, out]; q, k and v, or the two halves of w12, lie between and are
    matrices of their own, and so is every layer. The output of q, k and v is [H, K].
    """

    def numbers(path, array):
        if not re.fullmatch('blocks/.*/kernel', path_name(path)):
            return None
        output = (3, 4) if array.ndim == 5 else (array.ndim - 1,)
        return MuonDimensionNumbers(reduction_axis=(1,), output_axis=output)

    return tree_map_with_path(numbers, params)
