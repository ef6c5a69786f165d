"""Images as people see them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jit_jax.output import letters
from jit_jax.output.images import Places, across, cut, enlarged, grid, save_png, to_uint8
from jit_jax.output.letters import font, font_for


def test_to_uint8_inverts_the_scale_of_training():
    pixels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(pixels / np.float32(127.5) - 1), pixels)


@given(st.floats(-1, 1, width=32))
def test_to_uint8_is_the_nearest_level(x):
    exact = (x + 1) * 127.5
    assert abs(int(to_uint8(np.float32([x]))[0]) - exact) <= 0.5 + 1e-4


def test_to_uint8_clips():
    images = to_uint8(np.array([-math.inf, -1.5, -1, 1, 1.01, 300, math.inf]))
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, [0, 0, 0, 255, 255, 255, 255])


@given(
    st.integers(1, 7),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([40, 64, 96, 130]),
    st.sampled_from([1, 3]),
    st.booleans(),
    st.booleans(),
)
def test_every_image_is_in_the_grid_enlarged_and_in_its_place(N, K, columns, size, C, heads, named):
    groups = np.random.default_rng(0).integers(0, 255, (N, K, size, size, C), np.uint8)
    labels = {'heads': ['head'] * K if heads else [], 'captions': ['below'] * N if named else []}
    sheet = grid(groups, columns, **labels)
    factor = math.ceil(96 / size)
    shape = (N, K, factor * size, factor * size, C)
    place = Places(shape, columns, labels['heads'], (), labels['captions'])
    assert sheet.shape == (*place.size[::-1], 3) and sheet.dtype == np.uint8
    for i, group in enumerate(groups):
        for k, image in enumerate(group):
            left, top = place.image(i, k)
            tile = sheet[top : top + factor * size, left : left + factor * size]
            exact = np.broadcast_to(image, (size, size, 3))
            np.testing.assert_array_equal(tile[::factor, ::factor], exact)
            np.testing.assert_array_equal(tile, enlarged(tile[::factor, ::factor], factor * size))
            sheet[top : top + factor * size, left : left + factor * size] = 255
    assert (sheet.min() == 255) == (not heads and not named)  # no label lies on an image


def test_images_of_a_group_are_closer_than_groups():
    dark = np.zeros((4, 2, 96, 96, 3), np.uint8)
    sheet = grid(dark, 2)
    white = (sheet[50] == 255).all(-1)
    gaps = [len(run) for run in ''.join('w' if x else ' ' for x in white).split()]
    assert gaps == [6, 4, 18, 4, 6]
    single = grid(dark[:, 0], 2)
    assert single.shape == (6 + 96 + 4 + 96 + 6,) * 2 + (3,)


def test_labels_stand_where_they_belong():
    """Heads above the first row, row names at the left, captions below their group."""
    white = np.full((4, 96, 96, 3), 255, np.uint8)
    for labels, where in (
        ({'heads': ('one', 'two')}, np.s_[:26, :]),
        ({'rows': ('upper', 'lower')}, np.s_[:, :60]),
        ({'captions': ['', '', 'here', '']}, np.s_[-26:, : 6 + 96]),
    ):
        sheet = grid(white, 2, **labels)
        assert sheet[where].min() < 128, labels
        sheet[where] = 255
        assert sheet.min() == 255, labels


def test_a_letter_that_no_font_has_is_spelled(monkeypatch):
    """The fonts of this machine are asked first, and never are there empty boxes."""
    assert font_for('sıfır zéro семь', 13) == ('sıfır zéro семь', font(13))
    serif = letters._dejavu().replace('Sans', 'Serif')
    assert letters.system_fonts() and not any(
        'LastResort' in name for name in letters.system_fonts()
    )
    for fonts, expected in (([], ('a U+4E03 7', 'Sans')), ([serif], ('a U+4E03 7', 'Sans'))):
        monkeypatch.setattr(letters, 'system_fonts', lambda fonts=fonts: fonts)
        letters._font_with.cache_clear()
        text, face = font_for('a七7', 13)
        assert (text, face.getname()[0].split()[-1]) == expected
    text, face = font_for('a ˯', 13)  # which only the other has
    assert text == 'a ˯' and face.getname()[0] == 'DejaVu Serif'
    letters._font_with.cache_clear()
    white = np.full((1, 96, 96, 3), 255, np.uint8)
    shown = [grid(white, 1, captions=[caption]) for caption in ('七', 'U+4E03')]
    np.testing.assert_array_equal(*shown)


@given(st.text(max_size=40), st.integers(30, 200))
def test_a_label_that_is_too_long_is_cut(text, width):
    short, face = cut(text, 13, width)
    assert face.getlength(short) <= max(width, face.getlength('…'))
    drawn, _ = font_for(''.join(letter if letter.isprintable() else ' ' for letter in text), 13)
    assert short == drawn or (short.endswith('…') and drawn.startswith(short[:-1]))


def test_save_png_makes_folders_and_leaves_nothing_beside(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    for _ in range(2):  # the second time over the first
        save_png(str(tmp_path / 'a' / 'b.png'), image)
    np.testing.assert_array_equal(Image.open(tmp_path / 'a/b.png'), image)
    assert [path.name for path in (tmp_path / 'a').iterdir()] == ['b.png']


@pytest.mark.parametrize('N, K, columns', [(8, 3, 2), (16, 3, 3), (4, 2, 2), (1, 4, 1), (2, 1, 2)])
def test_a_grid_lies_on_its_side(N, K, columns):
    groups = np.zeros((N, K, 32, 32, 3), np.uint8)
    heads = ('a', 'b', 'c', 'd')[:K] if K > 1 else ()
    assert across(groups, heads) == columns
    height, width, _ = grid(groups, columns, heads=heads).shape
    assert width > height
    for full in (16, 36, 64):  # squares stay squares: no row is left with holes
        assert across(np.zeros((full, 32, 32, 3), np.uint8)) == full**0.5
