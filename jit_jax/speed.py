"""How fast a machine could be: its rate of matrix products, and the time that a run needs at that rate."""

import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jit_jax.model import JiT, forward_multiply_adds
from jit_jax.sequence import condition_grid


def matmul_rate(dtype) -> float:
    """Floating-point operations a second of all devices: the best of 0.1 s of large square products on one of them."""
    n = 512 if jax.default_backend() == 'cpu' else 4096
    product, a = jax.jit(jnp.matmul), jnp.full((n, n), 1 / n, dtype)  # whose square it is
    product(a, a).block_until_ready()  # compiles
    best, began = math.inf, time.perf_counter()
    while time.perf_counter() - began < 0.1:
        start, b = time.perf_counter(), a
        for _ in range(4):
            b = product(a, b)
        b.block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 4 * 2 * n**3 / best * jax.device_count()


def training_flops(model: JiT, condition: Callable) -> float:
    """Floating-point operations of one image in one step, in matrix products: forward and twice that backward.

    Dead slots of a program's own shape count, recomputation (remat) does not. condition: as in `build.Run`.
    """
    image = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, model.channels), jnp.float32)
    batch = {'image': image, 'cond': image, 'label': jax.ShapeDtypeStruct((1,), jnp.int32)}
    told = jax.eval_shape(condition, image, batch, jax.random.key(0))
    slots = math.prod(condition_grid(told['cond'].shape, model.patch)) if 'cond' in told else 0
    return 3 * 2 * forward_multiply_adds(model, slots, 'label' in told)


def words(seconds: float) -> str:
    """'3 hours': a time as a person says it."""
    for name, length in (('year', 365.25 * 86400), ('day', 86400), ('hour', 3600), ('minute', 60)):
        if seconds >= 2 * length:
            return f'{seconds / length:,.0f} {name}s'
    return f'{max(seconds, 0):.0f} seconds'
