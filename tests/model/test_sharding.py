import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from jit_jax.errors import UserError
from jit_jax.model import sharding
from jit_jax.model.jit import JiT
from jit_jax.model.sharding import check_batch, make_mesh, path_name, shardings, spec
from jit_jax.model.sizes import VARIANTS, hidden_width, size
from jit_jax.training import state
from jit_jax.training.optimizer import optimizer as make_optimizer

BIG = 1_000_000


def mesh(*shape):
    return make_mesh(shape, jax.devices()[: math.prod(shape)])


def leaves(variant, muon_rms=0.0):
    """Every array of a whole train state, by path; nothing is computed."""
    tokens = {'token_width': 64, 'vocabulary': 256, 'reference_images': 16}
    model = JiT(**size(variant), image_size=256, num_classes=1000, **tokens)
    rate = optax.constant_schedule(1e-4)
    optimizer = make_optimizer(rate, 0.9, 0.95, 0.0, muon_rms)
    return jax.eval_shape(
        lambda key: state.init_state(model, key, optimizer, (0.9999, 0.9996)), jax.random.key(0)
    )


@pytest.fixture(scope='module')
def states():
    return {variant: leaves(variant) for variant in VARIANTS} | {
        'digits with Muon': leaves('digits', 0.2)
    }


def matches(path):
    return [rule for rule, _ in sharding.RULES if re.search(rf'(^|/){rule}$', path)]


def test_one_rule_matches_each_array_and_no_rule_is_idle(states):
    used = set()
    for tree in states.values():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if leaf.shape:
                found = matches(path_name(path))
                assert len(found) == 1, (path_name(path), found)
                used |= set(found)
                assert len(spec(path_name(path), leaf.shape)) <= len(leaf.shape)
            else:
                assert spec(path_name(path), ()) == P()
    assert used == {rule for rule, _ in sharding.RULES}


@pytest.mark.parametrize(
    'path', ['blocks/new/kernel', 'qkv/kernel', 'finale/kernel', 'target_embed/pixels', 'x']
)
def test_a_path_without_a_rule_is_refused(path):
    with pytest.raises(ValueError, match=f'0 rules.*{path}'):
        spec(path, (8, 8))


def test_moments_and_averages_lie_where_their_parameters_do(states):
    places = shardings(states['B'], mesh(2, 2, 2))
    by_path = {path_name(p): s.spec for p, s in jax.tree_util.tree_leaves_with_path(places)}
    params = {
        path.removeprefix('params/'): s for path, s in by_path.items() if path.startswith('params/')
    }
    copies = 0
    for path, place in by_path.items():
        for name, expected in params.items():
            if path.endswith('/' + name):
                assert place == expected
                copies += 1
    assert copies == 5 * len(params)  # parameters, two averages, two moments


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('shape', [(1, 8, 1), (1, 4, 2), (2, 2, 2), (1, 1, 8)])
def test_big_arrays_are_split(states, variant, shape):
    over = mesh(*shape)
    places = shardings(states[variant].params, over)

    def check(path, leaf, place):
        name, axes = path_name(path), [axis for axis in place.spec if axis]
        if leaf.size >= BIG:
            assert shape[1] == 1 or 'fsdp' in axes, name
            if name.startswith(
                ('blocks', 'modulation')
            ):  # a hidden width of 2730 or 3413, or 12 heads, may not divide
                sizes = size(variant)
                split = (
                    sizes['heads']
                    if 'qkv' in name
                    else hidden_width(sizes['width'])
                    if re.search('w12|w3', name)
                    else sizes['width']
                )
                assert ('tensor' in axes) == (split % shape[2] == 0), name
        part = place.shard_shape(leaf.shape)  # raises where a dimension does not divide
        return math.prod(part), leaf.size

    counts = [
        *jax.tree.leaves(
            jax.tree_util.tree_map_with_path(check, states[variant].params, places),
            is_leaf=lambda x: isinstance(x, tuple),
        )
    ]
    if variant in 'BLHG' and shape[2] == 1:
        assert sum(part for part, _ in counts) < 1.02 / shape[1] * sum(whole for _, whole in counts)


def test_the_layer_axis_is_never_split(states):
    for path, leaf in jax.tree_util.tree_leaves_with_path(states['G'].params):
        if re.search('blocks|modulation_', path_name(path)) and 'final' not in path_name(path):
            assert leaf.shape[0] == 40 and (spec(path_name(path), leaf.shape) or (None,))[0] is None


entries = st.one_of(st.just(-1), st.integers(-2, 9))


@given(st.lists(entries, min_size=2, max_size=4), st.integers(1, 8))
def test_a_mesh_fits_or_proposes_one_that_does(shape, count):
    devices = jax.devices()[:count]
    try:
        made = make_mesh(tuple(shape), devices)
    except ValueError as error:
        text = str(error)
        assert 'config.mesh' in text and '\n' not in text and text.endswith('.')
        fits = len(shape) == 3 and all(n >= 1 for n in shape) and math.prod(shape) == count
        assert not fits
        if len(shape) == 3 and shape.count(-1) < 2 and all(n >= 1 or n == -1 for n in shape):
            proposed = tuple(int(n) for n in re.findall(r'\d+', text.split('try')[1]))
            assert make_mesh(proposed, devices).size == count
    else:
        assert made.size == count and made.axis_names == ('data', 'fsdp', 'tensor')
        assert all(given == n or given == -1 for given, n in zip(shape, made.devices.shape))


