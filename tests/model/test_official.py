import argparse
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jit_jax.__main__ import main
from jit_jax.commands import convert
from jit_jax.errors import UserError
from jit_jax.model import official
from jit_jax.model.layers import sincos_tables
from jit_jax.model.official import (
    from_official,
    load_official,
    read_architecture,
    save_official,
    to_official,
)
from jit_jax.model.sizes import VARIANTS, hidden_width, size
from jit_jax.training.weights import read_weights

GOLDENS = Path(__file__).parents[1] / 'goldens'
SIZES = {  # of the golden weights, as their .json says
    'jit_tiny_p4': (
        'depth=4,width=64,heads=4,bottleneck=16,class_tokens=8,class_start=2,dropout=0.0',
        64,
    ),
    'jit_tiny_256tok': (
        'depth=3,width=48,heads=3,bottleneck=12,class_tokens=32,class_start=1,dropout=0.0',
        32,
    ),
}
TINY = 'jit_tiny_256tok'


def weights(name: str = TINY) -> dict:
    return dict(np.load(GOLDENS / f'{name}_weights.npz'))


@pytest.fixture(scope='module')
def converted():
    return from_official(weights(), class_start=1)


def spelled(sizes: dict) -> str:
    return ','.join(f'{name}={value}' for name, value in sizes.items())


def same(a: dict, b: dict) -> bool:
    """Equal names, shapes, dtypes and bits."""
    return a.keys() == b.keys() and all(
        (x.shape, x.dtype, x.tobytes()) == (b[name].shape, b[name].dtype, b[name].tobytes())
        for name, x in a.items()
    )


@pytest.mark.parametrize('name', SIZES)
@pytest.mark.parametrize('prefix', ['net.', ''])
def test_round_trip_from_official(name, prefix):
    variant, image_size = SIZES[name]
    state = {f'{prefix}{key.removeprefix("net.")}': x for key, x in weights(name).items()}
    architecture, params = from_official(state, class_start=size(variant)['class_start'])
    assert size(architecture.pop('variant')) == size(variant)
    assert architecture == dict(
        image_size=image_size,
        channels=3,
        num_classes=10,
        tables='sincos',
        freeze_tables=True,
        null='mask',
    )
    assert same(to_official(architecture | {'variant': variant}, params, prefix), state)


def test_round_trip_from_ours(converted):
    """Whatever training has made of the tree comes back; the condition half is not official and
    starts anew.
    """
    architecture, params = converted
    rng = np.random.default_rng(0)
    flat = {
        name: rng.standard_normal(x.shape, np.float32)
        for name, x in flatten_dict(params, sep='/').items()
    }
    for name in (
        'target_embed/rows',
        'target_embed/cols',
        *(name for name in flat if name.startswith(('cond_embed', 'no_condition'))),
    ):
        flat[name] = flatten_dict(params, sep='/')[name]
    again, back = from_official(
        to_official(architecture, unflatten_dict(flat, sep='/')), class_start=1
    )
    assert again == architecture
    assert same(flatten_dict(back, sep='/'), flat)


@pytest.mark.parametrize('class_start', [None, 0])
def test_without_class_tokens(tiny, class_start):
    """in_context_len=0 of the official code: no in_context_posemb there, no class_positions
    here.
    """
    state = weights()
    del state['net.in_context_posemb']
    architecture, params = from_official(state, class_start=class_start)
    sizes = size(architecture['variant'])
    assert sizes['class_tokens'] == 0 and 'class_positions' not in params
    back = to_official(architecture, params)
    assert same(back, state)
    # The tree is the model's own, and a label still counts, in the modulation.
    fields = {name: value for name, value in architecture.items() if name != 'variant'}
    net = tiny(**sizes, **fields, token_width=0, reference_images=0)
    z, t = np.ones((2, 32, 32, 3), np.float32), np.full(2, 0.5, np.float32)
    like = jax.eval_shape(net.init, jax.random.key(0), z, t)['params']
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, like)
    one, two = (net.apply({'params': params}, z, t, label=np.full(2, n)) for n in (1, 2))
    assert not np.array_equal(one, two)


