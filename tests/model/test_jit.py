import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CLASSES, TINY, TOKEN_WIDTH, perturb
from hypothesis import given, settings
from hypothesis import strategies as st

from jit_jax.model import attention
from jit_jax.model.jit import JiT
from jit_jax.model.layers import Linear, PatchEmbed, RMSNorm, sincos_tables, time_features
from jit_jax.model.sequence import COND, GRID, SLOTS, TARGET, patchify, place, slot_mask
from jit_jax.model.sizes import VARIANTS, hidden_width, size

FIVE = (
    jax.ShapeDtypeStruct((5, 32, 32, 3), jnp.float32),
    jax.ShapeDtypeStruct((5,), jnp.float32),
)  # z and t


def close(a, b, tolerance=5e-5):
    """Trees of arrays, each within `tolerance` of its largest entry."""

    def leaf(path, x, y):
        assert x.shape == y.shape
        assert np.abs(x - y).max(initial=0) <= tolerance * np.abs(y).max(initial=1e-3), (
            jax.tree_util.keystr(path)
        )

    jax.tree_util.tree_map_with_path(leaf, a, b)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def patches_of(cond):
    """Condition images [B, Hc, Wc, C] as patches [B, n, P]."""
    return np.asarray(patchify(cond, 2))


# One tree


