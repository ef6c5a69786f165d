"""The published JiT is a special case: weights, numbers and training agree with the official
PyTorch release.

`goldens/jit_tiny_*` were produced by running that release in float32 on two small models, with 8
and with 32 class
tokens: sizes and settings (.json), weights before training (_weights.npz), inputs and results
  (.npz, images NCHW).
"""

import dataclasses
import json
from functools import partial
from pathlib import Path

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import TOKEN_WIDTH
from flax.traverse_util import flatten_dict

from jit_jax.diffusion import generate, objective
from jit_jax.diffusion.objective import Diffusion
from jit_jax.model import layers, official, sharding, sizes
from jit_jax.model.jit import JiT
from jit_jax.model.sizes import size
from jit_jax.training import optimizer, step
from jit_jax.training.ema import EMA
from jit_jax.training.state import start_state

GOLDENS = Path(__file__).parent / 'goldens'


@dataclasses.dataclass
class Golden:
    said: dict  # the .json
    arrays: dict  # the .npz, images NHWC
    architecture: dict
    params: dict
    d: Diffusion

    def model(self, **computation) -> JiT:
        fields = {name: value for name, value in self.architecture.items() if name != 'variant'}
        return JiT(**size(self.architecture['variant']), **fields, **computation)


@pytest.fixture(scope='module', params=['jit_tiny_p4', 'jit_tiny_256tok'])
def golden(request):
    said = json.loads((GOLDENS / f'{request.param}.json').read_text())

    def nhwc(x):
        return np.moveaxis(x, -3, -1) if x.ndim >= 4 else x

    arrays = {name: nhwc(x) for name, x in np.load(GOLDENS / f'{request.param}.npz').items()}
    weights = dict(np.load(GOLDENS / f'{request.param}_weights.npz'))
    architecture, params = official.from_official(weights, class_start=said['in_context_start'])
    return Golden(
        said,
        arrays,
        architecture,
        params,
        Diffusion(noise_scale=said['noise_scale'], t_eps=said['t_eps']),
    )


def gradient(net: JiT, d: Diffusion):
    """(params, x, e, t, label) → ((loss, x̂), gradient), compiled; e is noise as the goldens have
    it, already scaled.
    """

    def loss(params, x, e, t, label):
        z = objective.add_noise(x, e, t)
        x_hat = net.apply({'params': params}, z, t, label=label, train=True)
        return jnp.mean(objective.v_loss(x_hat, x, z, t, d)), x_hat

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.fixture(scope='module')
def default_gradient(golden):
    return gradient(golden.model(), golden.d)


def inputs(golden: Golden):
    return [golden.arrays[name] for name in ('x', 'noise', 't', 'labels')]


def distance(got, want) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.max(np.abs(np.asarray(got) - want)) / np.max(np.abs(want)))


@pytest.mark.parametrize('scan', [True, False])
@pytest.mark.parametrize('dead_slots', ['skip', 'keep'])
def test_prediction_loss_and_gradient(golden, default_gradient, dead_slots, scan):
    net = golden.model(dead_slots=dead_slots, scan=scan)
    f = default_gradient if net == golden.model() else gradient(net, golden.d)
    (loss, x_hat), grads = f(golden.params, *inputs(golden))
    assert distance(x_hat, golden.arrays['x_pred']) < 1e-5
    assert distance(loss, golden.arrays['loss']) < 1e-5
    assert distance(jax.jit(optax.tree.norm)(grads), golden.arrays['grad_norm']) < 1e-4
    # The official model has no condition half and its position table is frozen.
    for name, grad in flatten_dict(grads, sep='/').items():
        assert np.any(grad) != name.startswith(
            ('cond_embed', 'no_condition', 'target_embed/rows', 'target_embed/cols')
        ), name


def halves_to_neighbours(x):
    """A head's channels in the official order, as if conversion had not reordered them for
    `attention.rotate`.
    """
    return x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(x.shape)


def columns_first(x):
    """Rotates the first pairs by the column and the last by the row."""
    return np.roll(x.reshape(*x.shape[:-1], 2, 2, -1), 1, -2).reshape(x.shape)


def on_queries_and_keys(f):
    def change(blocks):
        qkv = {
            name: np.concatenate([f(w[..., :2, :, :]), w[..., 2:, :, :]], -3)
            for name, w in blocks['qkv'].items()
        }
        norms = {name: {'weight': f(blocks[name]['weight'])} for name in ('q_norm', 'k_norm')}
        return {**blocks, 'qkv': qkv, **norms}

    return lambda params: {**params, 'blocks': change(params['blocks'])}


def transposed(embed):
    return {'rows': embed['cols'], 'cols': embed['rows']}


def swapped(w12):
    return {name: np.flip(w, -2) for name, w in w12.items()}


