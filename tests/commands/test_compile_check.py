"""The compile check: devices that are here, a pod and cards that are not, step and sampler."""

import importlib.util
import itertools
import json
import os
import re
from dataclasses import replace

import jax
import pytest
from jax.sharding import PartitionSpec as P
from shell import ROOT, TINY, run

from configs import cond, uncond
from jit_jax import loop
from jit_jax.commands import compile_check, lowering, scaling
from jit_jax.errors import UserError
from jit_jax.hardware import cards, hlo, topologies
from jit_jax.hardware.kernels import collectives
from jit_jax.model import sharding
from jit_jax.model.block import REMAT
from jit_jax.model.sizes import forward_multiply_adds
from jit_jax.recipe import build, checks

# Heads of 32 channels, which cuDNN's attention takes.
WIDER = TINY.replace('width=32', 'width=64')


def tiny_config(module, mesh, **changes):
    config = module.get_config()
    config.model.variant, config.mesh, config.batch_size = TINY, mesh, 8
    config.update_from_flattened_dict(changes)
    return config


def test_a_batch_with_captions_is_compiled_as_the_pipeline_makes_it(env, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', env['TFDS_DATA_DIR'])
    config = cond.get_config('digits_text')
    config.mesh = (8, 1, 1)
    expected = lowering.shapes_of_a_batch(config)
    assert expected['tokens'].shape == (8, config.condition.tokens) == (8, 128)
    run = build.run(config)
    assert run.config.condition.tokens == 24 and config.condition.tokens == 128
    (batch,) = itertools.islice(loop.open_batches(run, 0), 1)
    shapes = {name: (rows.shape, rows.dtype) for name, rows in batch.items()}
    expected = lowering.shapes_of_a_batch(run.config)
    assert shapes == {name: (rows.shape, rows.dtype) for name, rows in expected.items()}
    conditioning = jax.eval_shape(run.condition, batch['image'], batch, lowering.shape_of_a_key())
    assert conditioning['cond_tokens'].shape == (8, 24)
    assert run.flops == 6 * forward_multiply_adds(run.model, 0, 24, labelled=False)
    by_slots = [forward_multiply_adds(run.model, 0, n, labelled=False) for n in (0, 8, 16)]
    assert by_slots[0] < by_slots[1] < by_slots[2]


@pytest.mark.parametrize(
    'mesh, gathers', [((8, 1, 1), False), ((1, 8, 1), True), ((2, 2, 2), True)]
)
def test_each_device_computes_its_own_rows_only(mesh, gathers):
    config = tiny_config(uncond, mesh, **{'compute.scan': True, 'optimizer.muon_rms': 0.0})
    programs = build.programs(config, sharding.make_mesh(mesh))
    batch, key = lowering.shapes_of_a_batch(config), lowering.shape_of_a_key()
    text = programs.step.lower(programs.like, batch, key).compile().as_text()
    rows = {int(b) for b in re.findall(r'f32\[(\d+),[12],256,256\]', text)}  # of attention's logits
    assert rows == {8 // (mesh[0] * mesh[1])}
    sent = collectives(hlo.parse(text))
    assert 'all-reduce' in sent and ('all-gather' in sent) == gathers


def test_collectives_of_loops_count_as_often_as_they_turn():
    def f(x, w):
        def body(x, w):
            return jax.lax.with_sharding_constraint(x @ w, place('data', None)), None

        return jax.lax.scan(body, x, w)[0]

    mesh = sharding.make_mesh((8, 1, 1))

    def place(*spec):
        return jax.NamedSharding(mesh, P(*spec))

    x = jax.ShapeDtypeStruct((64, 32), 'float32', sharding=place('data', None))
    w = jax.ShapeDtypeStruct((5, 32, 32), 'float32', sharding=place(None, 'data', None))
    text = jax.jit(f, out_shardings=place('data', None)).lower(x, w).compile().as_text()
    count, size = collectives(hlo.parse(text))['all-gather']
    # Of each layer's w, in the loop or before it.
    assert size == 5 * 32 * 32 * 4 and count in (1, 5)


def test_the_devices_of_this_machine():
    config, here = tiny_config(cond, (2, 2, 2)), topologies.target(None)
    programs = build.programs(config, sharding.make_mesh(config.mesh, here.devices))
    report = lowering.compile_step(programs, here)
    state = sum(x.size * 4 for x in jax.tree.leaves((programs.like.params, programs.like.ema)))
    kept = []
    for remat in REMAT:
        changed = tiny_config(cond, (2, 2, 2), **{'compute.remat': remat})
        kept.append(lowering.activations(build.programs(changed, programs.mesh)))
    assert kept[0] > kept[1] > kept[2] > 0 and kept[0] == report.activations
    assert state / 8 < report.memory['params'] + report.memory['ema'] < state
    # The program multiplies as often as the formula says, each device an eighth of it, and a little
    # more: products that `tensor` splits share their inputs.
    share = report.formula / 8
    assert share < report.analysis.operations < 1.5 * share
    text = compile_check.page(programs, here, report)
    assert 'condition inpaint, 8 images' in text and '| params |' in text
    assert '| attention | xla: no fused kernel |' in text and 'No roofline' in text
    assert text.endswith('Fits.')


def test_the_sampler(tmp_path):
    """Two Heun steps are three passes; guidance adds as many of the null branch."""
    steps = {'sample.num': 8, 'sample.steps': 2, 'sample.guidance': 2.0, 'compute.scan': False}
    config, here = tiny_config(cond, (8, 1, 1), **steps), topologies.target(None)
    programs = build.programs(config, sharding.make_mesh(config.mesh, here.devices))
    report = lowering.compile_sampler(programs, here)
    assert lowering.passes_of_the_network(programs) == 3
    weights = sum(x.size * 4 for x in jax.tree.leaves(programs.like.params))
    assert report.memory['weights'] == weights and report.images == 8
    one_branch = report.formula / 8
    assert one_branch < report.analysis.operations < 2 * one_branch  # the null one has fewer slots
    assert compile_check.advice(programs, report) == '--config.sample.num=4'
    compile_check.write_json(tmp_path / 'a' / 'x.json', programs, here, report)
    found = json.loads((tmp_path / 'a' / 'x.json').read_text())
    assert found['program'] == 'sampler' and found['fits'] and found['roofline_ms'] is None
    assert found['memory'] == report.memory and found['kernels'] == report.analysis.kernels
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='--json: .*file/x.json cannot be written'):
        compile_check.write_json(f'{tmp_path}/file/x.json', programs, here, report)


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


def test_memory_that_a_card_does_not_have():
    """A GPU's compiler takes what does not fit; the report says so, and what to try."""
    config, here = tiny_config(uncond, (8, 1, 1)), topologies.target(None)
    card = replace(cards.cards()['h100'], memory=2_000_000)
    target = replace(here, name='h100:8', card=card)
    run = build.programs(config, sharding.make_mesh(config.mesh))
    report = lowering.compile_step(run, target)
    assert re.search(r'it takes [\d.]+ GiB of the 0.0 GiB that cpu has.$', report.problem)
    assert compile_check.verdict(run, report).endswith('Try --config.compute.remat=dots.')
    assert report.analysis.roofline_ms > 0  # it is read all the same
    cells = scaling.row(target, run, report).strip('| ').split(' | ')
    row = dict(zip(scaling.COLUMNS, cells, strict=True))
    assert row['devices'] == 'h100:8' and row['mesh'] == '8×1×1' and row['batch'] == '8'
    assert row['GiB each'] == 'more than 0' and row['remat'] == 'none'
    smaller = replace(target, card=replace(card, memory=1000))
    assert 'optimizer alone' in lowering.compile_step(run, smaller).problem
    config.accumulate = 4
    assert scaling.remat(config) == 'none ×4'


def test_the_table_is_of_what_can_be_compiled_for(monkeypatch):
    def only_pods(name):
        if name.startswith('v'):
            return topologies.Target(name, [], cards.cards()[name.partition(':')[0]])
        raise UserError(f'{name} needs a compiler.')

    monkeypatch.setattr(topologies, 'target', only_pods)
    targets, missing = scaling.compilers()
    assert [target.name for target in targets] == list(topologies.PODS)
    assert missing == ['h100 needs a compiler.']


def without_flags(env):
    """The environment of a compiler that makes what its device would run."""
    plain = {name: value for name, value in env.items() if name != 'XLA_FLAGS'}
    return plain | {'PYTHONPATH': ROOT}


@pytest.mark.skipif(
    importlib.util.find_spec('jax_plugins') is None, reason="needs pip install 'jax[cuda12]'"
)
def test_cards_that_are_not_here(env, tmp_path):
    """Two H100 run cuDNN's attention in bfloat16; a T4 has neither."""
    command = ['-m', 'jit_jax', 'compile', '--config=cond', f'--config.model.variant={WIDER}']
    env = without_flags(env)
    said = run([*command, '--topology=h100:2', '--json=h100.json'], env, tmp_path)
    assert '2 × NVIDIA H100 80GB HBM3' in said and 'Fits.' in said
    found = json.loads((tmp_path / 'h100.json').read_text())
    assert found['attention'] == {'cudnn$fmhaSoftmax': 2, 'cudnn$fmhaSoftmaxBackward': 2}
    assert found['products']['bfloat16']['operations'] > 0.9 * found['operations']
    assert found['largest'][0]['source'].startswith('jit_jax/')
    # Gradients are summed over both; rows, which are more, stay where they are.
    sent = sum(kind['bytes'] for kind in found['collectives'].values())
    assert 0 < sent < 1.2 * found['memory']['params']
    assert 0 < found['share_of_products'] < 1 and found['roofline_ms'] > 0
    run([*command, '--topology=t4', '--sample', '--json=t4.json'], env, tmp_path)
    found = json.loads((tmp_path / 't4.json').read_text())
    assert found['attention'] == {} and set(found['products']) == {'float32'}


@pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason="needs pip install -e '.[tpu]'"
)
@pytest.mark.long
def test_a_pod_that_is_not_here(env, command, tmp_path):
    config = [
        '-m',
        'jit_jax',
        'compile',
        f'--config={os.path.join(ROOT, "configs", "cond.py")}',
        '--config.model.variant=' + TINY,
    ]
    env = without_flags(env)
    said = run([*config, '--topology=v5e:2x2', '--config.mesh=(1,-1,1)'], env, tmp_path)
    assert '4 × TPU v5 lite' in said and 'bfloat16' in said and 'Fits.' in said
    assert re.search(r'GiB of 16\.0 \|', said) and re.search(r'Roofline: [\d.]+ ms, ', said)
    assert 'jit_jax/model/' in said  # the lines that the largest kernels come from
    code, out, err = command(*config[2:], '--topology=v9:2x2')
    assert code == 1 and not out
    assert err.startswith('error: --topology=v9:2x2') and err.count('\n') == 1
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