def shapes(model, **conditioning):
    tree = jax.eval_shape(model.init, jax.random.key(0), *FIVE, **conditioning)['params']
    return {
        jax.tree_util.keystr(path): (x.shape, x.dtype)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize(
    'null, dead_slots, scan',
    [
        ('mask', 'skip', True),
        ('mask', 'keep', False),
        ('token', 'skip', False),
        ('token', 'keep', True),
    ],
)
def test_one_tree(tiny, fresh, conditioning, null, dead_slots, scan):
    model = tiny(
        null=null,
        dead_slots=dead_slots,
        scan=scan,
        freeze_tables=False,
        tables='zero',
        remat='full',
    )
    expected = {
        jax.tree_util.keystr(path): (x.shape, x.dtype)
        for path, x in jax.tree_util.tree_leaves_with_path(fresh)
    }
    assert shapes(model) == shapes(model, **conditioning['mixed']) == expected
    assert shapes(model, **conditioning['several']) == expected


def test_without_classes_only_the_label_tables_are_gone(tiny, fresh, conditioning):
    without, expected = shapes(tiny(num_classes=0), **conditioning['full']), shapes(tiny())
    assert set(expected) - set(without) == {"['classes']", "['class_positions']"}
    assert all(expected[name] == shape for name, shape in without.items())


def test_without_tokens_only_their_embedding_is_gone(tiny):
    without, expected = shapes(tiny(token_width=0)), shapes(tiny())
    gone = set(expected) - set(without)
    assert gone and all(name.startswith("['token_embed']") for name in gone)
    assert all(expected[name] == shape for name, shape in without.items())
    nameless = shapes(tiny(reference_images=0))
    assert set(expected) - set(nameless) == {"['which_reference']"}
    table = set(shapes(tiny(vocabulary=9))) - set(expected)
    assert table == {"['token_embed']['table']"}


def test_one_start(tiny, fresh, conditioning):
    model = tiny(scan=False)
    other = jax.jit(lambda key, z, t, conditioning: model.init(key, z, t, **conditioning))(
        jax.random.key(0), conditioning['z'], conditioning['t'], conditioning['several']
    )
    equal(other['params'], fresh)  # what the first batch holds decides nothing


# Skipping is exact


@pytest.mark.parametrize(
    'null, name',
    [*itertools.product(['mask'], ['uncond', 'several', 'full', 'whole']), ('token', 'whole')],
)
def test_skip_is_keep(tiny, params, run, conditioning, null, name):
    skip = run(tiny(null=null), params, conditioning['z'], conditioning['t'], **conditioning[name])
    keep = run(
        tiny(null=null, dead_slots='keep'),
        params,
        conditioning['z'],
        conditioning['t'],
        **conditioning[name],
    )
    close(skip, keep)
    assert (
        np.abs(keep[0]).max() > 0.3
        and np.abs(keep[1]['params']['blocks']['qkv']['kernel']).max() > 0.01
    )


@pytest.mark.parametrize(
    'null, name', [('mask', 'mixed'), ('mask', 'several'), ('token', 'several')]
)
def test_a_row_without_condition_in_a_mixture_is_the_unconditional_row(
    tiny, params, run, conditioning, null, name
):
    alone, _ = run(
        tiny(null=null), params, conditioning['z'], conditioning['t']
    )  # 256 slots, or 512 with tokens
    mixed, _ = run(
        tiny(null=null), params, conditioning['z'], conditioning['t'], **conditioning[name]
    )
    close(mixed[0], alone[0])
    assert all(np.abs(mixed[b] - alone[b]).max() > 0.01 for b in range(1, 5))


def test_null_token_is_seen_and_mask_is_not(tiny, params, run, conditioning):
    mask, gradients = run(tiny(), params, conditioning['z'], conditioning['t'])
    token, token_gradients = run(tiny(null='token'), params, conditioning['z'], conditioning['t'])
    assert np.abs(mask - token).max() > 0.01
    assert (gradients['params']['no_condition'] == 0).all() and (
        token_gradients['params']['no_condition'] != 0
    ).all()


@pytest.mark.parametrize('dead_slots', ['skip', 'keep'])
def test_rows_with_patches_in_all_slots_and_rows_with_a_label(
    tiny, params, run, conditioning, dead_slots
):
    """'inpaint|class': class tokens take slots of patches, as no row has both."""
    full, label = conditioning['full'], np.array([0, 0, 0, 3, 4], np.int32)
    labelled = np.array([0, 0, 0, 1, 1], bool)
    live = full['cond_valid'] & ~labelled[:, None]
    z, t = conditioning['z'], conditioning['t']
    model = tiny(dead_slots=dead_slots)
    both = dict(cond=full['cond'], cond_valid=live, label=label, label_valid=labelled)
    x, gradients = run(model, params, z, t, **both)
    patches, _ = run(model, params, z, t, cond=full['cond'], cond_valid=live)
    classes, _ = run(model, params, z, t, label=label)
    close(x[~labelled], patches[~labelled])
    close(x[labelled], classes[labelled])
    assert np.isfinite(gradients['params']['class_positions']).all()
    assert np.abs(gradients['params']['class_positions']).max() > 0
    with pytest.raises(ValueError, match='do not fit in 256'):
        run(model, params, z, t, cond=full['cond'], label=label)


def test_all_live_flags_are_no_flags(tiny, params, run, conditioning):
    flags = {
        'cond_valid': np.ones((5, 64), bool),
        'cond_tokens_valid': np.ones((5, 7), bool),
        'references_valid': np.ones((5, 22), bool),
        'label_valid': np.ones(5, bool),
    }
    z, t, some = conditioning['z'], conditioning['t'], conditioning['several']
    without = {name: array for name, array in some.items() if name not in flags}
    close(run(tiny(), params, z, t, **without), run(tiny(), params, z, t, **some | flags))
    tokens = {name: flags[name] for name in ('cond_tokens_valid',)}  # of one kind, and not the rest
    close(run(tiny(), params, z, t, **without | tokens), run(tiny(), params, z, t, **without))


def test_numbers_of_tokens_are_rows_of_a_learned_table(tiny, params, run, conditioning):
    """And which number a dead token has decides nothing, in the table's gradient either."""
    table = np.random.default_rng(0).standard_normal((9, TOKEN_WIDTH), np.float32)
    known = conditioning['several']['cond_tokens_valid']
    numbers = np.random.default_rng(1).integers(0, 6, known.shape, np.int32)
    lettered = params | {'token_embed': params['token_embed'] | {'table': table}}
    z, t = conditioning['z'], conditioning['t']
    some = conditioning['several'] | dict(cond_tokens=table[numbers])
    x, gradients = run(tiny(), params, z, t, **some)
    some = conditioning['several'] | dict(cond_tokens=numbers)
    by_number, by_table = run(tiny(vocabulary=9), lettered, z, t, **some)
    close(by_number, x)
    moved = by_table['params']['token_embed'].pop('table')
    close(by_table['params'], gradients['params'])
    assert set(np.flatnonzero(np.abs(moved).sum(-1))) == set(numbers[known])
    for lost in (8, 99, -7):
        some['cond_tokens'] = np.where(known, numbers, lost).astype(np.int32)
        dirty, dirty_gradients = run(tiny(vocabulary=9), lettered, z, t, **some)
        equal(dirty, by_number)
        equal(dirty_gradients['params']['token_embed']['table'], moved)


def test_which_reference_an_image_is_matters(tiny, params, run, conditioning):
    """Of two images of one size, in both orders; and where they lie."""
    z, t = conditioning['z'], conditioning['t']
    one, _ = conditioning['several']['references']
    x, gradients = run(tiny(), params, z, t, references=(one, -one))
    for references, changes in (((-one, one), {}), ((one, -one), dict(reference_place='free'))):
        other, _ = run(tiny(**changes), params, z, t, references=references)
        assert all(np.abs(other[b] - x[b]).max() > 0.003 for b in range(5))
    assert (np.abs(gradients['params']['which_reference']).sum(-1) > 0).all()
    # Over the target, it differs from the condition image by its vector alone.
    alone, _ = run(tiny(), params, z, t, cond=one)
    nameless = params | {'which_reference': np.zeros_like(params['which_reference'])}
    as_reference, _ = run(tiny(), nameless, z, t, references=(one,))
    close(as_reference, alone)


def test_where_a_token_stands_matters_and_other_tokens_paint_otherwise(
    tiny, params, run, conditioning
):
    z, t, some = conditioning['z'], conditioning['t'], conditioning['several']
    x, _ = run(tiny(), params, z, t, **some)
    for other in (some['cond_tokens'][:, ::-1], -some['cond_tokens']):
        changed, _ = run(tiny(), params, z, t, **some | dict(cond_tokens=other))
        equal(changed[0], x[0])  # no live token
        assert all(np.abs(changed[b] - x[b]).max() > 0.003 for b in range(1, 5))


def test_rows_with_grids_of_their_own(tiny, params, run, conditioning):
    """An 8×8 grid at the top left of a 16×16 array, the rest dead, is the 8×8 grid."""
    small = conditioning['mixed']['cond']
    cond = np.pad(small, ((0, 0), (0, 16), (0, 16), (0, 0)), constant_values=7.0)
    valid = np.pad(
        conditioning['mixed']['cond_valid'].reshape(5, 8, 8), ((0, 0), (0, 8), (0, 8))
    ).reshape(5, 256)
    large, large_gradients = run(
        tiny(),
        params,
        conditioning['z'],
        conditioning['t'],
        cond=cond,
        cond_valid=valid,
        cond_grid=np.full((5, 2), 8, np.int32),
    )
    exact, gradients = run(
        tiny(),
        params,
        conditioning['z'],
        conditioning['t'],
        cond=small,
        cond_valid=conditioning['mixed']['cond_valid'],
        label=np.zeros(5, np.int32),
        label_valid=np.zeros(5, bool),
    )
    close(large, exact)
    close(large_gradients['params'], gradients['params'])


@pytest.mark.parametrize('changes', [dict(scan=False), dict(remat='dots'), dict(remat='full')])
def test_how_blocks_run_changes_nothing(tiny, params, run, conditioning, changes):
    name = 'several' if changes == dict(scan=False) else 'uncond'
    close(
        *(
            run(tiny(**c), params, conditioning['z'], conditioning['t'], **conditioning[name])
            for c in (changes, {})
        )
    )


def test_bfloat16_is_near_and_comes_out_float32(tiny, params, run, conditioning):
    half = jax.jit(tiny(dtype=jnp.bfloat16).apply)(
        {'params': params}, conditioning['z'], conditioning['t']
    )
    single, _ = run(tiny(), params, conditioning['z'], conditioning['t'])
    assert half.dtype == jnp.float32
    assert 0 < np.abs(half - single).max() < 0.05 * np.abs(single).max()


# Dead slots are dead

GARBAGE = [math.nan, math.inf, -math.inf, 3e38, 5.0]
flags = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(
    'null, dead_slots', [('mask', 'skip'), ('mask', 'keep'), ('token', 'skip')]
)
@settings(max_examples=6)
@given(
    seed=flags,
    density=st.sampled_from([0.0, 0.1, 0.5, 0.98]),
    garbage=st.sampled_from(GARBAGE),
    lost=st.sampled_from([2, 5, 99, -7]),
)
def test_what_a_dead_slot_holds_changes_nothing(
    tiny, params, run, conditioning, null, dead_slots, seed, density, garbage, lost
):
    random = np.random.default_rng(seed)
    valid, labelled = random.random((5, 64)) < density, random.random(5) < 0.5
    known, recalled = random.random((5, 7)) < density, random.random((5, 22)) < density
    some = conditioning['several']
    label = np.array([0, 1, 3, 4, 0], np.int32)  # never 2 and 5
    by_pixel = np.repeat(np.repeat(~valid.reshape(5, 8, 8), 2, 1), 2, 2)
    dead = by_pixel[..., None]  # the pixels of dead patches
    flags = dict(cond_valid=valid, cond_tokens_valid=known, label_valid=labelled)
    flags['references_valid'] = recalled
    model = tiny(null=null, dead_slots=dead_slots)

    def outcome(fill, label_fill):
        fill = np.float32(fill)
        filled = dict(
            cond=np.where(dead, fill, some['cond']),
            cond_tokens=np.where(known[..., None], some['cond_tokens'], fill),
            references=tuple(filled_where_dead(some['references'], recalled, fill)),
            label=np.where(labelled, label, label_fill).astype(np.int32),
        )
        return run(model, params, conditioning['z'], conditioning['t'], **filled, **flags)

    x, gradients = outcome(0, 0)
    dirty, dirty_gradients = outcome(garbage, lost)
    assert np.isfinite(x).all()
    equal((dirty, dirty_gradients), (x, gradients))  # bit for bit, and so finite

    d_patches = patches_of(gradients['cond'])
    assert (d_patches[~valid] == 0).all() and (np.abs(d_patches[valid]).sum(-1) > 0).all()
    d_tokens = np.abs(gradients['cond_tokens']).sum(-1)
    np.testing.assert_array_equal(d_tokens > 0, known)
    d_references = np.concatenate([patches_of(image) for image in gradients['references']], 1)
    np.testing.assert_array_equal(np.abs(d_references).sum(-1) > 0, recalled)
    d_classes = np.abs(gradients['params']['classes']).sum(-1)
    assert set(np.flatnonzero(d_classes)) == set(label[labelled])


def filled_where_dead(references, live, fill):
    """Reference images whose dead patches, of 2×2 pixels, hold something else."""
    for image in references:
        B, h, w, _ = image.shape
        own, live = live[:, : h * w // 4], live[:, h * w // 4 :]
        by_pixel = own.reshape(B, h // 2, w // 2).repeat(2, 1).repeat(2, 2)
        yield np.where(by_pixel[..., None], image, fill)


@pytest.mark.parametrize('null', ['mask', 'token'])
def test_a_row_does_not_depend_on_the_others(tiny, params, run, conditioning, null):
    some, t = conditioning['several'], conditioning['t']
    x, _ = run(tiny(null=null), params, conditioning['z'], t, **some)
    for row in range(5):
        others = np.arange(5) != row
        z, changed = conditioning['z'].copy(), jax.tree.map(np.copy, some)
        z[others], changed['cond'][others], changed['label'][others] = np.nan, 1, 2
        changed['cond_tokens'][others] = 3
        changed['references'][1][others] = -1
        for flags in ('cond_valid', 'cond_tokens_valid', 'references_valid', 'label_valid'):
            changed[flags][others] = ~changed[flags][others]
        found, _ = run(tiny(null=null), params, z, t, **changed)
        equal(found[row], x[row])
        assert np.isnan(found[others]).all()


def seen(tiny, params, conditioning, monkeypatch, **changes):
    """The masks [B, 512] and places that attention is given in each block of the literal
    program.
    """
    model, masks, places = tiny(dead_slots='keep', scan=False, **changes), [], []
    attend, rotation = attention.attend, attention.rotation

    def attend_seen(q, k, v, layout):
        if layout.valid is not None:  # Flax traces `init` too, to check shapes
            masks.append(layout.valid)
        return attend(q, k, v, layout)

    def rotation_seen(at, head_width):
        if len(at) > 1:  # as above
            places.append(at)
        return rotation(at, head_width)

    monkeypatch.setattr(attention, 'attend', attend_seen)
    monkeypatch.setattr(attention, 'rotation', rotation_seen)

    @jax.jit
    def forward(params, z, t, conditioning):
        model.apply({'params': params}, z, t, **conditioning)
        return masks, places

    return forward(params, conditioning['z'], conditioning['t'], conditioning['several'])


def live_before_labels(conditioning):
    """bool [5, 93]: the patches, references and tokens that are live in `several`."""
    flags = ('cond_valid', 'references_valid', 'cond_tokens_valid')
    return np.concatenate([conditioning['several'][name] for name in flags], 1)


def test_each_block_is_given_the_mask_of_the_drawing(tiny, params, conditioning, monkeypatch):
    (first, second), _ = seen(tiny, params, conditioning, monkeypatch)
    valid, label_valid = live_before_labels(conditioning), conditioning['several']['label_valid']
    equal(first, slot_mask(5, valid))
    equal(second, slot_mask(5, valid, label_valid, class_tokens=4))  # class tokens start at block 1


def test_no_condition_tokens_fill_all_condition_slots_of_their_rows(
    tiny, params, conditioning, monkeypatch
):
    (first, second), (before, after) = seen(tiny, params, conditioning, monkeypatch, null='token')
    empty = np.array([True, False, False, False, False])  # in `several`, the others have something
    equal(
        first,
        np.asarray(slot_mask(5, live_before_labels(conditioning)))
        | (empty[:, None] & (np.arange(SLOTS) < 256)),
    )
    assert np.asarray(second)[0].all()
    for places in (before, after):
        assert (
            np.asarray(places)[0, COND] == 0
        ).all()  # they turn nowhere; patches of the other rows do
        np.testing.assert_allclose(
            np.asarray(places)[1:, :64], np.broadcast_to(place(8, 8), (4, 64, 2))
        )


@pytest.mark.parametrize('where', ['aligned', 'free'])
def test_places_of_patches_and_class_tokens(tiny, params, conditioning, monkeypatch, where):
    _, runs = seen(tiny, params, conditioning, monkeypatch, reference_place=where)
    width = GRID if where == 'free' else 0  # beside the target, one after the other
    first, second = place(4, 4) + np.array([0, width]), place(2, 3) + np.array([0, 2 * width])
    for places in runs:
        np.testing.assert_array_equal(places[:64], place(8, 8).astype(np.float32))
        np.testing.assert_allclose(places[64:86], np.concatenate([first, second]), atol=1e-5)
        np.testing.assert_array_equal(places[86:256], 0)  # tokens, class tokens and dead slots
        np.testing.assert_array_equal(places[TARGET], place(GRID, GRID))


def test_where_a_condition_patch_lies_matters(tiny, params, run, conditioning):
    x, _ = run(tiny(), params, conditioning['z'], conditioning['t'], **conditioning['mixed'])
    rolled, _ = run(
        tiny(),
        params,
        conditioning['z'],
        conditioning['t'],
        **conditioning['mixed'] | dict(cond=np.roll(conditioning['mixed']['cond'], 2, axis=2)),
    )
    equal(rolled[[0, 3]], x[[0, 3]])  # no live patches
    assert np.abs(rolled[2] - x[2]).max() > 0.005


def test_the_target_tables_are_frozen_and_the_condition_tables_are_not(
    tiny, params, run, conditioning
):
    _, frozen = run(tiny(), params, conditioning['z'], conditioning['t'], **conditioning['mixed'])
    target, cond = frozen['params']['target_embed'], frozen['params']['cond_embed']
    assert (
        (target['rows'] == 0).all()
        and (target['cols'] == 0).all()
        and (target['pixels']['kernel'] != 0).any()
    )
    for table in (cond['rows'], cond['cols']):
        assert (table[:8] != 0).all() and (
            table[8:] == 0
        ).all()  # an 8×8 condition uses entries 0 … 7


def test_free_tables_learn_and_unscanned_checkpoints_change_nothing_else(
    tiny, params, run, conditioning
):
    _, frozen = run(tiny(), params, conditioning['z'], conditioning['t'])
    _, free = run(
        tiny(freeze_tables=False, scan=False, remat='full'),
        params,
        conditioning['z'],
        conditioning['t'],
    )
    for table in ('rows', 'cols'):
        assert (free['params']['target_embed'].pop(table) != 0).all() and (
            frozen['params']['target_embed'].pop(table) == 0
        ).all()
    close(free, frozen)


# Dropout


@pytest.fixture(scope='module')
def dropped(fresh):
    """(params, seed) → x̂ in training of a model of depth 8 whose dropout is 0.5; and such params,
    with equal blocks.
    """
    model = JiT(
        **size('depth=8,width=32,heads=2,bottleneck=8,class_tokens=4,class_start=3,dropout=0.5'),
        image_size=32,
    )
    z, t = np.random.default_rng(0).standard_normal((2, 32, 32, 3)), np.array([0.2, 0.6])
    apply = jax.jit(
        lambda p, key: model.apply({'params': p}, z, t, train=True, rngs={'dropout': key})
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), z, t)['params']
    params = perturb(jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes))
    params['blocks'] = jax.tree.map(lambda x: np.broadcast_to(x[:1], x.shape), params['blocks'])
    still = jax.jit(model.apply)({'params': params}, z, t)  # not training: needs no key
    return lambda p, seed: np.asarray(apply(p, jax.random.key(seed))), params, np.asarray(still)


def only(params, layer):
    """Every block but one the identity, and that one the same for any `layer`."""
    kernel, bias = (np.zeros_like(params[f'modulation_{name}']) for name in ('kernel', 'bias'))
    bias[layer] = 0.5
    return params | dict(modulation_kernel=kernel, modulation_bias=bias)


def test_dropout_is_in_the_middle_half_of_the_blocks(dropped):
    apply, params, _ = dropped
    for layer in range(8):
        a, b, again = (apply(only(params, layer), seed) for seed in (0, 1, 0))
        equal(a, again)
        assert (np.abs(a - b).max() > 0.01) == (2 <= layer < 6)


def test_dropout_differs_from_block_to_block(dropped):
    apply, params, _ = dropped
    equal(
        apply(only(params, 0), 0), apply(only(params, 7), 0)
    )  # the same block, wherever it is, without dropout
    for a, b in itertools.combinations(range(2, 6), 2):
        assert np.abs(apply(only(params, a), 0) - apply(only(params, b), 0)).max() > 0.01


def test_dropout_only_in_training_and_right_in_the_mean(dropped):
    apply, params, still = dropped
    samples = np.stack([apply(params, seed) for seed in range(8)])
    assert np.isfinite(still).all() and np.abs(samples - still).max() > 0.1
    first = only(params, 0)
    equal(apply(first, 0), apply(first, 5))


# The start


def test_xavier_is_of_the_fused_matrix(fresh):
    width, hidden = 32, hidden_width(32)
    fans = {
        'qkv': 32 + 3 * width,
        'proj': 32 + width,
        'w12': 32 + 2 * hidden,
        'w3': hidden + width,
    }
    for name, fan in fans.items():
        kernel, limit = fresh['blocks'][name]['kernel'], math.sqrt(6 / fan)
        assert 0.97 * limit < np.abs(kernel).max() <= limit
        assert kernel.std() == pytest.approx(limit / math.sqrt(3), rel=0.06)
        assert (kernel[0] != kernel[1]).all()  # blocks start apart
        assert (fresh['blocks'][name]['bias'] == 0).all()


def test_the_patch_embedding_starts_as_published_at_patch_16():
    """A convolution's default fan would give 0.013 here."""
    embed = PatchEmbed(768, 128, 'sincos', True, jnp.float32)
    kernel = embed.init(jax.random.key(0), jnp.zeros((1, 256, 768)), GRID, GRID)['params'][
        'pixels'
    ]['kernel']
    assert kernel.shape == (768, 128) and np.abs(kernel).max() == pytest.approx(
        math.sqrt(6 / (768 + 128)), rel=1e-3
    )
    assert round(float(np.abs(kernel).max()), 3) == 0.082


def test_what_starts_normal_zero_and_one(fresh):
    for leaf in (
        fresh['time_in']['kernel'],
        fresh['time_out']['kernel'],
        fresh['classes'],
        fresh['class_positions'],
        fresh['no_condition'],
        fresh['token_embed']['positions'],
        fresh['which_reference'],
    ):
        sigmas = 4 / math.sqrt(2 * leaf.size)
        assert (
            leaf.std() == pytest.approx(0.02, rel=sigmas) and abs(leaf.mean()) < 0.02 * sigmas * 1.5
        )
    zeros = [
        fresh['modulation_kernel'],
        fresh['modulation_bias'],
        *jax.tree.leaves((fresh['final'], fresh['final_modulation'])),
    ]
    zeros += [fresh[name]['bias'] for name in ('time_in', 'time_out')]
    assert all((leaf == 0).all() for leaf in zeros)
    norms = [
        fresh['final_norm']['weight'],
        *(fresh['blocks'][name]['weight'] for name in ('norm1', 'norm2', 'q_norm', 'k_norm')),
    ]
    assert all((leaf == 1).all() for leaf in norms)


def test_tables_start_as_published_or_zero(tiny, fresh):
    rows, cols = sincos_tables(32)
    for embed in ('target_embed', 'cond_embed'):
        np.testing.assert_allclose(fresh[embed]['rows'], rows, atol=1e-7)
        np.testing.assert_allclose(fresh[embed]['cols'], cols, atol=1e-7)
    embed = PatchEmbed(32, 8, 'zero', True, jnp.float32).init(
        jax.random.key(0), jnp.zeros((1, 1, 4)), 1, 1
    )['params']
    assert embed['rows'].shape == (16, 32) and not embed['rows'].any() and not embed['cols'].any()


@pytest.mark.parametrize('width', [16, 64])
def test_rows_and_cols_sum_to_the_published_table(width):
    rows, cols = sincos_tables(width)
    for row, col in itertools.product(range(GRID), repeat=2):
        omega = [1 / 10000 ** (i / (width / 4)) for i in range(width // 4)]
        halves = [
            [f(x * w) for f in (np.sin, np.cos) for w in omega] for x in (col, row)
        ]  # the column first
        np.testing.assert_allclose(rows[row] + cols[col], np.concatenate(halves), atol=1e-12)


def test_positions_of_a_rectangle_are_rows_first():
    embed = PatchEmbed(16, 4, 'sincos', False, jnp.float32)
    params = embed.init(jax.random.key(0), jnp.zeros((1, 6, 12)), 2, 3)['params']
    tokens = embed.apply({'params': params}, jnp.zeros((1, 6, 12)), 2, 3)
    expected = [params['rows'][i] + params['cols'][j] for i in range(2) for j in range(3)]
    np.testing.assert_allclose(tokens[0], np.stack(expected), atol=1e-6)


def test_time_features_are_cos_then_sin_of_the_unscaled_time():
    t = np.array([0.0, 0.25, 1.0], np.float32)
    features = np.asarray(time_features(t))
    for b, i in itertools.product(range(3), range(128)):
        angle = float(t[b]) * math.exp(-math.log(10000) * i / 128)
        assert features[b, i] == pytest.approx(math.cos(angle), abs=1e-6)
        assert features[b, 128 + i] == pytest.approx(math.sin(angle), abs=1e-6)


@pytest.mark.parametrize('scale', [1e-4, 1.0, 300.0])
def test_rms_norm(scale):
    x = scale * np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)
    weight = np.linspace(-1, 2, 16, dtype=np.float32)
    y = RMSNorm().apply({'params': {'weight': weight}}, x)
    exact = (
        x.astype(np.float64)
        / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-6)
        * weight
    )
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-7)
    half = RMSNorm().apply({'params': {'weight': weight}}, jnp.asarray(x, jnp.bfloat16))
    assert half.dtype == jnp.float32  # only the rounding of what came in
    np.testing.assert_allclose(np.asarray(half, np.float32), exact, rtol=2**-6, atol=1e-6)


