"""One step: what it draws, what it computes on any mesh, and what it sums in float32."""

import contextlib
import math
import os
import re
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import REFERENCES, TINY, TOKEN_WIDTH
from jax.experimental.compilation_cache import compilation_cache

from configs import cond
from jit_jax.diffusion import conditions
from jit_jax.diffusion.objective import Diffusion
from jit_jax.model import sharding
from jit_jax.model.jit import JiT
from jit_jax.recipe import build, checks
from jit_jax.training import state, step
from jit_jax.training.ema import EMA

KEY = jax.random.key(7)
random = np.random.default_rng(0)
IMAGES = random.integers(0, 256, (8, 32, 32, 3), np.uint8)
BATCH = {'image': IMAGES, 'label': np.arange(8, dtype=np.int32) % 5}
BATCH |= {
    'tokens': random.integers(0, 256, (8, 16), np.uint8),
    'token_count': np.arange(1, 17, 2, dtype=np.int32),
}


def make_recipe(model, condition=lambda x, batch, key: {}, drop=0.5):
    return step.Recipe(
        model=model,
        diffusion=Diffusion(noise_scale=2.0),
        condition=condition,
        drop=drop,
        optimizer=optax.sgd(0.1),
        learning_rate=optax.constant_schedule(0.1),
        ema=EMA((0.9,)),
        accumulate=1,
        log_every=1,
    )


# What is random about a step


def stub_step(at, key=KEY, drop=0.5):
    """What train_step draws at a step, and the key of its dropout, for a network without a body."""
    seen = {}
    rows = {'image': np.tile(IMAGES, (8, 1, 1, 1)), 'label': np.tile(BATCH['label'], 8)}

    def loss(params, drawn, dropout_key, recipe, frozen):
        seen.update(drawn, dropout=np.asarray(jax.random.key_data(dropout_key)))
        return params['w'] ** 2, {}

    recipe = make_recipe(
        SimpleNamespace(patch=2, num_classes=5),
        condition=conditions.make('class+inpaint', hole=(4, 12), factor=2),
        drop=drop,
    )
    start = state.start_state({'w': jnp.float32(3.0)}, recipe.optimizer, recipe.ema.decays)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, 'batch_loss', loss)
        step.train_step(start.replace(step=jnp.int32(at)), rows, key, recipe)
    t = np.asarray(seen['t'])[:, None, None, None]
    noise = (np.asarray(seen['z']) - t * seen['x']) / (1 - t)
    conditioning = seen['conditioning']
    hole = np.asarray(
        conditions.make('class+inpaint', hole=(4, 12), factor=2)(seen['x'], rows, KEY)['cond_valid']
    )
    assert hole.shape == conditioning['cond_valid'].shape
    lost = np.asarray(conditioning['label']) == 5
    return dict(
        t=t.ravel(),
        noise=noise,
        lost=lost,
        hole=np.asarray(conditioning['cond_valid']),
        dropout=seen['dropout'],
        x=np.asarray(seen['x']),
    )


@pytest.fixture(scope='module')
def drawn():
    return stub_step(0)


def test_the_same_step_of_the_same_seed_draws_the_same(drawn):
    again = stub_step(0)
    for name in drawn:
        np.testing.assert_array_equal(again[name], drawn[name])


@pytest.mark.parametrize('other', [dict(at=1), dict(at=2), dict(at=0, key=jax.random.key(8))])
def test_another_step_or_seed_draws_all_anew(drawn, other):
    changed = stub_step(**other)
    assert not np.isin(changed['t'], drawn['t']).any()
    assert np.abs(np.corrcoef(changed['noise'].ravel(), drawn['noise'].ravel())[0, 1]) < 0.02
    for name in ('lost', 'hole', 'dropout'):
        assert (changed[name] != drawn[name]).any(), name
    np.testing.assert_array_equal(changed['x'], drawn['x'])


def test_rows_are_drawn_apart(drawn):
    assert len(np.unique(drawn['t'])) == len(drawn['t'])
    assert len({row.tobytes() for row in drawn['noise']}) == len(drawn['t'])
    noise = np.asarray(drawn['noise'], np.float64)
    assert noise.std() == pytest.approx(2, rel=0.02) and abs(noise.mean()) < 0.02  # the noise scale


