"""What people meet first when something goes wrong: too little memory, a loss that is no number, a CPU and a month of work."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shell import lines, run, start, train

from configs import uncond
from jit_jax import loop
from jit_jax.commands import replay
from jit_jax.hardware import speed
from jit_jax.model import sharding
from jit_jax.model.sizes import forward_multiply_adds
from jit_jax.recipe import build


def a_run(config, mesh=(1, 1, 1)):
    return SimpleNamespace(
        config=config, mesh=sharding.make_mesh(mesh, jax.devices()[: int(np.prod(mesh))])
    )


# Memory


def test_out_of_memory_says_what_to_change():
    config = uncond.get_config('imagenet256_b16')
    with pytest.raises(MemoryError) as error, loop.enough_memory(a_run(config)):
        jnp.zeros(1 << 45).block_until_ready()  # 140 TB: a real refusal of the device
    text = str(error.value)
    assert 'out of memory with 1024 images at a time' in text and '\n' not in text
    assert (
        '--config.accumulate=2 (512 images at a time)' in text
        and 'remat=dots' in text
        and '--config.batch_size=512' in text
    )


def test_advice_is_what_the_run_accepts():
    """Every flag that is named passes the checks of a start, and there is none that changes nothing."""
    for batch, accumulate, remat, mesh in (
        (8, 1, 'none', (8, 1, 1)),
        (24, 2, 'dots', (2, 1, 1)),
        (6, 1, 'full', (2, 1, 1)),
        (1, 1, 'full', (1, 1, 1)),
    ):
        config = uncond.get_config()
        config.batch_size, config.accumulate, config.compute.remat = batch, accumulate, remat
        one = a_run(config, mesh)
        text = loop.memory_advice(config, one.mesh)
        flags = dict(re.findall(r'--config\.([a-z_.]+)=(\w+)', text))
        assert ('compute.remat' in flags) == (remat != 'full')
        if 'accumulate' in flags:
            assert int(flags['accumulate']) > accumulate
            sharding.check_batch(batch, one.mesh, int(flags['accumulate']))
        assert ('accumulate' in flags) == (batch // accumulate > np.prod(mesh))


def test_other_errors_stay_what_they_are():
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match='broken'),
        loop.enough_memory(a_run(uncond.get_config())),
    ):
        raise jax.errors.JaxRuntimeError('INTERNAL: broken')


# Time


def test_a_cpu_run_of_imagenet_says_how_long_it_takes():
    config = uncond.get_config('imagenet256_b16')
    flops = 6 * forward_multiply_adds(build.network(config), 0, False)
    with pytest.raises(loop.Refused, match=r'at least [\d,]{5,} days;.*--yes'):
        loop.check_patience(config, flops / 1e11 * config.batch_size * config.steps)
    loop.check_patience(uncond.get_config(), 3600)


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


def test_patience_is_asked_for_before_anything_is_written(env, tmp_path):
    endless = '--config.steps=10000000000'
    said = train(tmp_path, env, 'uncond', endless, code=1)
    assert (
        'On this CPU' in said
        and '--yes' in said
        and 'Traceback' not in said
        and not (tmp_path / 'runs').exists()
    )
    process = start(tmp_path, env, endless, '--yes')
    first = process.stdout.readline()
    process.kill()
    process.communicate()
    assert 'Starting fresh' in first


# Not a number


def test_the_first_operation_that_breaks_is_found():
    def f(params, x):
        hidden = jax.nn.silu(x @ params['a'])
        small = jnp.where(
            x > 0, jnp.log(x), 0
        ).sum()  # −∞ on the way, as in a mask: not what is looked for
        return (hidden * params['b']).sum() / (hidden.sum() - hidden.sum()) + small

    params, x = {'a': jnp.ones((2, 2)), 'b': jnp.ones(2)}, jnp.array([[1.0, 0.0]])
    found = replay.first_broken(f, params, x)
    assert found.startswith('div in') and 'test_loop.py' in found
    assert replay.first_broken(
        jax.value_and_grad(lambda p, x: f(p, x) * 0 + 1), params, x
    ).startswith('div in')
    assert replay.first_broken(lambda p, x: jax.nn.silu(x @ p['a']), params, x) is None
    assert replay.first_broken(jax.grad(lambda x: jnp.sqrt(x).sum()), jnp.zeros(2)).startswith(
        'div in'
    )  # backward alone


def test_a_loss_that_is_no_number_stops_saves_a_bundle_and_can_be_replayed(env, tmp_path):
    wild = [
        '--config.optimizer.base_lr=1e22',
        '--config.optimizer.warmup=6',
        '--config.checkpoint.every=1',
    ]
    said = train(tmp_path, env, 'uncond', *wild, code=1)
    folder = tmp_path / 'runs/uncond'
    (path,) = folder.glob('nan-*.npz')
    step = int(path.stem.split('-')[1])
    assert (
        f'At step {step} the loss is' in said
        and f'jit-jax replay --bundle=runs/uncond/{path.name}' in said
        and 'Traceback' not in said
    )
    bundle = np.load(path)
    assert (bundle['step'], bundle['seed'], bundle['checkpoint']) == (step, 0, step - 1) and bundle[
        'batch/image'
    ].shape == (8, 32, 32, 3)
    assert (
        max(int(p.name) for p in (folder / 'checkpoints').iterdir()) == step - 1
    )  # what is saved is from before
    assert all(np.isfinite(list(line.values())).all() for line in lines(folder))
    replayed = run(['-m', 'jit_jax', 'replay', f'--bundle=runs/uncond/{path.name}'], env, tmp_path)
    assert f'Step {step}: the first NaN or infinity comes from' in replayed and '.py:' in replayed
    # A device that erred once: the same step is finite when it is computed again.
    np.savez(folder / 'nan-2.npz', **(dict(bundle) | {'step': 2, 'checkpoint': 1}))
    assert 'Step 2 is finite when repeated' in run(
        ['-m', 'jit_jax', 'replay', '--bundle=runs/uncond/nan-2.npz'], env, tmp_path
    )
