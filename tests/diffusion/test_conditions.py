import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jit_jax.diffusion import conditions
from jit_jax.diffusion.conditions import KINDS, drop, from_uint8, make, null, parse, picture
from jit_jax.model.sequence import GRID, patchify

KEY, OTHER = jax.random.split(jax.random.key(0))
B = 32
PIXELS = np.random.default_rng(0).integers(0, 256, (B, 32, 32, 3), np.uint8)
X = PIXELS / np.float32(127.5) - 1
BATCH = {'image': PIXELS, 'label': np.arange(B, dtype=np.int32) % 7, 'cond': PIXELS[::-1]}
COUNT = np.arange(B, dtype=np.int32) % 8
BATCH |= {'tokens': PIXELS[:, 0, :8, 0], 'token_count': COUNT}
HOLES = ('inpaint', 'outpaint', 'half', 'patches', 'strokes')


def tell(kind, key=KEY, x=X, **settings):
    conditioning = jax.jit(make(kind, **dict(factor=2, hole=(4, 12)) | settings))(x, BATCH, key)
    return jax.tree.map(np.asarray, conditioning)


def holes(conditioning):
    """bool [B, 16, 16]: the dead patches."""
    return ~conditioning['cond_valid'].reshape(-1, GRID, GRID)


def sides(hole):
    """The height and width of a rectangle; fails for anything else."""
    rows, cols = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
    expected = np.zeros_like(hole)
    expected[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1] = True
    np.testing.assert_array_equal(hole, expected)
    return len(rows), len(cols)


def test_from_uint8_spans_minus_one_to_one():
    np.testing.assert_allclose(
        from_uint8(np.array([0, 51, 255], np.uint8)), [-1, -0.6, 1], atol=1e-6
    )


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_is_a_pure_function_that_shapes_fit(kind):
    conditioning = tell(kind)
    if kind == 'class':
        np.testing.assert_array_equal(conditioning['label'], BATCH['label'])
        return
    if kind == 'references':
        half = jax.image.resize(from_uint8(BATCH['cond']), (B, 16, 16, 3), 'cubic', antialias=True)
        np.testing.assert_allclose(conditioning['references'][0], half, atol=1e-5)
        return
    if kind == 'text':
        np.testing.assert_array_equal(conditioning['cond_tokens'], BATCH['tokens'])
        assert conditioning['cond_tokens'].dtype == np.int32
        np.testing.assert_array_equal(conditioning['cond_tokens_valid'].sum(1), COUNT)
        return
    assert conditioning['cond'].dtype == np.float32 and np.abs(conditioning['cond']).max() <= 1.5
    assert conditioning['cond'].shape == (
        (B, 16, 16, 3) if kind == 'super_resolution' else (B, 32, 32, 3)
    )
    assert ('cond_valid' in conditioning) == (kind in HOLES)
    for name, array in tell(kind).items():
        np.testing.assert_array_equal(array, conditioning[name])


