"""What 'auto' means, by device: cards that are here or not, and platforms."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from configs import uncond
from jit_jax.model.sizes import VARIANTS
from jit_jax.recipe import auto, build


def device(platform, kind):
    return SimpleNamespace(platform=platform, device_kind=kind)


T4, H100 = device('gpu', 'Tesla T4'), device('gpu', 'NVIDIA H100 80GB HBM3')
A100 = device('gpu', 'NVIDIA A100-SXM4-80GB')
ROCM, TPU, CPU = device('gpu', 'gfx90a'), device('tpu', 'TPU v5 lite'), device('cpu', 'cpu')


@pytest.mark.parametrize(
    'where, dtype',
    [
        (T4, 'float32'),  # compute capability 7.5
        (A100, 'bfloat16'),  # 8.0
        (H100, 'bfloat16'),  # 9.0
        (ROCM, 'float32'),  # of which nothing is known
        (TPU, 'bfloat16'),
        (CPU, 'float32'),
    ],
    ids=lambda x: getattr(x, 'device_kind', x),
)
def test_the_dtype_of_a_device(where, dtype):
    assert auto.dtype('auto', where) == jnp.dtype(dtype)
    for asked in ('float32', 'bfloat16'):
        assert auto.dtype(asked, where) == jnp.dtype(asked)


def test_the_network_takes_it():
    config = uncond.get_config('imagenet256_b16')
    assert build.network(config, T4).dtype == jnp.float32
    assert build.network(config, H100).dtype == jnp.bfloat16


@pytest.mark.parametrize('variant', VARIANTS)
def test_blocks_by_platform(variant):
    config = uncond.get_config('imagenet256_b16')
    config.model.variant = variant
    assert build.network(config, TPU).scan is True
    assert build.network(config, H100).scan is False
    assert build.network(config, CPU).scan is (variant not in ('XS', 'digits'))


def test_many_blocks_are_scanned_on_a_gpu():
    assert auto.scan('auto', 'gpu', depth=47, width=1280)[0] is False
    scan, why = auto.scan('auto', 'gpu', depth=48, width=1280)
    assert scan and '48 blocks' in why


@pytest.mark.parametrize('asked', [True, False])
def test_what_is_asked_for_is_done(asked):
    for where in (T4, TPU, CPU):
        config = uncond.get_config('imagenet256_b16')
        config.compute.scan = asked
        assert build.network(config, where).scan is asked


def test_a_run_says_what_was_chosen_and_why():
    config = uncond.get_config()
    config.mesh = (8, 1, 1)
    run = build.programs(config, build.mesh(config, jax.devices()))
    assert run.remarks == (
        'float32, attention xla, blocks one by one (faster on a CPU for narrow blocks)'
    )
    config.compute.scan, config.mesh = True, (1, 2, 4)  # one head does not split over 4
    run = build.programs(config, build.mesh(config, jax.devices()))
    assert 'blocks scanned (as config.compute.scan says). Not split' in run.remarks
    assert 'blocks/qkv/kernel over tensor=4' in run.remarks
    few_steps = uncond.get_config('digits_meanflow')
    said = build.remarks(few_steps, run.model, run.mesh, 'cudnn', run.like)
    assert 'attention cudnn, and xla where MeanFlow takes derivatives, blocks' in said
