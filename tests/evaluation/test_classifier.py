"""The classifier on images that anyone can tell apart."""

import numpy as np
import pytest

from jit_jax import data
from jit_jax.evaluation import classifier
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
    assert near['readable'] == near['readable_held_out'] == 1
    assert near['classifier_distance'] < 3 * near['classifier_distance_train'] + 1
    metric.reset()
    metric.update(np.full((40, 16, 16, 3), 120, np.uint8), {}, None)
    far = metric.compute()
    assert far['classifier_distance'] > 10 * near['classifier_distance']
    assert far['readable_held_out'] == near['readable_held_out']


def test_examples_are_spread_over_the_whole_source(monkeypatch):
    monkeypatch.setattr(classifier, 'AT_MOST', 3)
    images, labels = halves(9, 0)
    found, numbers = evenly_spread(data.from_arrays(images, labels))
    np.testing.assert_array_equal(found, images[[0, 4, 8]])
    np.testing.assert_array_equal(numbers, labels[[0, 4, 8]])
