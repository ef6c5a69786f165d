"""Images as people see them."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jit_jax.output.images import grid, save_png, to_uint8


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
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([1, 3]),
    st.integers(0, 3),
)
def test_grid_geometry(N, columns, h, w, C, gap):
    images = np.random.default_rng(0).integers(0, 255, (N, h, w, C), np.uint8)  # never white
    sheet = grid(images, columns, gap)
    rows = math.ceil(N / columns)
    assert (
        sheet.shape == (rows * h + (rows + 1) * gap, columns * w + (columns + 1) * gap, 3)
        and sheet.dtype == np.uint8
    )
    for i, image in enumerate(images):
        top, left = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        np.testing.assert_array_equal(
            sheet[top : top + h, left : left + w], np.broadcast_to(image, (h, w, 3))
        )
    assert (sheet == 255).all(-1).sum() == sheet.shape[0] * sheet.shape[1] - N * h * w - (
        images == 255
    ).all(-1).sum()


def test_save_png_makes_folders_and_leaves_nothing_beside(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    for _ in range(2):  # the second time over the first
        save_png(str(tmp_path / 'a' / 'b.png'), image)
    np.testing.assert_array_equal(Image.open(tmp_path / 'a/b.png'), image)
    assert [path.name for path in (tmp_path / 'a').iterdir()] == ['b.png']
