"""The classifier on images that anyone can tell apart."""

import numpy as np
import pytest

from jit_jax import data
from jit_jax.evaluation import classifier, judges
from jit_jax.evaluation.classifier import ClassifierMetric, evenly_spread


def halves(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise that is bright above (class 0) or below (class 1)."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 60, (count, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(count) % 2
    images[labels == 0, :8] += 180
    images[labels == 1, 8:] += 180
    return images, labels


@pytest.fixture(scope='module')
def metric():
    train, test = halves(60, 0), halves(40, 1)
    return ClassifierMetric(data.from_arrays(*train), data.from_arrays(*test))


def test_what_is_of_the_data_is_readable_and_near(metric):
    metric.reset()
    images, _ = halves(40, 2)
    metric.update(images[:15], {}, None)
    metric.update(images[15:], {}, None)
    near = metric.compute()
    for name in ('readable', 'readable_logistic', 'readable_knn', 'readable_svc'):
        assert near[name] == near[f'{name}_held_out'] == 1
    assert near['classifier_distance'] < 3 * near['classifier_distance_train'] + 1
    metric.reset()
    metric.update(np.full((40, 16, 16, 3), 120, np.uint8), {}, None)
    far = metric.compute()
    assert far['classifier_distance'] > 10 * near['classifier_distance']
    assert far['readable_held_out'] == near['readable_held_out']
    assert far['readable_svc'] == 0


def test_judges_need_a_few_classes_with_images_enough():
    _, labels = halves(20, 0)
    assert judges.fits(labels) and not judges.fits(labels[:6])
    assert not judges.fits(np.zeros(20, int)) and not judges.fits(np.arange(400) // 5)


def test_pairs_are_coupled_into_the_probabilities_that_they_came_from():
    p = np.random.default_rng(0).dirichlet(np.ones(4), 5)
    wins = p[:, :, None] / (p[:, :, None] + p[:, None])
    wins[:, range(4), range(4)] = 0
    np.testing.assert_allclose(judges.coupled(wins), p, atol=1e-9)
    undecided = np.full((1, 3, 3), 0.5) * (1 - np.eye(3))
    np.testing.assert_allclose(judges.coupled(undecided), np.full((1, 3), 1 / 3))


def test_judges_see_the_means_of_squares():
    images = np.zeros((1, 16, 32, 3), np.uint8)
    images[0, 2:4, 4:8] = 255, 0, 0
    seen = np.zeros((8, 8))
    seen[1, 1] = 1 / 3
    np.testing.assert_allclose(judges.pixels(images)[0].reshape(8, 8), seen)


def test_examples_are_spread_over_the_whole_source(monkeypatch):
    monkeypatch.setattr(classifier, 'AT_MOST', 3)
    images, labels = halves(9, 0)
    found, numbers = evenly_spread(data.from_arrays(images, labels))
    np.testing.assert_array_equal(found, images[[0, 4, 8]])
    np.testing.assert_array_equal(numbers, labels[[0, 4, 8]])