def test_linear_is_a_product_over_the_last_axis():
    random = np.random.default_rng(0)
    x, kernel, bias = (
        random.standard_normal(s).astype(np.float32) for s in ((2, 5, 4), (4, 3, 2), (3, 2))
    )
    y = Linear((3, 2)).apply({'params': dict(kernel=kernel, bias=bias)}, x)
    np.testing.assert_allclose(
        y, np.einsum('bsd,dij->bsij', x, kernel) + bias, rtol=1e-5, atol=1e-5
    )


def test_published_sizes():
    published = {  # depth, width, heads, SwiGLU, bottleneck, class tokens, start block, dropout
        'B': (12, 768, 12, 2048, 128, 32, 4, 0.0),
        'L': (24, 1024, 16, 2730, 128, 32, 8, 0.0),
        'H': (32, 1280, 16, 3413, 256, 32, 10, 0.2),
        'G': (40, 1664, 16, 4437, 256, 32, 10, 0.2),
    }
    for name, row in published.items():
        v = VARIANTS[name]
        assert row == (
            v['depth'],
            v['width'],
            v['heads'],
            hidden_width(v['width']),
            v['bottleneck'],
            v['class_tokens'],
            v['class_start'],
            v['dropout'],
        )


@pytest.mark.parametrize(
    'variant, image_size, count',
    [
        ('B', 256, 131_123_712),
        ('L', 256, 458_877_664),
        ('H', 256, 952_514_368),
        ('B', 512, 133_190_400),
        ('H', 512, 956_055_616),
    ],
)
def test_published_parameter_counts(variant, image_size, count):
    model = JiT(**size(variant), image_size=image_size, num_classes=1000)
    z = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    tree = jax.eval_shape(
        model.init, jax.random.key(0), z, jax.ShapeDtypeStruct((1,), jnp.float32)
    )['params']

    def total(tree):
        return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))

    frozen = total([tree['target_embed'][name] for name in ('rows', 'cols')])
    assert total(tree) - frozen - total([tree['cond_embed'], tree['no_condition']]) == count


