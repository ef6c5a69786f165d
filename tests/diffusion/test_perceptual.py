"""The perceptual loss: its value, its gradient, and a step with it on one device and on a mesh."""

import contextlib
import itertools
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from conftest import TINY, perturb
from shell import config_of, lines
from shell import weights as weights_of

from jit_jax import loop
from jit_jax.commands import compile_check, lowering
from jit_jax.diffusion import perceptual
from jit_jax.diffusion.objective import Diffusion
from jit_jax.diffusion.perceptual import Perceptual
from jit_jax.errors import UserError
from jit_jax.evaluation.preview import Preview
from jit_jax.hardware import topologies
from jit_jax.hardware.analysis import analyse
from jit_jax.model import lpips, sharding
from jit_jax.recipe import build, checks
from jit_jax.training import step
from jit_jax.training.ema import EMA

random = np.random.default_rng(0)
X, MADE = random.integers(0, 256, (2, 4, 32, 32, 3), np.uint8)
T = np.array([0.1, 0.3, 0.5, 0.9], np.float32)
NEAR = np.array([False, False, True, True])  # T > 0.3
WEIGHT = 0.5
SMALL = TINY.replace('depth=2', 'depth=1').replace('class_start=1', 'class_start=0')
ONE_DEVICE = sharding.make_mesh((1, 1, 1), jax.devices()[:1])


def as_float(images):
    return images.astype(np.float32) / 127.5 - 1


@pytest.fixture(scope='module', autouse=True)
def thin():
    """LPIPS' layers with few channels each, so that its products take no time."""
    layers, into = [], 3
    for layer, out in zip(lpips._LAYERS, (4, 6, 8, 6, 5), strict=True):
        layers.append(replace(layer, shape=(out, into, *layer.shape[2:])))
        into = out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lpips, '_LAYERS', tuple(layers))
        yield


@pytest.fixture(scope='module')
def lpips_file(thin, tmp_path_factory):
    """A file of random weights."""
    tensors = {}
    for i, layer in enumerate(lpips._LAYERS):
        out, *into = layer.shape
        kernel = random.standard_normal(layer.shape) * np.sqrt(2 / np.prod(into))
        tensors[f'net.{layer.name}.weight'] = kernel
        tensors[f'net.{layer.name}.bias'] = random.standard_normal(out) * 0.1
        tensors[f'lin{i}.model.1.weight'] = random.random((1, out, 1, 1))
    path = tmp_path_factory.mktemp('weights') / 'lpips.npz'
    np.savez(path, **tensors)
    return str(path)


@pytest.fixture(scope='module')
def weights(lpips_file):
    return lpips.load_weights(lpips_file)


@pytest.fixture(scope='module')
def value_and_gradient():
    """(x̂, weights, x, t) → ((sum of rows, LPIPS of rows), its gradient in x̂), jitted."""

    def total(x_hat, weights, x, t):
        rows = perceptual.distance(weights, x_hat, x, t, Perceptual(1.0, side=32))
        return rows.sum(), rows

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def test_it_is_what_an_evaluation_says_of_rows_with_little_noise(weights, value_and_gradient):
    (_, rows), gradient = value_and_gradient(as_float(MADE), weights, as_float(X), T)
    expected = np.asarray(lpips.distance(weights, MADE, X))
    assert (expected > 0.01).all()
    np.testing.assert_allclose(rows, np.where(NEAR, expected, 0), rtol=1e-5)
    np.testing.assert_array_equal((np.asarray(gradient) != 0).any((1, 2, 3)), NEAR)


def test_its_products_are_those_of_the_formula(weights, value_and_gradient):
    """But for places of the kernels beyond the image, which are in the formula alone."""
    x = as_float(X)
    text = value_and_gradient.lower(x, weights, x, T).compile().as_text()
    formula = len(X) * perceptual.flops(32, Perceptual(1.0, side=32))
    assert 0.8 * formula < analyse(text, None).operations < formula
    assert perceptual.flops(32, Perceptual(1.0, side=64)) > 3 * formula / len(X)
    assert perceptual.flops(32, Perceptual(0.0)) == 0