MISTAKES = {
    'rotation pairs halves of official channels': on_queries_and_keys(halves_to_neighbours),
    'rotation by column first': on_queries_and_keys(columns_first),
    'position table transposed': lambda p: {
        **p,
        'target_embed': {**p['target_embed'], **transposed(p['target_embed'])},
    },
    'gate on the wrong half of SwiGLU': lambda p: {
        **p,
        'blocks': {**p['blocks'], 'w12': swapped(p['blocks']['w12'])},
    },
    'scale before shift': lambda p: {
        **p,
        'modulation_bias': p['modulation_bias'][:, [1, 0, 2, 3, 4, 5]],
    },
    'attention and MLP modulation swapped': lambda p: {
        **p,
        'modulation_bias': p['modulation_bias'][:, [3, 4, 5, 0, 1, 2]],
    },
    'class tokens without their positions': lambda p: {
        **p,
        'class_positions': 0 * p['class_positions'],
    },
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_the_golden_would_show(golden, default_gradient, mistake):
    (_, x_hat), _ = default_gradient(MISTAKES[mistake](golden.params), *inputs(golden))
    assert distance(x_hat, golden.arrays['x_pred']) > 1e-4  # ten times what agreement may differ


@pytest.mark.parametrize('sampler', ['euler', 'heun'])
def test_samplers(golden, sampler):
    low, high = golden.said['cfg_interval']
    z = golden.arrays['sample_z0'] / golden.d.noise_scale
    conditioning = {'label': golden.arrays['sample_labels']}
    mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
    steps = golden.said['sampler_steps']
    draw = generate.compiled_sampler(golden.model(), golden.d, sampler, steps, golden.d.t_eps, mesh)
    images = draw(golden.params, z, conditioning, golden.said['cfg'], (low, high))
    assert distance(images, golden.arrays[f'sample_{sampler}']) < 1e-4


@pytest.fixture(scope='module')
def trained(golden, default_gradient):
    """(losses, state) after the golden's AdamW steps, each followed by both averages."""
    adamw, decays = golden.said['adamw'], tuple(golden.said['ema_decay'])
    rate = optax.constant_schedule(adamw['lr'])
    recipe = step.Recipe(
        model=golden.model(),
        diffusion=golden.d,
        condition=None,
        drop=0.0,
        optimizer=optimizer.optimizer(rate, *adamw['betas'], adamw['weight_decay'], muon_rms=0.0),
        learning_rate=rate,
        ema=EMA(decays),
        accumulate=1,
        log_every=1,
    )
    apply = jax.jit(partial(step.apply_gradients, recipe=recipe))
    start = jax.jit(lambda params: start_state(params, recipe.optimizer, decays))
    s, losses = start(golden.params), []
    for batch in zip(*(golden.arrays[f'train_{name}'] for name in ('x', 'noise', 't', 'labels'))):
        (loss, _), grads = default_gradient(s.params, *batch)
        s = apply(s, grads, loss)
        losses.append(loss)
    return losses, s


def test_training_losses(golden, trained):
    losses, _ = trained
    assert distance(np.stack(losses), golden.arrays['train_losses']) < 1e-5


@pytest.mark.parametrize('which', ['after', 'ema1', 'ema2'])
def test_weights_after_training(golden, trained, which):
    _, s = trained
    ours = official.to_official(golden.architecture, s.params if which == 'after' else s.ema[which])
    wanted = {
        name.split('/')[1]: x
        for name, x in golden.arrays.items()
        if name.startswith(f'train_{which}/')
    }
    assert len(wanted) == 5
    for name, want in wanted.items():
        assert distance(ours[name], want) < 1e-4, name
    assert np.array_equal(
        ours['net.pos_embed'],
        official.to_official(golden.architecture, golden.params)['net.pos_embed'],
    )


@pytest.mark.parametrize('which', ['ema1', 'ema2'])
def test_averages_move_as_far(golden, trained, which):
    """Three steps move an average by a millionth; a weight or a start in its place would pass the
    test above, or nearly.
    """
    name = 'net.final_layer.linear.weight'
    start = official.to_official(golden.architecture, golden.params)[name]
    got = official.to_official(golden.architecture, trained[1].ema[which])[name] - start
    want = golden.arrays[f'train_{which}/{name}'] - start
    assert np.vdot(got, want) / np.vdot(want, want) == pytest.approx(1, abs=0.02)


# The published half of the tree at 1000 classes: trainable parameters at patch 16 and at patch 32.
PARAMETERS = {
    'B': (131_123_712, 133_190_400),
    'L': (458_877_664, 461_534_176),
    'H': (952_514_368, 956_055_616),
}


def shapes(variant: str, image_size: int):
    net = JiT(**size(variant), image_size=image_size, num_classes=1000)
    z = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    return flatten_dict(
        jax.eval_shape(net.init, jax.random.key(0), z, jax.ShapeDtypeStruct((1,), jnp.float32))[
            'params'
        ],
        sep='/',
    )


@pytest.mark.parametrize('variant', PARAMETERS)
def test_parameter_count(variant):
    for image_size, count in zip((256, 512), PARAMETERS[variant]):
        tree = shapes(variant, image_size)
        tables = ('target_embed/rows', 'target_embed/cols')
        assert sum(x.size for name, x in tree.items() if name in official.TABLE) == count
        rest = {name for name in tree if name not in official.TABLE}
        assert rest == {
            *tables,
            'no_condition',
            *(name.replace('target', 'cond') for name in tree if name.startswith('target_embed')),
        }


def test_parameter_count_of_g():
    assert sum(
        x.size for name, x in shapes('G', 256).items() if name in official.TABLE
    ) == pytest.approx(2.007e9, rel=1e-3)


@pytest.mark.parametrize('variant, paper', [('B', 25), ('L', 88), ('H', 182), ('G', 383)])
def test_multiply_adds(variant, paper):
    net = JiT(**size(variant), image_size=256, num_classes=1000)
    assert sizes.forward_multiply_adds(net) / 1e9 == pytest.approx(paper, abs=1)


WIDTH, HIDDEN, PIXELS, BOTTLENECK = 32, 85, 2 * 2 * 3, 8  # of the tiny model in conftest.py
XAVIER = {  # both sides of the fused matrix
    'target_embed/pixels/kernel': (PIXELS, BOTTLENECK),
    'target_embed/out/kernel': (BOTTLENECK, WIDTH),
    'cond_embed/pixels/kernel': (PIXELS, BOTTLENECK),
    'cond_embed/out/kernel': (BOTTLENECK, WIDTH),
    'token_embed/out/kernel': (TOKEN_WIDTH, WIDTH),
    'blocks/qkv/kernel': (WIDTH, 3 * WIDTH),
    'blocks/proj/kernel': (WIDTH, WIDTH),
    'blocks/w12/kernel': (WIDTH, 2 * HIDDEN),
    'blocks/w3/kernel': (HIDDEN, WIDTH),
}
NORMAL = ['time_in/kernel', 'time_out/kernel', 'classes', 'class_positions', 'no_condition']
NORMAL += ['token_embed/positions', 'which_reference']
ZERO = ['modulation_kernel', 'final_modulation/kernel', 'final/kernel', 'bias']
ONE = ['norm1/weight', 'norm2/weight', 'q_norm/weight', 'k_norm/weight', 'final_norm/weight']


def test_initial_statistics(fresh):
    for name, x in flatten_dict(fresh, sep='/').items():
        if name in XAVIER:
            limit = (6 / sum(XAVIER[name])) ** 0.5
            assert 0.95 * limit < np.abs(x).max() <= limit, name
            assert np.std(x) == pytest.approx(limit / 3**0.5, rel=0.1), name
        elif name in NORMAL:
            assert np.std(x) == pytest.approx(0.02, rel=0.2), name
            assert np.abs(x).max() > 0.04, name  # not uniform
        elif name.endswith(('rows', 'cols')):
            assert np.array_equal(
                x, layers.sincos_tables(WIDTH)[name.endswith('cols')].astype(np.float32)
            ), name
        else:
            assert name.endswith((*ZERO, *ONE)), name
            assert np.all(x == (1 if name.endswith(tuple(ONE)) else 0)), name
        if name.startswith('blocks/') and name in XAVIER:
            assert not np.any(x[0] == x[1]), f'{name}: all blocks start alike'


def test_patch_embedding_starts_as_a_linear():
    """B at patch 16: the limit is 0.082, from 768 pixels and 128 channels; a convolution's own fan
    would give 0.013.
    """
    assert np.abs(layers.xavier(jax.random.key(0), (768, 128))).max() == pytest.approx(
        0.0818, abs=1e-4
    )


def random_bits(jaxpr) -> list[tuple]:
    """Shapes of all random arrays a program draws, in order."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'random_bits':
            found.append(equation.outvars[0].aval.shape)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            found += random_bits(inner)
    return found


def test_dropout_is_where_the_release_has_it():
    """In the middle half of the blocks, after attention's projection and before the MLP's last
    linear; never on the logits.
    """
    net = JiT(
        image_size=16,
        depth=9,
        width=8,
        heads=1,
        bottleneck=2,
        class_tokens=4,
        class_start=1,
        dropout=0.2,
        num_classes=2,
        scan=False,
    )
    z, t, label = jnp.zeros((2, 16, 16, 3)), jnp.zeros(2), jnp.zeros(2, int)
    params = jax.eval_shape(net.init, jax.random.key(0), z, t)

    def run(train):
        def apply(p, key):
            return net.apply(p, z, t, label=label, train=train, rngs={'dropout': key})

        return jax.make_jaxpr(apply)(params, jax.random.key(1))

    assert random_bits(run(False).jaxpr) == []
    middle = range(9 // 4, 9 // 4 * 3)
    assert random_bits(run(True).jaxpr) == [(2, 260, 8), (2, 260, sizes.hidden_width(8))] * len(
        middle
    )
