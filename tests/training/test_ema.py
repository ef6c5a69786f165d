"""The averages, alone; tests of the step see them follow the parameters."""

import jax.numpy as jnp
import pytest

from jit_jax.training.ema import EMA, update


def test_a_warmed_up_average_reaches_its_decay_and_stays():
    one = {'w': jnp.ones(())}

    def move(step, decay):
        start = {'ema1': {'w': jnp.zeros(())}}
        moved = update(start, one, step, EMA((decay,), warmup=True))
        return 1 - float(moved['ema1']['w'])

    assert move(80, 0.9) == pytest.approx(81 / 90, rel=1e-5)
    assert move(1000, 0.9) == pytest.approx(0.9, rel=1e-5)
    assert move(1_000_000, 0.9999) == pytest.approx(0.9999, rel=1e-6)
