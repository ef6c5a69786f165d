"""Images against the truth, worked out by hand and by loops."""

import numpy as np
import pytest

from jit_jax.evaluation import image_scores
from jit_jax.evaluation.image_scores import TruthMetric


def noise(shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_psnr_by_hand():
    a = np.zeros((2, 4, 4, 3), np.uint8)
    b = a.copy()
    b[1] += 10
    assert image_scores.psnr(a, b) == pytest.approx([np.inf, 20 * np.log10(255 / 10)])
    assert image_scores.psnr(b, a)[1] == image_scores.psnr(a, b)[1]  # no difference wraps round


def test_ssim_of_one_window_by_the_formula():
    """An image of 11 × 11 pixels has one whole window."""
    a, b = noise((1, 11, 11, 1)), noise((1, 11, 11, 1), 1)
    window = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(window, window) / window.sum() ** 2
    x, y = a[0, ..., 0].astype(float), b[0, ..., 0].astype(float)
    mean_x, mean_y = (window * x).sum(), (window * y).sum()
    covariance = (window * (x - mean_x) * (y - mean_y)).sum()
    variances = (window * (x - mean_x) ** 2).sum() + (window * (y - mean_y) ** 2).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    expected /= (mean_x**2 + mean_y**2 + c1) * (variances + c2)
    assert float(image_scores.ssim(a, b)[0]) == pytest.approx(expected, rel=1e-4)
    assert float(image_scores.ssim(a, a)[0]) == pytest.approx(1)


def test_a_hole_is_filled_with_the_mean_of_the_rest():
    image = np.full((1, 32, 32, 3), 0.5, np.float32)
    image[:, :16] = -0.25
    valid = np.ones((1, 16, 16), bool)
    valid[:, :, 8:] = False
    image[:, :, 16:] = 9  # what lies in the hole is never read
    guess = image_scores.guess({'cond': image, 'cond_valid': valid.reshape(1, 256)}, 32)
    np.testing.assert_array_equal(guess[:, :, :16], image[:, :, :16])
    np.testing.assert_allclose(guess[:, :, 16:], 0.125, atol=1e-6)


def test_a_small_condition_is_enlarged():
    small = np.linspace(-1, 1, 16, dtype=np.float32)[None, :, None, None]
    small = np.broadcast_to(small, (1, 16, 16, 3))
    guess = image_scores.guess({'cond': small}, 32)
    assert guess.shape == (1, 32, 32, 3)
    assert (np.diff(guess[0, :, 0, 0]) > 0).all() and guess[0, 16, 0, 0] == pytest.approx(
        0.033, abs=0.01
    )


def test_means_are_over_all_images():
    """Of parts of different sizes, and with the guess beside them."""
    truth = noise((3, 32, 32, 3))
    images = truth.copy()
    images[0] = 255 - images[0]
    images[1:] ^= 8
    conditioning = {'cond': truth[:, ::2, ::2].astype(np.float32) / 127.5 - 1}
    metric = TruthMetric(32)
    for rows in (slice(0, 1), slice(1, 3)):
        part = {'cond': conditioning['cond'][rows]}
        metric.update(images[rows], part, truth[rows])
    found = metric.compute()
    assert found.keys() == {'psnr', 'ssim', 'psnr_baseline', 'ssim_baseline'}
    assert found['psnr'] == pytest.approx(image_scores.psnr(images, truth).mean())
    metric.reset()
    metric.update(truth, conditioning, truth)
    assert metric.compute()['psnr'] == np.inf
    assert metric.compute()['psnr_baseline'] == pytest.approx(found['psnr_baseline'])