# Errors


@pytest.mark.parametrize(
    'shapes, words',
    [
        (dict(z=(5, 16, 32, 3)), r'z is \[B, 32, 32, 3\].*\[5, 16, 32, 3\]'),
        (dict(z=(5, 32, 32, 1)), r'z is \[B, 32, 32, 3\]'),
        (dict(cond=(5, 15, 16, 3)), '15×16'),
        (dict(cond=(5, 64, 16, 3)), '64×16'),
        (dict(cond=(4, 16, 16, 3)), r'cond is .*\[4, 16, 16, 3\]'),
        (dict(cond=(5, 16, 16, 1)), r'cond is .*\[5, 16, 16, 1\]'),
        (dict(cond=(5, 16, 16, 3), cond_valid=(5, 256)), r'cond_valid is .*\[5, 64\].*\[5, 256\]'),
        (dict(cond_valid=(5, 64)), r'cond_valid is .*\[5, 64\]'),
        (
            dict(cond=(5, 32, 32, 3), label=(5,)),
            '256 condition patches and 4 class tokens do not fit in 256',
        ),
        (
            dict(cond=(5, 16, 32, 3), cond_tokens=(5, 125, 6), label=(5,)),
            '128 condition patches, 125 tokens and 4 class tokens do not fit in 256',
        ),
        (dict(cond_tokens=(5, 257, 6)), '257 tokens do not fit in 256'),
        (dict(cond_tokens=(5, 7, 5)), r'cond_tokens is .*\[5, 7, 6\].*\[5, 7, 5\]'),
        (dict(cond_tokens=(5, 6)), r'cond_tokens is .*\[5, 6, 6\].*\[5, 6\]'),
        (
            dict(cond_tokens=(5, 7, 6), cond_tokens_valid=(5, 6)),
            r'cond_tokens_valid is .*\[5, 7\].*\[5, 6\]',
        ),
        (dict(cond_tokens_valid=(5, 7)), r'cond_tokens_valid is .*\[5, 0\].*\[5, 7\]'),
        (dict(cond=(5, 28, 36, 3)), '28×36'),
    ],
)
def test_shapes_that_do_not_fit_end_in_one_sentence(tiny, shapes, words):
    types = dict(cond_valid=jnp.bool_, cond_tokens_valid=jnp.bool_, label=jnp.int32)
    conditioning = {
        name: jax.ShapeDtypeStruct(shape, types.get(name, jnp.float32))
        for name, shape in shapes.items()
    }
    z = conditioning.pop('z', FIVE[0])
    with pytest.raises(ValueError, match=words) as error:
        jax.eval_shape(tiny().init, jax.random.key(0), z, FIVE[1], **conditioning)
    assert '\n' not in str(error.value)


