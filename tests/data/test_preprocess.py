"""What a person sees: odd files, and the crop, as the square that a model is shown."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import RGB, encode, pixels, png_header
from PIL import Image

from jit_jax import data
from jit_jax.data import preprocess
from jit_jax.errors import UserError

GOLDENS = Path(__file__).parents[1] / 'goldens'


def test_center_crop_equals_the_published_one():
    golden = np.load(GOLDENS / 'center_crop.npz')
    cases = [key[3:] for key in golden if key.startswith('in_')]
    assert cases
    for case in cases:
        crop = data.center_crop(Image.fromarray(golden[f'in_{case}']), int(golden[f'size_{case}']))
        np.testing.assert_array_equal(crop, golden[f'out_{case}'])


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(0, 255))
@settings(max_examples=50, deadline=None)
def test_center_crop_is_square_and_keeps_a_flat_color(width, height, size, level):
    crop = data.center_crop(Image.new('RGB', (width, height), (level, 7, 9)), size)
    np.testing.assert_array_equal(crop, np.full((size, size, 3), (level, 7, 9)))


@pytest.mark.parametrize('format', ['PNG', 'BMP', 'TIFF', 'GIF', 'WEBP', 'JPEG'])
def test_formats_and_paths(tmp_path, format):
    image = Image.fromarray(RGB).quantize(64) if format == 'GIF' else Image.fromarray(RGB)
    encoded = encode(image, format, **({'lossless': True} if format == 'WEBP' else {}))
    (tmp_path / 'image').write_bytes(encoded)
    np.testing.assert_array_equal(pixels(encoded), pixels(tmp_path / 'image'))
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert('RGB'))
    np.testing.assert_array_equal(pixels(encoded), expected)
    assert format in ('GIF', 'JPEG') or (expected == RGB).all()


@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'TIFF', 'WEBP'])
@pytest.mark.parametrize(
    ('orientation', 'upright'),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].swapaxes(0, 1)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_rotated_by_exif(format, orientation, upright):
    plain, exif = encode(RGB, format), Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(pixels(encode(RGB, format, exif=exif)), upright(pixels(plain)))


def test_palettes():
    palette = Image.fromarray(RGB).quantize(16)
    expected = np.asarray(palette.convert('RGB')).copy()
    np.testing.assert_array_equal(pixels(encode(palette)), expected)
    clear = palette.getpixel((0, 0))
    expected[np.asarray(palette) == clear] = 255
    for format in ('PNG', 'GIF'):
        np.testing.assert_array_equal(pixels(encode(palette, format, transparency=clear)), expected)
    half = bytes(128 if i == clear else 255 for i in range(16))
    expected[np.asarray(palette) == clear] = np.round(
        (127 * 255 + 128 * np.array(palette.getpalette()[:48]).reshape(16, 3)[clear]) / 255
    )
    np.testing.assert_allclose(
        pixels(encode(palette, transparency=half)).astype(int), expected, atol=1
    )


def test_alpha_lies_on_white():
    alpha = np.linspace(0, 255, RGB.shape[1]).astype(np.uint8)[None].repeat(RGB.shape[0], 0)
    blend = 255 + (RGB.astype(float) - 255) * alpha[..., None] / 255
    np.testing.assert_allclose(pixels(encode(np.dstack([RGB, alpha]))), blend, atol=1)
    gray = Image.merge('LA', [Image.fromarray(RGB[..., 0]), Image.fromarray(alpha)])
    np.testing.assert_allclose(pixels(encode(gray)), blend[..., :1].repeat(3, -1), atol=1)
    color = tuple(int(c) for c in RGB[0, 0])  # one color declared transparent
    expected = np.where((RGB == color).all(-1, keepdims=True), 255, RGB)
    np.testing.assert_array_equal(pixels(encode(RGB, transparency=color)), expected)
    level = int(RGB[0, 0, 0])
    expected = np.where(RGB[..., :1] == level, 255, RGB[..., :1]).repeat(3, -1)
    np.testing.assert_array_equal(pixels(encode(RGB[..., 0], transparency=level)), expected)


def test_cmyk_inverted_or_not():
    cmyk = Image.new('CMYK', (16, 16), (255, 0, 0, 0))  # cyan
    for format in ('JPEG', 'TIFF'):
        encoded = encode(cmyk, format)
        assert format == 'TIFF' or b'Adobe' in encoded  # so its samples are stored inverted
        np.testing.assert_allclose(pixels(encoded)[8, 8], (0, 255, 255), atol=3)


@pytest.mark.parametrize('format', ['PNG', 'TIFF'])
def test_sixteen_bits_are_scaled(format):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.round(ramp.astype(float) / 65535 * 255)
    np.testing.assert_array_equal(pixels(encode(ramp, format)), expected[..., None].repeat(3, -1))


def test_gray_and_black_and_white():
    gray = RGB[..., 0]
    np.testing.assert_array_equal(pixels(encode(gray)), gray[..., None].repeat(3, -1))
    np.testing.assert_array_equal(
        pixels(encode(Image.fromarray(gray > 127))), ((gray > 127) * 255)[..., None].repeat(3, -1)
    )


def test_the_first_frame_of_an_animation():
    frames = [Image.new('L', (8, 8), level) for level in (10, 200)]
    for format in ('GIF', 'PNG', 'WEBP'):
        encoded = encode(frames[0], format, save_all=True, append_images=frames[1:])
        np.testing.assert_allclose(pixels(encoded), 10, atol=2)


def test_float_pixels_have_no_range():
    with pytest.raises(ValueError, match='8 or 16 bits'):
        data.decode(encode(np.ones((8, 8), np.float32), 'TIFF'))


FULL = [encode(RGB, f) for f in ('PNG', 'BMP', 'TIFF', 'GIF', 'WEBP', 'JPEG')] + [
    encode(RGB, 'JPEG', progressive=True)
]


@pytest.mark.filterwarnings('ignore::UserWarning')
@given(st.sampled_from(FULL), st.floats(0, 1, exclude_max=True))
@settings(max_examples=150, deadline=None)
def test_a_truncated_file_is_an_error_or_whole(encoded, share):
    """Never a picture with a gray lower half."""
    try:
        partial = pixels(encoded[: int(share * len(encoded))])
    except (OSError, SyntaxError, ValueError, EOFError):
        return
    np.testing.assert_array_equal(partial, pixels(encoded))


@pytest.mark.parametrize('channels', [1, 3])
def test_a_condition_has_the_pixels_of_training(tmp_path, channels):
    """Each odd file, square so that training neither crops nor scales it."""
    square = RGB[:30, :30]
    ramp = np.arange(900, dtype=np.uint16).reshape(30, 30) * 72
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = Image.fromarray(square).quantize(16)
    alpha = np.dstack(
        [square, np.where(np.arange(30) < 15, 128, 255).astype(np.uint8)[None].repeat(30, 0)]
    )
    files = {
        'rgb.png': encode(square),
        'gray.png': encode(square[..., 0]),
        'bits.png': encode(Image.fromarray(square[..., 0] > 127)),
        'sixteen.png': encode(ramp),
        'sixteen.tif': encode(ramp, 'TIFF'),
        'turned.jpg': encode(square, 'JPEG', exif=exif),
        'palette.png': encode(palette, transparency=palette.getpixel((0, 0))),
        'alpha.png': encode(alpha),
        'cmyk.jpg': encode(Image.fromarray(square).convert('CMYK'), 'JPEG'),
    }
    for name in files:
        (tmp_path / name).write_bytes(files[name])
        image, opaque = data.condition_image(tmp_path / name, channels)
        assert image.dtype == np.uint8 and image.shape == (30, 30, channels)
        np.testing.assert_array_equal(image, preprocess.to_array(files[name], 30, channels), name)
        assert opaque.dtype == bool and opaque.shape == (30, 30)
        assert opaque.all() == (name not in ('palette.png', 'alpha.png'))
    opaque = data.condition_image(files['alpha.png'], channels)[1]
    np.testing.assert_array_equal(opaque, alpha[..., 3] == 255)
    opaque = data.condition_image(files['palette.png'], channels)[1]
    np.testing.assert_array_equal(opaque, np.asarray(palette) != palette.getpixel((0, 0)))


def test_a_condition_is_neither_cropped_nor_scaled():
    image, opaque = data.condition_image(encode(RGB), 3)
    np.testing.assert_array_equal(image, RGB)
    assert opaque.shape == RGB.shape[:2]


REFUSED = {
    'cannot identify': b'<html>',
    'truncated|broken': encode(RGB)[:200],
    'more than 178,956,970 pixels': png_header(20000, 20000),
    '8 or 16 bits': encode(np.ones((8, 8), np.float32), 'TIFF'),
}


@pytest.mark.parametrize(('reason', 'content'), REFUSED.items(), ids=REFUSED)
def test_refused_conditions(tmp_path, reason, content):
    (tmp_path / 'c.png').write_bytes(content)
    with pytest.raises(UserError, match=f'c.png cannot be read as an image .*({reason})') as error:
        data.condition_image(tmp_path / 'c.png', 3)
    assert '\n' not in str(error.value) and str(error.value).startswith(str(tmp_path))
    with pytest.raises(UserError, match='There is no file .*d.png'):
        data.condition_image(tmp_path / 'd.png', 3)


def test_pil_images_are_decoded_and_left_as_they_are():
    image = Image.fromarray(np.dstack([RGB, np.zeros(RGB.shape[:2], np.uint8)]))
    assert (np.asarray(data.decode(image)) == 255).all() and image.mode == 'RGBA'
