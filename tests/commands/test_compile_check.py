"""The compile check: what it reads in a compiled program, the devices that are here, and a pod that is not."""

import importlib.util
import os
import re

import jax
import pytest
from jax.sharding import PartitionSpec as P
from shell import ROOT, TINY, run

from configs import cond, uncond
from jit_jax.commands import compile_check
from jit_jax.model import sharding
from jit_jax.model.jit import REMAT
from jit_jax.recipe import build, checks


def tiny_config(module, mesh, **changes):
    config = module.get_config()
    config.model.variant, config.mesh, config.batch_size = TINY, mesh, 8
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize(
    'mesh, gathers', [((8, 1, 1), False), ((1, 8, 1), True), ((2, 2, 2), True)]
)
def test_each_device_computes_its_own_rows_only(mesh, gathers):
    config = tiny_config(uncond, mesh, **{'compute.scan': True, 'optimizer.muon_rms': 0.0})
    programs = build.programs(config, sharding.make_mesh(mesh))
    batch, key = compile_check.shapes_of_a_batch(config), jax.eval_shape(lambda: jax.random.key(0))
    hlo = programs.step.lower(programs.like, batch, key).compile().as_text()
    rows = {int(b) for b in re.findall(r'f32\[(\d+),[12],256,256\]', hlo)}  # of attention's logits
    assert rows == {8 // (mesh[0] * mesh[1])}
    sent = compile_check.collectives(hlo)
    assert 'all-reduce' in sent and ('all-gather' in sent) == gathers


def test_collectives_of_loops_count_as_often_as_they_turn():
    def f(x, w):
        body = lambda x, w: (jax.lax.with_sharding_constraint(x @ w, place('data', None)), None)
        return jax.lax.scan(body, x, w)[0]

    mesh = sharding.make_mesh((8, 1, 1))
    place = lambda *spec: jax.NamedSharding(mesh, P(*spec))
    x = jax.ShapeDtypeStruct((64, 32), 'float32', sharding=place('data', None))
    w = jax.ShapeDtypeStruct((5, 32, 32), 'float32', sharding=place(None, 'data', None))
    hlo = jax.jit(f, out_shardings=place('data', None)).lower(x, w).compile().as_text()
    count, size = compile_check.collectives(hlo)['all-gather']
    assert size == 5 * 32 * 32 * 4 and count in (
        1,
        5,
    )  # of each layer's w, in the loop or before it


def test_the_devices_of_this_machine():
    config = tiny_config(cond, (2, 2, 2))
    programs = build.programs(config, sharding.make_mesh(config.mesh, compile_check.devices(None)))
    report = compile_check.compile_step(programs)
    state = sum(x.size * 4 for x in jax.tree.leaves((programs.like.params, programs.like.ema)))
    kept = [
        compile_check.activations(
            build.programs(tiny_config(cond, (2, 2, 2), **{'compute.remat': r}), programs.mesh)
        )
        for r in REMAT
    ]
    assert kept[0] > kept[1] > kept[2] > 0 and kept[0] == report.activations
    assert state / 8 < report.bytes['params'] + report.bytes['ema'] < state
    text = compile_check.table(programs, report)
    assert 'condition inpaint, batch 8' in text and '| params |' in text and text.endswith('Fits.')


def test_what_to_try_gets_smaller_until_it_fits():
    config, tried = uncond.get_config('imagenet256_b16'), []
    run = build.programs(config, sharding.make_mesh(config.mesh))
    for _ in range(4):
        tried.append(compile_check.advice(run))
        key, value = tried[-1].removeprefix('--config.').split('=')
        config.update_from_flattened_dict({key: int(value) if value.isdigit() else value})
    assert [flag.partition('.')[2] for flag in tried] == [
        'compute.remat=dots',
        'compute.remat=full',
        'accumulate=2',
        'accumulate=4',
    ]
    checks.check(config)


def test_a_machine_that_is_not_this_one():
    with pytest.raises(
        ValueError, match='this machine has cpu:8, and only TPU pods .* compile without one'
    ):
        compile_check.devices('gpu:8')


@pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason="needs pip install -e '.[tpu]'"
)
def test_a_pod_that_is_not_here(env, tmp_path):
    config = [
        '-m',
        'jit_jax',
        'compile',
        f'--config={os.path.join(ROOT, "configs", "cond.py")}',
        '--config.model.variant=' + TINY,
    ]
    env = env | {'PYTHONPATH': ROOT}
    said = run([*config, '--topology=v5e:2x2', '--config.mesh=(1,-1,1)'], env, tmp_path)
    assert (
        '4 × TPU v5 lite' in said
        and 'bfloat16' in said
        and 'Fits.' in said
        and re.search(r'GiB of 16 \|', said)
    )
    said = run([*config, '--topology=v9:2x2'], env, tmp_path, code=1)
    assert said.startswith('error: --topology=v9:2x2') and said.count('\n') == 1
    big = [
        '--config.model.variant=L',
        '--config.batch_size=8192',
        '--config.model.image_size=256',
        '--config.optimizer.muon_rms=0',
    ]
    said = run(
        [*config, *big, '--topology=v5e:2x2', '--config.compute.attention=xla'],
        env,
        tmp_path,
        code=1,
    )
    assert re.search(
        r'Does not fit: .* exceeds available HBM .* Try --config.compute.remat=dots\.', said
    )