def test_a_lost_row_loses_both_label_and_patches(drawn):
    assert 12 < drawn['lost'].sum() < 52  # of 64, at 0.5
    np.testing.assert_array_equal(drawn['hole'].any(1), ~drawn['lost'])


def test_each_thing_that_is_drawn_has_a_key_of_its_own(monkeypatch):
    """Or what is drawn would hang together, such as the noise of some pixels with the times."""
    keys = []

    def noting(function, at: int):
        def noted(*args, **kwargs):
            keys.append(args[at])
            return function(*args, **kwargs)

        return noted

    def loss(params, drawn, dropout_key, recipe, frozen):
        keys.append(dropout_key)
        return params['w'] ** 2, {}

    monkeypatch.setattr(step, 'batch_loss', loss)
    monkeypatch.setattr(jax.random, 'normal', noting(jax.random.normal, 0))  # times and noise
    monkeypatch.setattr(conditions, 'drop', noting(conditions.drop, 1))
    condition = noting(conditions.make('grayscale'), 2)
    recipe = make_recipe(SimpleNamespace(patch=2, num_classes=5), condition)
    start = state.start_state({'w': jnp.float32(3.0)}, recipe.optimizer, recipe.ema.decays)
    step.train_step(start, BATCH, KEY, recipe)
    assert len(keys) == 5
    assert len({jax.random.key_data(key).tobytes() for key in keys}) == 5


def test_nothing_is_lost_without_drop():
    kept = stub_step(0, drop=0.0)
    assert not kept['lost'].any() and kept['hole'].any(1).all()


def test_draw_is_the_equations():
    drawn = step.draw(BATCH, KEY, make_recipe(None))
    np.testing.assert_allclose(drawn['x'], IMAGES / 127.5 - 1, atol=1e-6)
    assert drawn['conditioning'] == {} and drawn['z'].dtype == drawn['x'].dtype == jnp.float32


def test_batch_loss_is_of_what_the_objective_names():
    """A network that says ε under a loss of x."""

    def apply(variables, z, t, train, rngs):
        return variables['params'] * z

    recipe = make_recipe(SimpleNamespace(apply=apply, patch=2, num_classes=5), drop=0.0)
    objective = replace(recipe.diffusion, predict='eps', loss='x')
    drawn = step.draw(BATCH, KEY, recipe)
    x, z, t = (np.asarray(drawn[name], np.float64) for name in ('x', 'z', 't'))
    t = t[:, None, None, None]
    x_hat = (z - (1 - t) * 0.5 * z) / np.maximum(t, 0.05)
    found, _ = step.batch_loss(0.5, drawn, KEY, replace(recipe, diffusion=objective))
    assert float(found) == pytest.approx(np.mean((x_hat - x) ** 2), rel=1e-4)


def test_batch_loss_is_the_mean_v_loss():
    def apply(variables, z, t, train, rngs):
        assert train and rngs == {'dropout': KEY}  # or there would be no dropout
        return variables['params'] * z

    recipe = make_recipe(SimpleNamespace(apply=apply, patch=2, num_classes=5), drop=0.0)
    drawn = step.draw(BATCH, KEY, recipe)
    x, z, t = (np.asarray(drawn[name], np.float64) for name in ('x', 'z', 't'))
    share = np.maximum(1 - t, 0.05)[:, None, None, None]
    expected = np.mean(((0.5 * z - x) / share) ** 2)
    found, logged = step.batch_loss(0.5, drawn, KEY, recipe)
    assert float(found) == pytest.approx(expected, rel=1e-5) and logged == {}


# A run on one device equals a run on eight

STEPS = 3
LR = 1e-3
MESHES = {
    'one': ((1, 1, 1), 1),
    'data': ((8, 1, 1), 1),
    'all': ((2, 2, 2), 1),
    'fsdp': ((1, 4, 1), 1),
    'tensor': ((1, 1, 2), 1),
}
MESHES['in parts'] = ((2, 1, 1), 2)