@pytest.mark.parametrize('factor', [2, 4])
def test_super_resolution_is_antialiased_bicubic_as_in_pillow(factor):
    cond = tell('super_resolution', factor=factor)['cond']
    for row in range(2):
        for channel in range(3):
            exact = Image.fromarray(X[row, :, :, channel]).resize(
                (32 // factor,) * 2, Image.Resampling.BICUBIC
            )
            np.testing.assert_allclose(cond[row, :, :, channel], np.asarray(exact), atol=2e-3)


@pytest.mark.parametrize('bounds', [(4, 12), (1, 16), (3, 3)])
def test_an_inpainting_hole_is_a_rectangle_within_bounds(bounds):
    conditioning = tell('inpaint', hole=bounds)
    np.testing.assert_array_equal(conditioning['cond'], X)  # what is in the hole is dead, not gone
    found = np.array([sides(hole) for hole in holes(conditioning)])
    assert bounds[0] <= found.min() and found.max() <= bounds[1]
    if bounds == (1, 16):
        assert found.min() < 5 and found.max() > 12 and (found[:, 0] != found[:, 1]).any()


def test_holes_lie_anywhere():
    corners = np.array(
        [
            [np.flatnonzero(hole.any(axis))[0] for axis in (1, 0)]
            for hole in holes(tell('inpaint', hole=(4, 4)))
        ]
    )
    assert corners.min() == 0 and corners.max() == 12 and (corners[:, 0] != corners[:, 1]).any()


@pytest.mark.parametrize('kind', HOLES)
def test_holes_differ_by_row_and_by_key(kind):
    found, other = holes(tell(kind)), holes(tell(kind, OTHER))
    assert len({hole.tobytes() for hole in found}) > (3 if kind == 'half' else B // 2)
    assert (found != other).any()
    assert found.any((1, 2)).all() and (~found).any((1, 2)).all()  # never nothing, never all


def test_outpaint_is_what_inpaint_cuts_out():
    for hole in holes(tell('outpaint')):
        height, width = sides(~hole)
        assert 4 <= min(height, width) and max(height, width) <= 12


def test_half_is_one_of_four_halves():
    kinds = {sides(hole) + (bool(hole[0, 0]),) for hole in holes(tell('half'))}
    assert kinds == {(8, 16, True), (8, 16, False), (16, 8, True), (16, 8, False)}


def test_patches_loses_a_quarter_to_nine_tenths():
    share = holes(tell('patches')).mean((1, 2))
    assert 0.12 < share.min() < 0.45 and 0.7 < share.max() < 0.97


def test_a_stroke_is_one_connected_line():
    for hole in holes(tell('strokes')):
        todo, seen = [tuple(np.argwhere(hole)[0])], set()
        while todo:
            at = todo.pop()
            if at not in seen and min(at) >= 0 and max(at) < GRID and hole[at]:
                seen.add(at)
                todo += [(at[0] + i, at[1] + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        assert len(seen) > 0.8 * hole.sum()  # a thin line may slip between patches
    assert holes(tell('strokes')).mean() < 0.6


def test_grayscale_is_pillows_luminance():
    gray = tell('grayscale')['cond']
    for row in range(2):
        exact = np.asarray(Image.fromarray(PIXELS[row]).convert('L'))
        np.testing.assert_allclose(
            (gray[row] + 1) * 127.5, np.repeat(exact[..., None], 3, -1), atol=1
        )
    one = X[..., :1]
    np.testing.assert_array_equal(tell('grayscale', x=one)['cond'], one)


def test_edges_are_where_the_picture_changes():
    x = np.full((B, 32, 32, 3), -1.0, np.float32)
    x[:, :, 16:] = 1
    cond = tell('edges', x=x)['cond']
    assert (cond[:, :, [15, 16]] == 1).all() and (np.delete(cond, [15, 16], 2) == -1).all()
    np.testing.assert_allclose(
        tell('edges', x=np.swapaxes(x, 1, 2))['cond'], np.swapaxes(cond, 1, 2), atol=1e-6
    )


def test_pairs_come_from_the_data_set():
    np.testing.assert_allclose(tell('pairs')['cond'], X[::-1], atol=1e-6)


# Together, or one of several


def test_none_tells_nothing():
    assert make('none')(X, BATCH, KEY) == {}


@pytest.mark.parametrize(
    'kind', ['inpant', 'inpaint|', 'a+class', '', 'none|class', 'inpaint edges']
)
def test_an_unknown_kind_is_refused(kind):
    with pytest.raises(ValueError, match=r'condition\.kind.*no condition.*inpaint') as error:
        parse(kind)
    assert '\n' not in str(error.value)


def test_plus_is_both():
    both = tell('inpaint+class')
    assert both.keys() == {'cond', 'cond_valid', 'label'}
    np.testing.assert_array_equal(both['label'], BATCH['label'])


def test_plus_of_images_gives_them_side_by_side():
    """The first lies over the target; each whole one is made smaller, so that all fit."""
    told = tell('edges+class+super_resolution+grayscale')
    assert told.keys() == {'cond', 'label', 'references'}
    shapes = [image.shape[1:3] for image in (told['cond'], *told['references'])]
    assert shapes == [(16, 16)] * 3
    whole = {kind: tell(kind)['cond'] for kind in ('edges', 'grayscale')}
    half = jax.image.resize(whole['edges'], (B, 16, 16, 3), 'cubic', antialias=True)
    np.testing.assert_allclose(told['cond'], half, atol=1e-5)
    np.testing.assert_allclose(told['references'][0], tell('super_resolution')['cond'], atol=1e-5)
    assert tell('edges+grayscale', reference_factor=4)['cond'].shape == (B, 8, 8, 3)
    assert 'references' not in tell('edges+class')  # one image stays as it is
    with_hole = tell('inpaint+edges', reference_factor=4)
    np.testing.assert_array_equal(with_hole['cond'], X)
    assert with_hole['references'][0].shape == (B, 8, 8, 3) and 'cond_valid' in with_hole


def test_paired_images_in_their_order():
    several = BATCH | {'cond10': PIXELS, 'cond2': 255 - PIXELS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), 'BATCH', several)
        pairs, references = tell('pairs'), tell('references')
    small = [
        jax.image.resize(from_uint8(several[name]), (B, 16, 16, 3), 'cubic', antialias=True)
        for name in ('cond', 'cond2', 'cond10')
    ]
    found = (pairs['cond'], *pairs['references'])
    for expected, image, again in zip(small, found, references['references'], strict=True):
        np.testing.assert_allclose(image, expected, atol=1e-5)
        np.testing.assert_array_equal(image, again)


def test_bar_gives_references_to_the_rows_that_have_them():
    told = tell('edges+grayscale|super_resolution|edges+edges')
    live = told['references_valid'].all(1)
    assert (told['references_valid'].any(1) == live).all() and 12 <= live.sum() <= 28
    both = tell('edges+grayscale+edges')
    grey, edges = both['references']
    options = [np.abs(told['references'][0] - image).max((1, 2, 3)) for image in (grey, edges)]
    assert (np.minimum(*options)[live] < 1e-5).all()
    kept = dropped(told, 0.5)
    assert not kept['references_valid'][~kept['cond_valid'].any(1)].any()


def test_bar_is_either_row_by_row():
    conditioning = tell('super_resolution|inpaint|class')
    grid, valid = conditioning['cond_grid'], conditioning['cond_valid'].reshape(B, GRID, GRID)
    small, labelled = (grid == 8).all(1), conditioning['label_valid']
    holed = ~small & ~labelled
    assert all(5 <= group.sum() <= 18 for group in (small, labelled, holed))  # a third of 32 each
    assert not (small & labelled).any() and (grid[holed] == GRID).all()

    x2 = tell('super_resolution')['cond']
    assert (
        valid[small][:, :8, :8].all()
        and not valid[small][:, 8:].any()
        and not valid[small][:, :, 8:].any()
    )
    np.testing.assert_allclose(conditioning['cond'][small][:, :16, :16], x2[small], atol=1e-6)
    assert not valid[labelled].any()
    np.testing.assert_array_equal(conditioning['label'][labelled], BATCH['label'][labelled])
    for row in np.flatnonzero(holed):
        assert 4 <= min(sides(~valid[row])) and max(sides(~valid[row])) <= 12
    np.testing.assert_array_equal(conditioning['cond'][holed], X[holed])
    assert (tell('super_resolution|inpaint|class', OTHER)['label_valid'] != labelled).any()


def test_bar_gives_a_text_to_the_rows_that_have_it():
    told = tell('super_resolution+text|class+text|edges')
    told_valid, count = told['cond_tokens_valid'], told['cond_tokens_valid'].sum(1)
    edges = ~told['label_valid'] & (told['cond_grid'] == GRID).all(1)
    assert 5 <= edges.sum() <= 18 and not told_valid[edges].any()
    np.testing.assert_array_equal(count[~edges], COUNT[~edges])
    np.testing.assert_array_equal(told['cond_tokens'][told_valid], BATCH['tokens'][told_valid])


def test_one_grid_needs_no_grid_of_its_own():
    assert tell('inpaint|edges').keys() == {'cond', 'cond_valid'}


# Losing the condition


def dropped(conditioning, rate, key=KEY, p=2):
    return jax.tree.map(np.asarray, drop(conditioning, key, rate, p=p, null_class=7))


@pytest.mark.parametrize('rate', [0.1, 0.5])
def test_drop_rate(rate):
    conditioning = {'label': jnp.zeros(10_000, jnp.int32)}
    lost = dropped(conditioning, rate)['label'] == 7
    assert lost.mean() == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / 10_000))
    assert (lost != (dropped(conditioning, rate, OTHER)['label'] == 7)).any()


def test_a_lost_row_is_exactly_the_null_and_the_others_are_as_they_were():
    conditioning = tell('inpaint+class+text')
    after = dropped(conditioning, 0.5)
    lost = after['label'] == 7  # there is no label 7 in the batch
    assert 5 < lost.sum() < 27
    np.testing.assert_array_equal(
        after['label'][lost], np.asarray(null(conditioning, 7)['label'])[lost]
    )
    assert not after['cond_valid'][lost].any() and not after['cond_tokens_valid'][lost].any()
    assert null({'cond_tokens': 0, 'cond_tokens_valid': 0}, 7) == {}
    for name in conditioning:
        np.testing.assert_array_equal(after[name][~lost], conditioning[name][~lost])
    assert (
        conditioning['cond_valid'].any(1).all() and (conditioning['label'] < 7).all()
    )  # the argument is not changed


def test_drop_gives_flags_to_a_condition_without():
    after = dropped(tell('super_resolution'), 0.5)
    assert after['cond_valid'].shape == (B, 64)
    assert set(after['cond_valid'].mean(1)) == {0.0, 1.0}


def test_a_rate_of_zero_loses_nothing():
    assert (dropped(tell('class'), 0.0)['label'] == BATCH['label']).all()


# Looking at a condition


def test_picture_is_none_without_an_image():
    assert picture({'label': np.zeros(2, int)}, 32) is None


def test_picture_has_grey_holes():
    conditioning = tell('inpaint')
    seen = np.asarray(picture(conditioning, 32))
    patches, truth = np.asarray(patchify(seen, 2)), np.asarray(patchify(X, 2))
    np.testing.assert_array_equal(
        patches, np.where(conditioning['cond_valid'][:, :, None], truth, 0)
    )


def test_picture_enlarges_without_blur():
    conditioning = tell('super_resolution')
    np.testing.assert_array_equal(
        picture(conditioning, 32), conditioning['cond'].repeat(2, 1).repeat(2, 2)
    )


def test_picture_of_rows_with_grids_of_their_own():
    conditioning = tell('super_resolution|inpaint')
    small = (conditioning['cond_grid'] == 8).all(1)
    seen = np.asarray(picture(conditioning, 32))
    np.testing.assert_array_equal(
        seen[small], conditioning['cond'][small][:, :16, :16].repeat(2, 1).repeat(2, 2)
    )
    patches = np.asarray(patchify(seen, 2))[~small]
    np.testing.assert_array_equal(
        patches,
        np.where(
            conditioning['cond_valid'][~small][:, :, None], np.asarray(patchify(X, 2))[~small], 0
        ),
    )


def test_kinds_are_in_the_docstring_of_the_config():
    assert all(re.fullmatch('[a-z_]+', kind) for kind in KINDS) and not {'none'} & set(
        conditions.KINDS
    )