def test_the_gradient_is_finite_where_images_are_equal_and_where_nothing_is_live(
    weights, value_and_gradient
):
    x = as_float(X)
    for found in jax.tree.leaves(value_and_gradient(x, weights, x, T)):
        np.testing.assert_allclose(found, 0, atol=1e-6)  # two ways to round the same
    dead = jax.tree.map(np.copy, weights)
    for layer in dead.values():
        layer['bias'] -= 100
    for found in jax.tree.leaves(value_and_gradient(as_float(MADE), dead, x, T)):
        np.testing.assert_array_equal(found, 0)


def test_small_images_are_enlarged_and_gray_ones_become_rgb(weights):
    gray = as_float(X[..., :1]), as_float(MADE[..., :1])
    large = [jax.image.resize(x.repeat(3, -1), (4, 40, 40, 3), 'linear') for x in gray]
    expected = lpips.between(weights, *large, jax.lax.Precision.HIGH)
    rows = perceptual.distance(weights, *gray, T, Perceptual(1.0, after=0.0, side=40))
    np.testing.assert_allclose(rows, expected, rtol=1e-5)


def stub_recipe():
    """Of a network that says what its one parameter makes of z."""

    def apply(variables, z, t, **conditioning):
        return variables['params'] * z

    return step.Recipe(
        model=SimpleNamespace(apply=apply, patch=2, num_classes=5),
        diffusion=Diffusion(noise_scale=1.0),
        condition=lambda x, batch, key: {},
        drop=0.0,
        optimizer=optax.sgd(0.1),
        learning_rate=optax.constant_schedule(0.1),
        ema=EMA((0.9,)),
        accumulate=1,
        log_every=1,
    )


@pytest.mark.parametrize('truth', [None, 0.5])
def test_the_loss_is_that_of_v_and_a_weight_times_lpips(weights, truth):
    """Of the network's x̂ against the image, also where MeanFlow regresses it on something else."""
    recipe = stub_recipe()
    z = as_float(MADE)
    drawn = {'x': as_float(X), 'z': z, 't': T, 'conditioning': {}}
    if truth is not None:
        drawn['truth'] = truth * drawn['x']
    key = jax.random.key(0)
    plain, logged = step.batch_loss(0.5, drawn, key, recipe)
    assert logged == {}
    added = replace(recipe, perceptual=Perceptual(WEIGHT, side=32))
    loss, logged = step.batch_loss(0.5, drawn, key, added, weights)
    rows = lpips.between(weights, 0.5 * z, drawn['x'], jax.lax.Precision.HIGH)
    assert float(logged['perceptual']) == pytest.approx(float((rows * NEAR).mean()), rel=1e-4)
    expected = plain + WEIGHT * logged['perceptual']
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


# In a run