def test_a_fresh_model_comes_back(tiny, fresh):
    """The tree is the model's, name by name, and its condition half is what the model's own start
    is.
    """
    net = tiny()
    architecture = {
        name: getattr(net, name)
        for name in ('image_size', 'channels', 'num_classes', 'tables', 'freeze_tables', 'null')
    }
    sizes = {name: getattr(net, name) for name in size('digits')}
    again, back = from_official(
        to_official(architecture | {'variant': spelled(sizes)}, fresh),
        class_start=sizes['class_start'],
    )
    assert size(again.pop('variant')) == sizes and again == architecture
    beside = ('token_embed', 'which_reference')
    official_part = {name: leaf for name, leaf in fresh.items() if name not in beside}
    assert same(flatten_dict(back, sep='/'), flatten_dict(official_part, sep='/'))


def test_tables_are_the_published_one(converted):
    for name, table in zip(('rows', 'cols'), sincos_tables(48)):
        assert np.array_equal(converted[1]['target_embed'][name], table.astype(np.float32))


def test_condition_half(converted):
    copied = from_official(weights(), class_start=1, cond='copy', seed=1)[1]
    jax.tree.map(np.testing.assert_array_equal, copied['cond_embed'], copied['target_embed'])
    assert not np.shares_memory(copied['cond_embed']['rows'], copied['target_embed']['rows'])
    assert not np.array_equal(copied['no_condition'], converted[1]['no_condition'])  # another seed
    with pytest.raises(ValueError, match="'fresh' or 'copy'"):
        from_official(weights(), class_start=1, cond='zero')


def test_layouts_by_hand(converted):
    """A few numbers followed from one side to the other."""
    official, (_, params) = weights(), converted
    D, H, K = 48, 3, 16
    qkv, kernel = official['net.blocks.2.attn.qkv.weight'], params['blocks']['qkv']['kernel']
    assert kernel.shape == (3, D, 3, H, K)
    head = qkv[D + 2 * K : D + 3 * K]  # keys of head 2: [K, D]
    assert np.array_equal(
        kernel[2, :, 1, 2], np.concatenate([head[0::2], head[1::2]]).T
    )  # evens, then odds
    assert np.array_equal(
        params['blocks']['q_norm']['weight'][1, :8],
        official['net.blocks.1.attn.q_norm.weight'][0::2],
    )
    w12 = official['net.blocks.0.mlp.w12.weight']
    assert np.array_equal(params['blocks']['w12']['kernel'][0, :, 1], w12[hidden_width(D) :].T)
    patch = official['net.x_embedder.proj1.weight']  # [bottleneck, channel, row, column]
    assert np.array_equal(
        params['target_embed']['pixels']['kernel'].reshape(2, 2, 3, 12)[1, 0, 2], patch[:, 2, 1, 0]
    )
    modulation = official['net.blocks.1.adaLN_modulation.1.weight']
    assert np.array_equal(params['modulation_kernel'][1, :, 4], modulation[4 * D : 5 * D].T)


def official_shapes(sizes: dict, patch: int, classes: int) -> dict:
    D, n, F, P = (
        sizes['width'],
        sizes['bottleneck'],
        hidden_width(sizes['width']),
        patch * patch * 3,
    )
    K = D // sizes['heads']
    tops = {
        'pos_embed': (1, 256, D),
        'in_context_posemb': (1, sizes['class_tokens'], D),
        't_embedder.mlp.0.weight': (D, 256),
        't_embedder.mlp.0.bias': (D,),
        't_embedder.mlp.2.weight': (D, D),
        't_embedder.mlp.2.bias': (D,),
        'y_embedder.embedding_table.weight': (classes + 1, D),
        'x_embedder.proj1.weight': (n, 3, patch, patch),
        'x_embedder.proj2.weight': (D, n, 1, 1),
        'x_embedder.proj2.bias': (D,),
        'final_layer.norm_final.weight': (D,),
        'final_layer.linear.weight': (P, D),
        'final_layer.linear.bias': (P,),
        'final_layer.adaLN_modulation.1.weight': (2 * D, D),
        'final_layer.adaLN_modulation.1.bias': (2 * D,),
    }
    block = {
        'norm1.weight': (D,),
        'norm2.weight': (D,),
        'attn.q_norm.weight': (K,),
        'attn.k_norm.weight': (K,),
        'attn.qkv.weight': (3 * D, D),
        'attn.qkv.bias': (3 * D,),
        'attn.proj.weight': (D, D),
        'attn.proj.bias': (D,),
        'mlp.w12.weight': (2 * F, D),
        'mlp.w12.bias': (2 * F,),
        'mlp.w3.weight': (D, F),
        'mlp.w3.bias': (D,),
        'adaLN_modulation.1.weight': (6 * D, D),
        'adaLN_modulation.1.bias': (6 * D,),
    }
    return tops | {
        f'blocks.{i}.{name}': shape for i in range(sizes['depth']) for name, shape in block.items()
    }


