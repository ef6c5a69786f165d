"""Pictures of any size at the size that a model takes."""

import numpy as np
import pytest
from PIL import Image

from jit_jax.data import center_crop
from jit_jax.data.fitting import fitted

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8))


def test_a_square_is_the_crop_of_training():
    found = fitted(PICTURE, 16, 16, 'crop')
    np.testing.assert_array_equal(found, center_crop(PICTURE, 16))


def test_what_has_the_size_stays_as_it_is():
    assert (
        fitted(PICTURE, 50, 30, 'crop') is PICTURE and fitted(PICTURE, 50, 30, 'resize') is PICTURE
    )


def test_a_crop_loses_the_sides_and_a_resize_nothing():
    marked = np.zeros((20, 60, 3), np.uint8)
    marked[:, :20] = 255  # the left third
    marked = Image.fromarray(marked)
    assert np.asarray(fitted(marked, 20, 20, 'crop')).max() < 60
    squeezed = np.asarray(fitted(marked, 18, 20, 'resize'))
    assert squeezed.shape == (20, 18, 3) and squeezed[:, :5].min() > 200
    assert fitted(marked, 40, 20, 'crop').size == (40, 20)


def test_nearest_makes_no_new_colours():
    two = Image.fromarray(np.random.default_rng(1).choice([0, 255], (30, 50)).astype(np.uint8))
    for how in ('crop', 'resize'):
        assert set(np.unique(fitted(two, 16, 16, how, nearest=True))) == {0, 255}


def test_a_line_of_pixels_is_refused():
    with pytest.raises(ValueError, match='shows nothing'):
        fitted(Image.new('RGB', (50, 1)), 16, 16, 'crop')