def tiny_config(shape):
    config = cond.get_config('digits')
    config.model.variant, config.model.num_classes, config.mesh = TINY, 5, shape
    config.model.token_width, config.model.vocabulary = TOKEN_WIDTH, 256
    config.model.reference_images = REFERENCES
    config.condition.kind, config.condition.tokens = 'super_resolution+edges+text|class', 16
    config.compute.scan = True
    config.condition.drop = 0.4
    config.optimizer.base_lr, config.optimizer.warmup = LR * 32, 2
    config.optimizer.schedule, config.optimizer.muon_rms = 'constant', 0.0
    config.log_every, config.ema.decays = 2, (0.9, 0.5)
    return config


def make_programs(config):
    checks.check(config)
    return build.programs(config, build.mesh(config, jax.devices()[: math.prod(config.mesh)]))


def make_run(shape, accumulate=1):
    config = tiny_config(shape)
    config.accumulate = accumulate
    config.ema.memory = 'host' if accumulate > 1 else 'device'  # both for who lacks memory
    return make_programs(config)


@pytest.fixture(scope='module')
def runs():
    """Mesh → its run, built once."""
    return cache(lambda name: make_run(*MESHES[name]))


@pytest.fixture(scope='module')
def params(params):
    """Those of the tiny model beside embeddings of 256 tokens."""
    table = np.random.default_rng(3).standard_normal((256, TOKEN_WIDTH)).astype(np.float32)
    return params | {'token_embed': params['token_embed'] | {'table': table}}


@pytest.fixture(scope='module')
def trained(runs, params):
    """Mesh → (states before and after each of three steps, metrics of each), trained once."""
    found = {}

    def train(name):
        if name not in found:
            run = runs(name)
            live = run.start(params)
            states, metrics = [jax.tree.map(np.asarray, live)], []
            batch = sharding.to_device(BATCH, run.mesh)
            for _ in range(STEPS):
                live, numbers = run.step(live, batch, KEY)
                assert jax.tree.map(lambda x: x.sharding, live) == jax.tree.map(
                    lambda s: s.sharding, run.like
                )
                states.append(jax.tree.map(np.asarray, live))
                metrics.append({n: float(v) for n, v in numbers.items()})
            found[name] = states, metrics
        return found[name]

    return train


def test_the_host_keeps_the_averages_where_asked(runs):
    def kinds(tree):
        return {x.sharding.memory_kind for x in jax.tree.leaves(tree)}

    assert kinds(runs('in parts').like.ema) == {'pinned_host'} != kinds(runs('one').like.ema)
    assert 'pinned_host' not in kinds(runs('in parts').like.replace(ema={}))


@pytest.mark.parametrize('name', [name for name in MESHES if name != 'one'])
def test_a_run_on_any_mesh_and_in_parts_is_the_run_on_one_device(trained, name):
    (states, metrics), (one_states, one_metrics) = trained(name), trained('one')
    for ours, theirs in zip(metrics, one_metrics):
        assert ours == pytest.approx(theirs, rel=2e-5)

    def close(path, a, b):  # of the first step, whose gradients are of equal parameters
        assert np.abs(a - b).max(initial=0) <= 2e-5 * np.abs(b).max(initial=1e-6), (
            jax.tree_util.keystr(path)
        )

    jax.tree_util.tree_map_with_path(close, states[1].opt, one_states[1].opt)

    def leaves(tree):
        return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])

    moved = np.abs(leaves(one_states[-1].params) - leaves(one_states[0].params))
    apart = np.abs(leaves(states[-1].params) - leaves(one_states[-1].params))
    assert np.median(moved) > 0.3 * LR
    assert (
        np.mean(apart > 0.01 * LR) < 1e-3
    )  # Adam turns a gradient near zero into ±1 by its rounding


def test_steps_count_and_metrics_are_of_their_step(trained):
    states, metrics = trained('one')
    assert [int(s.step) for s in states] == [0, 1, 2, 3]
    assert [m['learning_rate'] for m in metrics] == pytest.approx([0, LR / 2, LR], rel=1e-5)
    assert all(
        m.keys() == {'loss', 'learning_rate', 'grad_norm'} and m['grad_norm'] > 0 for m in metrics
    )
    assert [float(s.loss_mean) for s in states[1:]] == pytest.approx([m['loss'] for m in metrics])


