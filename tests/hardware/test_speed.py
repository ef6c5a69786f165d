"""The rate of plain matrix products."""

import jax
import jax.numpy as jnp
import numpy as np

from jit_jax.hardware import speed


def test_matmul_rate_is_a_rate():
    a = np.random.default_rng(0).standard_normal((512, 512), np.float32)
    rate = speed.matmul_rate(jnp.float32) / jax.device_count()
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    times = []
    for _ in range(20):
        began = speed.time.perf_counter()
        product(a, a).block_until_ready()
        times.append(speed.time.perf_counter() - began)
    assert 0.2 < rate / (2 * 512**3 / min(times)) < 5
