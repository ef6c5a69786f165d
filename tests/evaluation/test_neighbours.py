"""Whether samples are copies."""

import numpy as np
import pytest

from jit_jax.evaluation import neighbours


def test_copies_are_found_and_others_are_not():
    random = np.random.default_rng(0)

    def image(n):
        return random.integers(0, 256, (n, 32, 32, 3), np.uint8)

    train, held_out = image(40), image(300)
    samples = np.concatenate(
        [image(3), train[7:8], np.clip(train[11:12].astype(int) + 1, 0, 255).astype(np.uint8)]
    )
    words, grid = neighbours.nearest(samples, train, held_out)
    assert words.startswith('Perhaps copies: 2 of 5 samples are closer to a training image')
    assert 'by chance it would be 0.017.' in words and '(0.0)' in words
    others, _ = neighbours.nearest(samples[:3], train, held_out)
    assert others.startswith('No copies: 0 of 3 samples are closer')
    few, _ = neighbours.nearest(samples, train, held_out[:49])
    assert few.startswith('Too few images are held out (49, fewer than 50) to tell copies by: 2 of')
    np.testing.assert_array_equal(grid[25:121:3, 6:102:3], train[7])  # the closest: the copy,
    np.testing.assert_array_equal(grid[25:121:3, 106:202:3], train[7])  # and what it is a copy of
    d = neighbours.distances(samples, train)

    def small(x):
        return x.astype(float).reshape(16, 2, 16, 2, 3).mean((1, 3))

    assert d[0, 0] == pytest.approx(
        np.sqrt(np.mean((small(samples[0]) - small(train[0])) ** 2)), rel=1e-4
    )


def test_without_held_out_images_the_distances_are_still_there():
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    sentences, grid = neighbours.nearest(images[:2], images, None)
    assert sentences.startswith('Distance to the nearest of 6 training images')
    assert 'samples 0.0 (0.0);' in sentences and 'held-out' not in sentences
    assert grid.shape == (6 + 19 + 96 + 6, 6 + 2 * (4 * 100 - 4) + 18 + 6, 3)