def test_the_rate_at_step_0_is_0_and_then_parameters_move(trained):
    states, _ = trained('one')
    jax.tree.map(np.testing.assert_array_equal, states[1].params, states[0].params)
    assert (
        states[2].params['blocks']['qkv']['kernel'] != states[1].params['blocks']['qkv']['kernel']
    ).mean() > 0.99


def test_averages_follow_by_hand(trained):
    states, _ = trained('one')
    for name, decay in (('ema1', 0.9), ('ema2', 0.5)):
        average = states[0].params['final']['kernel'].astype(np.float64)
        for i, s in enumerate(states[1:]):
            warm = min(decay, (1 + i) / (10 + i))
            average = warm * average + (1 - warm) * s.params['final']['kernel']
            np.testing.assert_allclose(
                s.ema[name]['final']['kernel'], average, rtol=1e-5, atol=1e-7
            )
        assert np.abs(average - states[-1].params['final']['kernel']).max() > 0.05 * LR


def test_frozen_tables_stay_and_condition_tables_move(trained):
    states, _ = trained('one')
    first, last = states[0].params, states[-1].params
    for table in ('rows', 'cols'):
        np.testing.assert_array_equal(last['target_embed'][table], first['target_embed'][table])
        moved = last['cond_embed'][table] != first['cond_embed'][table]
        assert moved[:8].all() and not moved[8:].any()  # a condition of 8×8 patches


def test_training_is_deterministic_and_gives_its_old_state_away(runs, trained, params):
    run = runs('one')
    live = run.start(params)
    for _ in range(STEPS):
        before, (live, _) = live, run.step(live, sharding.to_device(BATCH, run.mesh), KEY)
        assert all(
            leaf.is_deleted() for leaf in jax.tree.leaves((before.params, before.ema, before.opt))
        )
    jax.tree.map(
        np.testing.assert_array_equal, jax.tree.map(np.asarray, live), trained('one')[0][-1]
    )


def test_every_mesh_starts_from_the_same_weights(runs, fresh):
    start = runs('all').init(jax.random.key(0))
    table = start.params['token_embed'].pop('table')
    assert np.std(table) == pytest.approx(0.02, rel=0.1)
    jax.tree.map(np.testing.assert_array_equal, start.params, fresh)
    kernel = start.params['blocks']['qkv']['kernel']
    assert {shard.data.shape for shard in kernel.addressable_shards} == {
        (2, 16, 3, 1, 16)
    }  # really split


# Without a condition, the step is that of a network that has no condition slots


class WithoutConditionSlots(JiT):
    """The network with nothing that a condition could enter by."""

    def param(self, name, *args, **kwargs):
        return None if name == 'no_condition' else super().param(name, *args, **kwargs)


FOR_CONDITIONS = {'cond_embed', 'token_embed', 'no_condition', 'classes', 'class_positions'}


def steps_without_condition(recipe, params) -> dict:
    """The state after three steps and the last one's metrics: arrays by path."""

    # XLA's own way to make kernels rounds alike in both programs; that of the other tests does not.
    usual = {'xla_cpu_use_fusion_emitters': True} if os.environ['XLA_FLAGS'] else None

    @partial(jax.jit, compiler_options=usual)
    def program(live):
        return step.train_step(live, BATCH, KEY, recipe)

    live = state.start_state(params, recipe.optimizer, recipe.ema.decays)
    for _ in range(3):
        live, metrics = program(live)
    leaves = jax.tree.leaves_with_path(jax.device_get((live, metrics)))
    return {sharding.path_name(path): leaf for path, leaf in leaves}


def of_conditions(path: str) -> bool:
    """Whether only a condition uses the parameter of this path, or what belongs to it."""
    return bool(FOR_CONDITIONS & set(path.split('/')))


