"""Seams that were drawn on purpose."""

import math

import numpy as np
import pytest

from jit_jax import data
from jit_jax.evaluation.seams import SeamsMetric, quotient, steps

RANDOM = np.random.default_rng(0)


def smooth(count: int) -> np.ndarray:
    """Ramps of random slopes and directions, uint8 [count, 64, 64, 3]: patches of 4 pixels."""
    across, down = RANDOM.uniform(0.3, 1.5, (2, count, 1, 1, 1))
    place = np.arange(64.0)
    ramps = 20 + across * place[:, None] + down * place[:, None, None] + np.zeros(3)
    return (ramps + RANDOM.uniform(0, 8, (count, 64, 64, 3))).astype(np.uint8)


def tinted(images: np.ndarray, by: float) -> np.ndarray:
    """Each patch brighter by an amount of its own, at most `by`."""
    amounts = RANDOM.uniform(0, by, (len(images), 16, 16, 1))
    return (images + amounts.repeat(4, 1).repeat(4, 2)).astype(np.uint8)


def test_a_known_seam_is_found_and_none_is_one():
    metric = SeamsMetric(data.from_arrays(smooth(20), np.zeros(20, int)))
    found = []
    for by in (0, 10, 40):
        metric.reset()
        images = tinted(smooth(20), by)
        metric.update(images[:5], {}, None)
        metric.update(images[5:], {}, None)
        found.append(metric.compute())
    none, faint, clear = (numbers['seams'] for numbers in found)
    assert none == pytest.approx(1, abs=0.02) and 1.05 < faint < clear and clear > 2
    for numbers in found:
        quotient_again = numbers['border_steps'] / numbers['border_steps_held_out']
        assert numbers['seams'] == pytest.approx(quotient_again)


def test_steps_by_hand():
    """32×32, patches of 2 pixels: one step of 3 across a border, one of 5 inside a patch."""
    images = np.zeros((1, 32, 32, 1), np.uint8)
    images[0, :, 2:] = 3
    images[0, :, 7:] = 8
    borders, insides = 2 * 32 * 15, 2 * 32 * 16
    np.testing.assert_array_equal(steps(images), [[32 * 3, borders], [32 * 5, insides]])
    assert quotient(steps(images)) == pytest.approx(3 / 15 / (5 / 16))
    assert quotient(steps(images.swapaxes(1, 2))) == pytest.approx(3 / 15 / (5 / 16))


def test_images_without_any_step_have_no_seam():
    assert quotient(steps(np.full((1, 32, 32, 3), 7, np.uint8))) == 1
    blocks = tinted(np.zeros((1, 64, 64, 3)), 200)
    assert quotient(steps(blocks)) == math.inf