def test_252_patches_and_4_class_tokens_fit(tiny):
    """14×18 does not fit the grid, but 14 rows of 16 and 4 tokens do, and 252 is the most with 4
    tokens.
    """
    label, cond = (
        jax.ShapeDtypeStruct((5,), jnp.int32),
        jax.ShapeDtypeStruct((5, 30, 32, 3), jnp.float32),
    )
    tree = jax.eval_shape(tiny().init, jax.random.key(0), *FIVE, cond=cond, label=label)
    assert 'classes' in tree['params']


def test_a_label_for_a_model_without_classes_is_refused(tiny):
    with pytest.raises(ValueError, match='num_classes'):
        jax.eval_shape(
            tiny(num_classes=0).init,
            jax.random.key(0),
            *FIVE,
            label=jax.ShapeDtypeStruct((5,), jnp.int32),
        )


@pytest.mark.parametrize(
    'changes, tokens, words',
    [
        (dict(token_width=0), jnp.float32, 'set token_width'),
        (dict(vocabulary=9), jnp.float32, r'whole numbers \[B, m\]'),
        ({}, jnp.int32, r'embeddings \[B, m, E\]'),
    ],
)
def test_tokens_that_a_model_does_not_take_are_refused(tiny, changes, tokens, words):
    given = jax.ShapeDtypeStruct((5, 7, 6), tokens)
    with pytest.raises(ValueError, match=words) as error:
        jax.eval_shape(tiny(**changes).init, jax.random.key(0), *FIVE, cond_tokens=given)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'references, live, words',
    [
        ([(5, 8, 8, 3)] * 3, None, '3 references were given to a model of at most 2'),
        ([(5, 8, 8, 3), (4, 8, 8, 3)], None, r'references\[1\] is .*\[4, 8, 8, 3\]'),
        ([(5, 8, 9, 3)], None, '8×9'),
        ([(5, 32, 32, 3), (5, 2, 2, 3)], None, '257 condition patches do not fit in 256'),
        ([(5, 8, 8, 3)], 15, r'references_valid is .*\[5, 16\].*\[5, 15\]'),
    ],
)
def test_references_that_do_not_fit_are_refused(tiny, references, live, words):
    given = {'references': [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in references]}
    if live:
        given['references_valid'] = jax.ShapeDtypeStruct((5, live), jnp.bool_)
    with pytest.raises(ValueError, match=words) as error:
        jax.eval_shape(tiny().init, jax.random.key(0), *FIVE, **given)
    assert '\n' not in str(error.value)