def test_without_a_condition_the_step_is_that_of_a_network_without_condition_slots(params):
    """Bit for bit: parameters, averages, both moments and what is logged.

    And what only a condition uses has moments of zero, so it never had a gradient, and stays as it
    is (without weight decay): padding teaches nothing.
    """
    config = tiny_config((1, 1, 1))
    config.condition.kind, config.optimizer.muon_rms = 'none', 0.8  # Muon, and Adam beside it
    recipe = build.step_recipe(config, jax.devices()[0])
    sizes = {name: getattr(recipe.model, name) for name in JiT.__annotations__}
    plain = WithoutConditionSlots(**sizes | {'num_classes': 0, 'token_width': 0})
    target = {name: tree for name, tree in params.items() if name not in FOR_CONDITIONS}
    assert FOR_CONDITIONS <= params.keys() and len(target) == len(params) - len(FOR_CONDITIONS)

    unified = steps_without_condition(recipe, params)
    expected = steps_without_condition(replace(recipe, model=plain), target)
    assert expected.keys() == {path for path in unified if not of_conditions(path)}
    for path, leaf in expected.items():
        assert leaf.tobytes() == unified[path].tobytes(), path
    start = state.start_state(params, recipe.optimizer, recipe.ema.decays)
    for path, leaf in jax.tree.leaves_with_path(start):
        name = sharding.path_name(path)
        if of_conditions(name):  # moments start at zero
            np.testing.assert_array_equal(leaf, unified[f'0/{name}'], name)


# Gradients of a bfloat16 model

ROWS = 56  # of a batch: 7 divides what has rows, and no dimension of a parameter


@contextlib.contextmanager
def without_cache():
    before = jax.config.jax_enable_compilation_cache
    jax.config.update('jax_enable_compilation_cache', False)
    compilation_cache.reset_cache()  # JAX asks for the setting once
    yield
    jax.config.update('jax_enable_compilation_cache', before)
    compilation_cache.reset_cache()


def reductions(shape, scan, folder):
    """(dtype, dimensions) of every sum over devices in the step of a bfloat16 model.

    As the partitioner puts them there: afterwards the compiler of a CPU, which has no bfloat16
    units, would call them all float32.
    """
    config = tiny_config(shape)
    config.compute.dtype, config.compute.scan, config.batch_size = 'bfloat16', scan, ROWS
    run = make_programs(config)
    batch = {n: jax.ShapeDtypeStruct((ROWS, *x.shape[1:]), x.dtype) for n, x in BATCH.items()}
    lowered = run.step.lower(run.like, batch, KEY)
    with without_cache():  # or nothing would be compiled, nor written
        lowered.compile({'xla_dump_to': str(folder), 'xla_dump_hlo_pass_re': 'spmd-partitioning'})
    (partitioned,) = folder.glob('*after_spmd-partitioning*.txt')
    results = re.findall(
        r' = (.+?) (?:all-reduce|reduce-scatter)(?:-start)?\(', partitioned.read_text()
    )
    found = []
    for result in results:
        for dtype, dims in re.findall(r'\b(bf16|f32)\[([\d,]*)\]', result):
            found.append((dtype, tuple(int(n) for n in dims.split(',') if n)))
    return found


@pytest.mark.parametrize('shape, scan', [((8, 1, 1), False), ((1, 8, 1), True), ((2, 2, 2), False)])
def test_gradients_are_summed_over_devices_in_float32(shape, scan, tmp_path):
    """Only activations that heads and hidden widths share (tensor) may be summed in bfloat16."""
    found = reductions(shape, scan, tmp_path)
    assert sum(dtype == 'f32' and 32 in dims for dtype, dims in found) > 10  # of kernels
    for dtype, dims in found:
        activation = any(n % 7 == 0 for n in dims)
        assert dtype == 'f32' or (shape[2] > 1 and activation), (dtype, dims)


@pytest.mark.parametrize('accumulate', [1, 2])
def test_gradients_and_their_sum_over_parts_are_float32(accumulate):
    config = tiny_config((1, 1, 1))
    config.compute.dtype, config.accumulate = 'bfloat16', accumulate
    run = make_programs(config)

    def whole(params, batch, key):
        return step.loss_and_gradients(params, step.draw(batch, key, run.recipe), key, run.recipe)

    results = jax.eval_shape(whole, run.like.params, BATCH, KEY)  # a sum has its parts' dtype
    assert {x.dtype for x in jax.tree.leaves(results)} == {jnp.dtype('float32')}