@pytest.mark.parametrize('patch', [16, 32])
@pytest.mark.parametrize('variant', 'BLHG')
def test_published_sizes_are_recognised(variant, patch):
    shapes = official_shapes(VARIANTS[variant], patch, 1000)
    assert read_architecture(shapes) == dict(
        variant=variant,
        image_size=16 * patch,
        channels=3,
        num_classes=1000,
        tables='sincos',
        freeze_tables=True,
        null='mask',
    )


def test_class_start():
    tiny = {name.removeprefix('net.'): x.shape for name, x in weights().items()}
    for wrong in (None, -1, 3):
        with pytest.raises(
            ValueError, match='--class_start must say in which block class tokens start'
        ):
            read_architecture(tiny, wrong)
    published = official_shapes(VARIANTS['B'], 16, 1000)
    assert read_architecture(published, 4)['variant'] == 'B'
    assert size(read_architecture(published, 6)['variant']) == VARIANTS['B'] | {
        'class_start': 6
    }  # what is said is not overruled


def test_one_error_lists_all_faults():
    state = weights()
    state['net.blocks.1.attn.out.bias'] = state.pop('net.blocks.1.attn.proj.bias')
    state['net.in_context_posemb'] = np.zeros((1, 32, 50))
    state['net.x_embedder.proj2.weight'] = np.zeros((48, 12))
    with pytest.raises(ValueError) as error:
        from_official(state, class_start=1)
    faults = [
        'blocks.1.attn.proj.bias is missing',
        'blocks.1.attn.out.bias is unexpected',
        'in_context_posemb is (1, 32, 50), not (1, 32, 48)',
        'x_embedder.proj2.weight is (48, 12), not (48, 12, 1, 1)',
    ]
    assert str(error.value) == f'These are not the weights of an official JiT: {"; ".join(faults)}.'
    with pytest.raises(ValueError, match='conv1.weight is unexpected'):
        from_official({'conv1.weight': np.zeros((64, 3, 7, 7))})
    with pytest.raises(ValueError, match='pos_embed is missing'):
        from_official({})


def test_position_table_must_be_rows_and_columns():
    state = weights()
    rng = np.random.default_rng(0)
    rows, cols = rng.standard_normal((2, 16, 48), np.float32)
    state['net.pos_embed'] = (rows[:, None] + cols).reshape(1, 256, 48)
    target = from_official(state, class_start=1)[1]['target_embed']
    np.testing.assert_allclose(
        target['rows'][:, None] + target['cols'], rows[:, None] + cols, atol=1e-6
    )
    state['net.pos_embed'] = rng.standard_normal((1, 256, 48), np.float32)
    with pytest.raises(
        ValueError, match='pos_embed is not the sum of a table of rows and a table of columns'
    ):
        from_official(state, class_start=1)


def test_no_official_form_without_classes(converted):
    architecture, params = converted
    with pytest.raises(ValueError, match='num_classes=0 has no official form'):
        to_official(architecture | {'num_classes': 0}, params)
    with pytest.raises(UserError, match='config.model.end_time.*; jit-jax export writes'):
        to_official(architecture, params | {'end_out': {}})


