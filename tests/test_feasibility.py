"""What people meet first: too little memory, and a CPU and a month of work."""

import re
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import uncond
from jit_jax import feasibility
from jit_jax.errors import UserError
from jit_jax.model import sharding
from jit_jax.model.sizes import forward_multiply_adds
from jit_jax.recipe import build


def a_run(config, mesh=(1, 1, 1)):
    return SimpleNamespace(
        config=config, mesh=sharding.make_mesh(mesh, jax.devices()[: int(np.prod(mesh))])
    )


def test_out_of_memory_says_what_to_change():
    config = uncond.get_config('imagenet256_b16')
    one = a_run(config)
    advise = partial(feasibility.training_advice, config, one.mesh)
    with pytest.raises(UserError) as error, feasibility.enough_memory(advise):
        jnp.zeros(1 << 45).block_until_ready()  # 140 TB: a real refusal of the device
    text = str(error.value)
    assert 'out of memory with 1024 images at a time' in text and '\n' not in text
    assert (
        '--config.accumulate=2 (512 images at a time)' in text
        and 'remat=dots' in text
        and '--config.batch_size=512' in text
    )


def test_advice_is_what_the_run_accepts():
    """Every flag that is named passes the checks of a start, and there is none that changes
    nothing.
    """
    for batch, accumulate, remat, mesh in (
        (8, 1, 'none', (8, 1, 1)),
        (24, 2, 'dots', (2, 1, 1)),
        (6, 1, 'full', (2, 1, 1)),
        (1, 1, 'full', (1, 1, 1)),
    ):
        config = uncond.get_config()
        config.batch_size, config.accumulate, config.compute.remat = batch, accumulate, remat
        one = a_run(config, mesh)
        text = feasibility.training_advice(config, one.mesh)
        flags = dict(re.findall(r'--config\.([a-z_.]+)=(\w+)', text))
        assert ('compute.remat' in flags) == (remat != 'full')
        if 'accumulate' in flags:
            assert int(flags['accumulate']) > accumulate
            sharding.check_batch(batch, one.mesh, int(flags['accumulate']))
        assert ('accumulate' in flags) == (batch // accumulate > np.prod(mesh))


def test_other_errors_stay_what_they_are():
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match='broken'),
        feasibility.enough_memory(str),
    ):
        raise jax.errors.JaxRuntimeError('INTERNAL: broken')


def test_advice_for_what_is_not_training_names_its_own_keys():
    config = uncond.get_config()
    assert '--config.sample.num' in feasibility.preview_advice(config)
    assert '--config.evaluate.batch than 64' in feasibility.evaluation_advice(config)


def test_a_cpu_run_of_imagenet_says_how_long_it_takes():
    config = uncond.get_config('imagenet256_b16')
    flops = 6 * forward_multiply_adds(build.network(config), 0, labelled=False)
    with pytest.raises(UserError, match=r'at least [\d,]{5,} days;.*--yes'):
        feasibility.check_patience(config, flops / 1e11 * config.batch_size * config.steps)
    feasibility.check_patience(uncond.get_config(), 3600)