def test_a_size_without_class_tokens_has_no_array_for_them(tiny, conditioning):
    """Labels then act through the modulation alone; a checkpoint could not hold an array [0, D]."""
    model = tiny(class_tokens=0)
    z, t, label = conditioning['z'], conditioning['t'], np.array([0, 1, 2, 3, 4], np.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), z, t, label=label)['params']
    assert 'class_positions' not in shapes and 'classes' in shapes
    assert all(leaf.size for leaf in jax.tree.leaves(shapes))
    assert jax.tree.structure(shapes) == jax.tree.structure(
        jax.eval_shape(model.init, jax.random.key(0), z, t)['params']
    )
    assert size(TINY.replace('class_tokens=4', 'class_tokens=0'))['class_tokens'] == 0
    params = perturb(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))
    apply = jax.jit(model.apply)
    one, other = (apply({'params': params}, z, t, label=each) for each in (label, label[::-1]))
    assert np.abs(one - other).max() > 0.001


@pytest.mark.parametrize(
    'variant',
    ['Q', '', 'b', 'depth=2', 'depth=2,width=32', VARIANTS['B'].__repr__()]
    + [
        f'depth={d},width={w},heads={h},bottleneck=8,class_tokens={k},class_start={s},dropout={p}'
        for d, w, h, k, s, p in [
            ('x', 32, 2, 4, 1, 0.0),
            (2, 30, 2, 4, 1, 0.0),
            (2, 32, 3, 4, 1, 0.0),
            (2, 32, 0, 4, 1, 0.0),
            (0, 32, 2, 4, 0, 0.0),
            (2, 32, 2, 4, 3, 0.0),
            (2, 32, 2, 4, -1, 0.0),
            (2, 32, 2, 4, 1, 1.5),
            (2, -32, 2, 4, 1, 0.0),
            (2, 32, 2, 300, 1, 0.0),
        ]
    ],
)
def test_a_size_that_cannot_be_is_refused(variant):
    with pytest.raises(ValueError) as error:
        size(variant)
    assert repr(variant) in str(error.value) and '\n' not in str(error.value)


def test_a_size_spelled_out():
    spelled = ','.join(f'{name}={value}' for name, value in VARIANTS['H'].items())
    assert size(spelled) == size('H') == VARIANTS['H']
    size('H')['depth'] = 1
    assert VARIANTS['H']['depth'] == 32  # a copy
    assert CLASSES == 5
