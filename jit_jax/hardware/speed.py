"""How fast this machine could be: its rate of matrix products, which `mfu` is a share of."""

import math
import time

import jax
import jax.numpy as jnp


def matmul_rate(dtype) -> float:
    """Floating-point operations a second of all devices in products of matrices of `dtype`.

    The best of 0.1 s of large square products on one device, times the number of devices.
    """
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
