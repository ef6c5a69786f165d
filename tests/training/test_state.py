"""The state of training, and what one step of gradients makes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jit_jax.training import state
from jit_jax.training.ema import EMA
from jit_jax.training.state import start_state
from jit_jax.training.step import Recipe, apply_gradients

TREE = {'a': {'kernel': jnp.array([1.0, -2.0])}, 'b': {'bias': jnp.array(3.0)}}
GRADIENTS = jax.tree.map(lambda x: x * 0.5 + 0.25, TREE)


def steps(count, decays, warmup=False, log_every=100, losses=None):
    """States after each of `count` steps of plain gradient descent with rate 0.1."""
    recipe = Recipe(
        model=None,
        diffusion=None,
        condition=None,
        drop=0.0,
        optimizer=optax.sgd(0.1),
        learning_rate=optax.constant_schedule(0.1),
        ema=EMA(decays, warmup=warmup),
        accumulate=1,
        log_every=log_every,
    )
    states = [start_state(TREE, recipe.optimizer, decays)]
    for loss in losses or [0.0] * count:
        states.append(apply_gradients(states[-1], GRADIENTS, jnp.float32(loss), recipe))
    return states


def test_a_start_is_step_0_and_averages_equal_to_the_parameters():
    first = steps(0, (0.9, 0.99))[0]
    assert int(first.step) == 0 and first.step.dtype == jnp.int32 and float(first.loss_mean) == 0
    assert set(first.ema) == {'ema1', 'ema2'}
    for average in first.ema.values():
        jax.tree.map(np.testing.assert_array_equal, average, TREE)


def test_two_steps_of_two_averages_by_hand():
    second = steps(2, (0.9, 0.5))[2]
    p = [1.0, 1.0 - 0.1 * 0.75, 1.0 - 0.2 * 0.75]  # the first entry's gradient is 0.75
    assert float(second.params['a']['kernel'][0]) == pytest.approx(p[2])
    for name, decay in (('ema1', 0.9), ('ema2', 0.5)):
        once = decay * p[0] + (1 - decay) * p[1]
        twice = decay * once + (1 - decay) * p[2]
        assert float(second.ema[name]['a']['kernel'][0]) == pytest.approx(twice, rel=1e-6)
        assert twice != pytest.approx(p[2], rel=1e-3)  # an average is not the live weights
    assert int(second.step) == 2


def test_two_steps_of_an_average_that_warms_up_by_hand():
    second = steps(2, (0.9, 0.15), warmup=True)[2]
    p = [1.0, 1.0 - 0.1 * 0.75, 1.0 - 0.2 * 0.75]
    for name, decays in (('ema1', (1 / 10, 2 / 11)), ('ema2', (1 / 10, 0.15))):
        once = decays[0] * p[0] + (1 - decays[0]) * p[1]
        twice = decays[1] * once + (1 - decays[1]) * p[2]
        assert float(second.ema[name]['a']['kernel'][0]) == pytest.approx(twice, rel=1e-6)


def test_loss_mean_is_the_mean_since_the_last_line():
    losses = [4.0, 1.0, 7.0, 10.0, 20.0, 3.0, 5.0]
    means = [float(s.loss_mean) for s in steps(7, (), log_every=3, losses=losses)[1:]]
    assert means == pytest.approx([4, 2.5, 4, 10, 15, 11, 5])


def test_init_state_is_pure(tiny, fresh):
    init = jax.jit(lambda key: state.init_state(tiny(), key, optax.sgd(0.1), (0.9,)))
    first = init(jax.random.key(0))
    for tree in (first.params, first.ema['ema1']):
        jax.tree.map(np.testing.assert_array_equal, tree, fresh)
    assert (
        np.asarray(init(jax.random.key(1)).params['blocks']['w3']['kernel'])
        != fresh['blocks']['w3']['kernel']
    ).all()
