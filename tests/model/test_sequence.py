import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jit_jax.model import sequence
from jit_jax.model.sequence import (
    COND,
    GRID,
    SLOTS,
    TARGET,
    condition_grid,
    draw,
    patchify,
    place,
    slot_mask,
    unpatchify,
)

SUBSCRIPTS = str.maketrans('₀₁₂₃₄₅₆₇₈₉', '0123456789')
ROWS = {
    'uncond': (0, None),
    'partial': (64, None),
    'cond': (256, None),
    'class': (0, 32),
    'text': (16, None),
}  # condition patches or tokens, class tokens


def mask(n, tokens):
    cond = np.ones((1, n), bool) if n else None
    return np.array(slot_mask(1, cond, None if tokens is None else np.ones(1, bool), tokens or 0))


@pytest.mark.parametrize('row', ROWS)
def test_the_docstring_draws_the_mask(row):
    line = re.search(rf'^    {row} .*$', sequence.__doc__, re.M).group()
    numbers = [re.findall(r'[A-Z]([₀-₉]+)', side) for side in line.split('│')]
    cond, target = ([int(n.translate(SUBSCRIPTS)) + 1 for n in side] for side in numbers)
    valid = mask(*ROWS[row])
    assert valid.shape == (1, SLOTS)
    assert (
        valid[0, COND].sum() == (cond[-1] if cond else 0)
        and valid[0, TARGET].sum() == target[-1] == 256
    )
    assert not (np.diff(valid[0, COND].astype(int)) > 0).any()  # live slots first, as drawn


def test_the_docstring_numbers_the_slots():
    ends = [
        int(n)
        for n in re.findall(r'\d+', re.search(r'^    slot .*$', sequence.__doc__, re.M).group())
    ]
    assert (
        ends == [COND.start, COND.stop - 1, TARGET.start, TARGET.stop - 1] and SLOTS == ends[-1] + 1
    )


@pytest.mark.parametrize(
    'row, picture',
    [
        ('uncond', '················│████████████████'),
        ('partial', '████············│████████████████'),
        ('cond', '████████████████│████████████████'),
        ('class', '██··············│████████████████'),
        ('text', '█···············│████████████████'),
    ],
)
def test_draw(row, picture):
    assert draw(mask(*ROWS[row])) == picture


def test_draw_marks_a_run_that_is_live_in_part():
    valid = mask(64, None)
    valid[0, 5] = False
    assert draw(np.concatenate([valid, mask(0, None)])).split('\n') == [
        '▒███············│████████████████',
        '················│████████████████',
    ]


@given(st.sampled_from([0, 1, 64, 252]), st.sampled_from([0, 4]), st.integers(0, 2**32 - 1))
def test_slot_mask_row_by_row(n, tokens, seed):
    random = np.random.default_rng(seed)
    cond, label = random.random((3, n)) < 0.5, random.random(3) < 0.5
    valid = np.asarray(slot_mask(3, cond if n else None, label if tokens else None, tokens))
    for b in range(3):
        live = (
            set(np.flatnonzero(cond[b]))
            | (set(range(n, n + tokens)) if label[b] else set())
            | set(range(256, 512))
        )
        assert set(np.flatnonzero(valid[b])) == live


shapes = st.tuples(*(st.integers(1, 4) for _ in range(5)))


@given(shapes)
def test_patchify_is_rows_first_and_a_patch_is_row_column_channel(shape):
    B, h, w, p, C = shape
    image = np.arange(B * h * p * w * p * C).reshape(B, h * p, w * p, C)
    patches = patchify(image, p)
    assert patches.shape == (B, h * w, p * p * C)
    for i in range(h):
        for j in range(w):
            expected = image[:, i * p : (i + 1) * p, j * p : (j + 1) * p]
            np.testing.assert_array_equal(patches[:, i * w + j], expected.reshape(B, -1))


@given(shapes)
def test_unpatchify_undoes_patchify(shape):
    B, h, w, p, C = shape
    image = np.arange(B * h * p * w * p * C).reshape(B, h * p, w * p, C)
    np.testing.assert_array_equal(unpatchify(patchify(image, p), p, h, w), image)


@pytest.mark.parametrize('size, p', [(16, 1), (32, 2), (256, 16), (512, 32)])
def test_a_target_is_256_patches_at_every_resolution(size, p):
    assert sequence.patch_size(size) == p and (size // p) ** 2 == 256


@pytest.mark.parametrize('size', [0, 8, 20, 250, -16])
def test_an_image_size_that_is_not_16_patches_is_refused(size):
    with pytest.raises(ValueError, match=f'image_size.*{size}'):
        sequence.patch_size(size)


@pytest.mark.parametrize(
    'height, width, grid', [(2, 2, (1, 1)), (16, 16, (8, 8)), (32, 32, (16, 16)), (8, 32, (4, 16))]
)
def test_condition_grid(height, width, grid):
    assert condition_grid((5, height, width, 3), 2) == grid


@pytest.mark.parametrize('height, width', [(0, 2), (1, 2), (2, 3), (34, 2), (2, 64), (17, 16)])
def test_condition_grid_refuses_parts_of_patches_and_more_than_16(height, width):
    with pytest.raises(ValueError, match=rf'2×2 pixels.*got {height}×{width}'):
        condition_grid((5, height, width, 3), 2)


def test_place_of_a_full_grid_is_its_row_and_column():
    expected = [(row, col) for row in range(GRID) for col in range(GRID)]
    np.testing.assert_array_equal(place(16, 16), expected)


def test_place_of_a_small_grid_is_the_centre_of_what_it_covers():
    places = np.asarray(place(8, 4)).reshape(8, 4, 2)
    for i in range(8):
        for j in range(4):  # 2 rows and 4 columns of the target lie under each patch
            np.testing.assert_allclose(
                places[i, j], [np.mean([2 * i, 2 * i + 1]), np.mean(range(4 * j, 4 * j + 4))]
            )


def test_places_where_rows_have_grids_of_their_own():
    mixed = np.asarray(place(8, 16, np.array([[8, 16], [8, 8], [4, 2]]))).reshape(3, 8, 16, 2)
    for b, (h, w) in enumerate([(8, 16), (8, 8), (4, 2)]):  # each at the top left of the array
        np.testing.assert_array_equal(mixed[b, :h, :w].reshape(-1, 2), place(h, w))