def config_with(path, **changes):
    config = config_of()
    config.model.variant, config.mesh, config.steps = SMALL, (1, 1, 1), 4
    config.checkpoint.every, config.log_every, config.optimizer.base_lr = 4, 1, 0.03
    config.perceptual.weight, config.perceptual.side = WEIGHT, 32
    config.perceptual.lpips = path
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope='module')
def run(lpips_file, env):
    """A run with the loss, on one device."""
    config = config_with(lpips_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TFDS_DATA_DIR', env['TFDS_DATA_DIR'])
        patch.setattr(
            build, 'mesh', lambda config: sharding.make_mesh((1, 1, 1), jax.devices()[:1])
        )
        return build.run(config)


@pytest.fixture(scope='module')
def params(run):
    return perturb(jax.device_get(run.init(jax.random.key(0)).params))


def one_step(run, params, frozen):
    """The state and the numbers of the first step, as numpy."""
    batch = {'image': np.concatenate([X, MADE]), 'label': np.zeros(8, np.int32)}
    batch = sharding.to_device(batch, run.mesh)
    frozen = sharding.everywhere(frozen, run.mesh)
    state, numbers = run.step(run.start(params), batch, jax.random.key(3), *frozen)
    return jax.device_get(state), {name: float(value) for name, value in numbers.items()}


def test_a_mesh_and_parts_compute_what_one_device_does_and_the_report_counts_it(
    run, params, lpips_file
):
    config = config_with(lpips_file, mesh=(2, 1, 1), accumulate=2)
    checks.check(config)
    split = build.programs(config, sharding.make_mesh(config.mesh, jax.devices()[:2]))
    (one, numbers), (several, others) = (one_step(r, params, run.frozen) for r in (run, split))
    assert numbers['perceptual'] > 0.01 and others == pytest.approx(numbers, rel=2e-5)
    for a, b in zip(*(jax.tree.leaves(s.opt) for s in (several, one)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max(initial=1e-6))

    report = lowering.compile_step(split, topologies.target(None))
    assert report.memory['LPIPS'] == sum(4 * x.size for x in jax.tree.leaves(run.frozen))
    added = perceptual.flops(32, run.recipe.perceptual)
    assert report.formula == 8 * (3 * split.forward_flops + added)
    assert '| of it, the perceptual loss |' in compile_check.page(
        split, topologies.target(None), report
    )


def test_its_network_is_an_argument_of_the_step_and_no_part_of_the_state(run):
    tree = build.state_shapes(replace(run.recipe, perceptual=Perceptual()))
    assert jax.tree.structure(tree) == jax.tree.structure(run.like)
    text = lowered(run.config)
    count = len(jax.tree.leaves((run.like, run.frozen))) + 2  # images and key
    assert count == arguments(text) and len(text) < 1e6  # without its millions of numbers


def lowered(config) -> str:
    programs = build.programs(config, ONE_DEVICE)
    batch, key = lowering.shapes_of_a_batch(config), lowering.shape_of_a_key()
    return programs.step.lower(programs.like, batch, key, *programs.frozen).as_text()


def arguments(text: str) -> int:
    """Of the main function of a lowered program."""
    (main,) = (line for line in text.splitlines() if 'func.func public @main' in line)
    return main.count('%arg')


def test_without_a_weight_nothing_of_it_is_in_the_step(run):
    off = config_with('', **{'perceptual.weight': 0.0})
    other = config_with('gone.npz', **{'perceptual.weight': 0.0, 'perceptual.after': 0.7})
    text = lowered(off)
    assert text == lowered(other) and 'convolution' not in text
    assert arguments(text) == len(jax.tree.leaves(run.like)) + 2
    assert build.programs(off, run.mesh).flops == 3 * run.forward_flops


def test_a_run_with_it_goes_on_bit_for_bit(run, tmp_path, monkeypatch):
    def stop_after_2(step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Preview, 'draw', lambda *_: None)
    monkeypatch.setattr(loop.page, 'try_write', lambda *_: '')
    for follow in (stop_after_2, None):
        loop.train(run, str(tmp_path), follow=follow)
    key, expected = jax.random.key(run.config.seed), []
    state, frozen = run.init(key), sharding.everywhere(run.frozen, run.mesh)
    with contextlib.closing(loop.open_batches(run, 0)) as batches:
        for batch in itertools.islice(batches, 4):
            rows = sharding.to_device(batch, run.mesh)
            state, numbers = run.step(state, rows, key, *frozen)
            expected.append(float(numbers['perceptual']))
    found, _ = weights_of(tmp_path, 'params')
    for leaf, other in zip(found, jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(leaf, other)
    assert [line['perceptual'] for line in lines(tmp_path)] == expected and max(expected) > 0


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'perceptual.lpips': ''}, 'name their file with config.perceptual.lpips'),
        ({'perceptual.lpips': 'gone.npz'}, 'There are no LPIPS weights at gone.npz'),
        ({'perceptual.lpips': __file__}, 'LPIPS weights are a .pth or an .npz file'),
        ({'model.channels': 2}, 'gray and RGB images, and config.model.channels is 2'),
        (
            {'model.image_size': 16, 'perceptual.side': 0},
            'config.perceptual.side must be at least 32 for images of 16 pixels; got 0',
        ),
    ],
)
def test_what_cannot_be_computed_is_refused_before_anything_is_read(changes, words, lpips_file):
    with pytest.raises(UserError, match=words):
        build.run(config_with(lpips_file, **changes))