def test_half_precision_becomes_float32():
    state = {name: x.astype(np.float16) for name, x in weights().items()}
    architecture, params = from_official(state, class_start=1)
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    assert same(
        to_official(architecture, params), {name: x.astype(np.float32) for name, x in state.items()}
    )


@pytest.fixture
def torch():
    return pytest.importorskip('torch')


def tensors(torch, state: dict, dtype=None) -> dict:
    return {name: torch.from_numpy(x).to(dtype) for name, x in state.items()}


def test_released_layout(torch, tmp_path):
    """Weights, averages, optimiser, epoch and an argparse.Namespace, as the official training
    script saves them.
    """
    state = weights()
    half = {name: x / 2 for name, x in state.items()}
    released = {
        'model': tensors(torch, state),
        'model_ema1': tensors(torch, half),
        'model_ema2': tensors(torch, state, torch.bfloat16),
        'optimizer': {
            'state': {0: {'exp_avg': torch.zeros(3)}},
            'param_groups': [{'lr': 1e-4, 'betas': (0.9, 0.95)}],
        },
        'epoch': 3,
        'args': argparse.Namespace(model='JiT-B/16', img_size=256),
    }
    torch.save(released, tmp_path / 'checkpoint-last.pth')
    read = load_official(tmp_path / 'checkpoint-last.pth')
    assert list(read) == ['params', 'ema1', 'ema2']
    assert same(read['params'], state)
    assert same(read['ema1'], half)
    assert same(
        read['ema2'],
        {name: torch.from_numpy(x).bfloat16().float().numpy() for name, x in state.items()},
    )


def test_bare_state_dict(torch, tmp_path):
    torch.save(tensors(torch, weights()), tmp_path / 'bare.pth')
    read = load_official(tmp_path / 'bare.pth')
    assert list(read) == ['params'] and same(read['params'], weights())


class Anything:
    pass