@given(
    st.integers(-3, 40),
    st.sampled_from([(1, 1, 1), (2, 2, 2), (1, 8, 1), (3, 1, 2)]),
    st.integers(1, 3),
)
def test_a_batch_splits_or_two_are_proposed_that_do(batch_size, shape, accumulate):
    over, unit = mesh(*shape), shape[0] * shape[1] * accumulate
    if batch_size >= 1 and batch_size % unit == 0:
        check_batch(batch_size, over, accumulate)
        return
    with pytest.raises(ValueError, match=r'config\.batch_size') as error:
        check_batch(batch_size, over, accumulate)
    assert '\n' not in str(error.value)
    low, high = (int(n) for n in re.findall(r'\d+', str(error.value).split('try')[1]))
    check_batch(low, over, accumulate)
    check_batch(high, over, accumulate)
    assert high - low == unit and (batch_size < low or low < batch_size < high)  # the nearest


@pytest.mark.parametrize('shape', [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_batches_arrive_whole_and_split_over_data_and_fsdp(shape):
    rows = {'image': np.arange(8 * 6, dtype=np.uint8).reshape(8, 6), 'label': np.arange(8)}
    for put in (sharding.to_device, sharding.spread):
        batch = put(rows, mesh(*shape))
        for name in rows:
            np.testing.assert_array_equal(batch[name], rows[name])
            assert {s.data.shape[0] for s in batch[name].addressable_shards} == {
                8 // (shape[0] * shape[1])
            }


def test_replicated_is_everywhere():
    over = mesh(2, 2, 2)
    everywhere = jax.device_put(jnp.arange(3), sharding.replicated(over))
    assert len(everywhere.addressable_shards) == 8 and all(
        s.data.shape == (3,) for s in everywhere.addressable_shards
    )


# Axes that do not divide


def free_mesh(monkeypatch, tree, shape, count):
    """The mesh that is made of `count` devices, which need not be here."""
    monkeypatch.setattr(jax, 'make_mesh', lambda shape, axes, **how: shape)
    return make_mesh(shape, [None] * count, like=tree)


@pytest.mark.parametrize(
    'variant, count, mesh',
    [
        ('G', 256, (2, 128, 1)),  # 1664 is 13 · 128
        ('L', 24, (3, 8, 1)),  # 1024
        ('L', 48, (3, 16, 1)),
        ('H', 24, (3, 8, 1)),  # 1280 is 5 · 256
        ('H', 48, (3, 16, 1)),
        ('B', 8, (1, 8, 1)),
        ('L', 256, (1, 256, 1)),
        ('H', 40, (1, 40, 1)),
        ('B', 7, (7, 1, 1)),
    ],
)
def test_free_devices_go_to_fsdp_as_far_as_they_split_the_size(
    states, monkeypatch, variant, count, mesh
):
    assert free_mesh(monkeypatch, states[variant].params, (1, -1, 1), count) == mesh


def test_free_devices_beside_data_and_tensor(states, monkeypatch):
    params = states['L'].params
    assert free_mesh(monkeypatch, params, (2, -1, 2), 96) == (6, 8, 2)  # of 24, 8 split 1024
    assert free_mesh(monkeypatch, params, (-1, 3, 1), 24) == (8, 3, 1)  # as it was asked for
    assert free_mesh(monkeypatch, params, (1, 2, -1), 6) == (1, 2, 3)
    assert free_mesh(monkeypatch, None, (1, -1, 1), 24) == (1, 24, 1)  # nothing to split is known


def abstract(*shape):
    return AbstractMesh(shape, sharding.AXES, axis_types=(AxisType.Auto,) * 3)


@pytest.mark.parametrize(
    'variant, shape, works', [('G', (1, 256, 1), (2, 128, 1)), ('L', (2, 24, 1), (3, 16, 1))]
)
def test_a_mesh_that_splits_next_to_nothing_is_refused_with_one_that_does(
    states, variant, shape, works
):
    params = states[variant].params
    with pytest.raises(UserError, match=re.escape(f'{shape} would leave')) as error:
        sharding.check_mesh(abstract(*shape), params)
    assert str(error.value).endswith(f'try {works}.') and '\n' not in str(error.value)
    sharding.check_mesh(abstract(*works), params)


@pytest.mark.parametrize('shape', [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 8)])
@pytest.mark.parametrize('variant', 'BLHG')
def test_meshes_that_split_are_not_refused(states, variant, shape):
    sharding.check_mesh(abstract(*shape), states[variant].params)


def test_what_stays_whole_is_said_with_its_bytes(states):
    state, over = states['L'], abstract(1, 4, 4)  # 2730 does not divide by 4
    said = sharding.kept_whole(state, over)
    assert 'blocks/w12/kernel over tensor=4, blocks/w3/kernel over tensor=4' in said
    shares = {
        path_name(path): place.shard_shape(leaf.shape)
        for (path, leaf), place in zip(
            jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(shardings(state, over))
        )
    }
    held = 4 * sum(math.prod(shape) for shape in shares.values())
    wide = 4 * sum(
        math.prod(shape) for path, shape in shares.items() if re.search('w12/k|w3/k', path)
    )
    assert f'{wide * 3 / 4 / 2**30:.2f} of {held / 2**30:.2f} GiB a device' in said
    assert '\n' not in said and said.endswith('.')


@pytest.mark.parametrize('shape', [(1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 4, 2)])
def test_nothing_is_said_where_all_is_split(states, shape):
    assert sharding.kept_whole(states['L'], abstract(*shape)) == ''
