"""Maps of class numbers become pictures, in training and in sampling alike."""

import numpy as np
import pytest
from pictures import encode, refused, write
from PIL import Image

from jit_jax import data
from jit_jax.data import palette
from jit_jax.errors import UserError

MAP = np.random.default_rng(0).integers(0, 12, (32, 32), np.uint8).repeat(2, 0).repeat(2, 1)
COLORS = palette.voc_colors()


def test_the_colours_are_those_of_pascal_voc_and_no_two_are_alike():
    named = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 8: (64, 0, 0), 10: (64, 128, 0)}
    named |= {11: (192, 128, 0), 15: (192, 128, 128), 255: (224, 224, 192)}
    for number, color in named.items():
        assert tuple(COLORS[number]) == color
    assert len(np.unique(COLORS, axis=0)) == 256


def test_any_way_to_save_the_numbers_gives_the_same_picture():
    own = Image.fromarray(MAP)
    own.putpalette(list(range(256)) * 3)  # a file may have colours of its own: the numbers count
    for image in (Image.fromarray(MAP), own, Image.fromarray(np.stack([MAP] * 3, -1))):
        np.testing.assert_array_equal(np.asarray(palette.paint(image)), COLORS[MAP])
    wide = Image.fromarray(MAP.astype(np.uint16))
    np.testing.assert_array_equal(np.asarray(palette.paint(wide)), COLORS[MAP])


def test_what_is_no_map_is_refused():
    with pytest.raises(
        ValueError, match='colours, not numbers of classes; leave --config.data.pal'
    ):
        palette.paint(Image.fromarray(np.random.default_rng(0).integers(0, 9, (4, 4, 3), np.uint8)))
    with pytest.raises(ValueError, match='from 0 to 255'):
        palette.paint(Image.fromarray(np.full((4, 4), 300, np.uint16)))


@pytest.fixture
def folder(tmp_path):
    files = {f'target/{i}.png': encode(np.full((64, 64, 3), 9 * i, np.uint8)) for i in range(6)}
    files |= {f'cond/{i}.png': encode(np.roll(MAP, i, 0)) for i in range(6)}
    return write(tmp_path, files)


def test_pairs_have_classes_in_colours_that_scaling_does_not_mix(folder):
    source = data.open_source('pairs', path=folder, split='train', image_size=32, palette='voc')
    for i in range(len(source)):
        cond = source[i]['cond']
        assert (cond.reshape(-1, 1, 3) == COLORS[:12]).all(-1).any(-1).all()
        assert len(np.unique(cond.reshape(-1, 3), axis=0)) == 12
        assert source[i]['image'][0, 0, 0] == 9 * i  # a target is a picture as ever
    plain = data.open_source('pairs', path=folder, split='train', image_size=32)
    assert plain[0]['cond'].max() <= 11


def test_a_condition_to_sample_with_looks_as_in_training(folder):
    image, opaque = data.condition_image(folder / 'cond/0.png', 3, 'voc')
    np.testing.assert_array_equal(image, COLORS[MAP])
    assert opaque.all() and opaque.shape == MAP.shape
    source = data.open_source('pairs', path=folder, split='train', image_size=64, palette='voc')
    np.testing.assert_array_equal(source[0]['cond'], image)
    with pytest.raises(UserError, match='colours, not numbers of classes'):
        write(
            folder, {'photo.png': encode(np.random.default_rng(0).integers(0, 9, (4, 4, 3), 'u1'))}
        )
        data.condition_image(folder / 'photo.png', 3, 'voc')


def test_photographs_with_a_palette_are_refused_at_once(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    files = {f'{side}/{i}.png': encode(colours) for side in ('target', 'cond') for i in range(3)}
    write(tmp_path, files)
    match = 'tried can be read.*colours, not numbers of classes; leave --config.data.palette out'
    refused(match, 'pairs', path=tmp_path, palette='voc')