def test_nothing_else_is_unpickled(torch, tmp_path):
    path = tmp_path / 'odd.pth'
    allowed = set(torch.serialization.get_safe_globals())
    odd = [
        {'model': {}, 'args': Anything()},
        {'model': {'a': 1}},
        {'model': 3},
        torch.zeros(3),
        [1],
    ]
    for content in odd:
        torch.save(content, path)
        with pytest.raises(ValueError, match=r'odd\.pth is damaged, or holds something else'):
            load_official(path)
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_damaged_and_missing_files(torch, tmp_path):
    safetensors = pytest.importorskip('safetensors.numpy')
    torch.save(tensors(torch, weights()), tmp_path / 'whole.pth')
    safetensors.save_file(weights(), tmp_path / 'whole.safetensors')
    for suffix in ('.pth', '.safetensors'):
        whole, cut = tmp_path / f'whole{suffix}', tmp_path / f'cut{suffix}'
        for length in (0, 5, 1000, whole.stat().st_size // 2):
            cut.write_bytes(whole.read_bytes()[:length])
            with pytest.raises(ValueError, match='is damaged, or holds something else'):
                load_official(cut)
        with pytest.raises(UserError, match=f'nowhere{suffix} cannot be read'):
            load_official(tmp_path / f'nowhere{suffix}')


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip('safetensors.numpy')
    safetensors.save_file(weights(), tmp_path / 'a.safetensors')
    read = load_official(tmp_path / 'a.safetensors')
    assert list(read) == ['params'] and same(read['params'], weights())


def test_save_official(torch, tmp_path, converted):
    architecture, params = converted
    save_official(
        tmp_path / 'new' / 'a.pth',
        architecture,
        params,
        {'ema1': jax.tree.map(np.negative, params)},
    )
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['a.pth']
    saved = torch.load(tmp_path / 'new' / 'a.pth', weights_only=True)
    assert list(saved) == ['model', 'model_ema1']
    assert same({name: x.numpy() for name, x in saved['model'].items()}, weights())


@pytest.mark.parametrize('name, module', [('a.pth', 'torch'), ('a.safetensors', 'safetensors')])
def test_without_the_extra(monkeypatch, tmp_path, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_bytes(official.ZIP)
    with pytest.raises(ValueError, match='pip install torch safetensors'):
        load_official(tmp_path / name)


def test_command_there_and_back(torch, tmp_path, capsys):
    states = {
        key: {name: x / 2**i for name, x in weights().items()}
        for i, key in enumerate(official.CHECKPOINT.values())
    }
    torch.save(
        {name: tensors(torch, state) for name, state in states.items()}, tmp_path / 'official.pth'
    )
    main(
        [
            'convert',
            str(tmp_path / 'official.pth'),
            str(tmp_path / 'run'),
            '--class_start',
            '1',
            '--cond',
            'copy',
        ]
    )
    config, params, step = read_weights(tmp_path / 'run', 'ema1')
    assert size(config['model']['variant'])['class_start'] == 1 and step == 0
    assert config['diffusion'] == {
        'predict': 'x',
        'loss': 'v',
        'noise_scale': 32 / 256,
        't_mean': -0.8,
        't_std': 0.8,
        't_eps': 0.05,
        'objective': 'flow',
        'mean_every': 2,
        'uniform': 0.5,
        'guidance': [1.0, 1.0],
        'adaptive': 0.0,
    }
    assert config['sample'] == {
        'sampler': 'heun',
        'steps': 50,
        'guidance': 1.0,
        'interval': [0.1, 1.0],
        't_eps': 0.05,
        'skip_blocks': [],
        'skip_scale': 1.0,
        'skip_interval': [0.0, 1.0],
    }
    jax.tree.map(np.testing.assert_array_equal, params['cond_embed'], params['target_embed'])

    main(['convert', str(tmp_path / 'run'), str(tmp_path / 'back.pth')])
    back = load_official(tmp_path / 'back.pth')
    assert all(same(back[ours], states[theirs]) for ours, theirs in official.CHECKPOINT.items())
    assert back.keys() == official.CHECKPOINT.keys()


def test_command_with_weights_alone(torch, tmp_path):
    """A bare state dict is sampled from its weights; and back it is `model` alone."""
    torch.save(tensors(torch, weights()), tmp_path / 'bare.pth')
    main(['convert', str(tmp_path / 'bare.pth'), str(tmp_path / 'run'), '--class_start', '1'])
    assert json.loads((tmp_path / 'run' / 'config.json').read_text())['ema']['decays'] == []
    main(['convert', str(tmp_path / 'run'), str(tmp_path / 'back.pth')])
    assert list(torch.load(tmp_path / 'back.pth', weights_only=True)) == ['model']


def test_command_errors(torch, tmp_path, capsys):
    source, run, taken = tmp_path / 'official.pth', tmp_path / 'run', tmp_path / 'taken'
    torch.save(tensors(torch, weights()), source)
    taken.mkdir()
    finished = tmp_path / 'finished'
    (finished / 'checkpoints').mkdir(parents=True)
    cases = [
        ([source, run], '--class_start must say'),
        ([source, taken, '--class_start', 1], 'exists and is not overwritten'),
        ([tmp_path / 'nowhere.pth', run], 'nowhere.pth'),
        ([finished, tmp_path / 'back.safetensors'], 'A run folder becomes a .pth'),
        ([taken, tmp_path / 'back.pth'], 'taken holds no weights'),
        ([finished, tmp_path / 'back.pth'], 'finished'),
    ]
    for arguments, sentence in cases:
        with pytest.raises(SystemExit) as end:
            main(['convert', *map(str, arguments)])
        shown = capsys.readouterr()
        assert end.value.code == 1 and shown.out == ''
        assert (
            shown.err.startswith('error: ') and sentence in shown.err and shown.err.count('\n') == 1
        )
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*'))
    assert left == ['finished', 'finished/checkpoints', 'official.pth', 'taken']


@pytest.mark.parametrize(
    'variant, image_size, guidance',
    [('B', 256, 3.0), ('L', 512, 2.5), ('H', 512, 2.3), ('G', 256, 1.0)],
)
def test_published_guidance(variant, image_size, guidance):
    config = convert.run_config(dict(variant=variant, image_size=image_size), [0.9999])
    assert config['sample']['guidance'] == guidance
