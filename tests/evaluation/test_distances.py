"""Distances and scores of features, against numbers worked by hand and torch-fidelity's."""

import numpy as np
import pytest
from measuring import GOLDENS

from jit_jax.evaluation import distances


@pytest.fixture(scope='module')
def golden():
    with np.load(GOLDENS / 'inception.npz') as file:
        return dict(file)


def stats(rows):
    return rows.mean(0), np.cov(rows, rowvar=False)


def test_frechet_agrees_with_torch_fidelity(golden):
    found = distances.frechet(*stats(golden['fid_x']), *stats(golden['fid_y']))
    assert found == pytest.approx(golden['fid_value'], rel=1e-4)


def test_frechet_by_hand():
    assert distances.frechet([0], [[1]], [3], [[4]]) == pytest.approx(10)  # 3² + (1 − 2)²
    diagonal = distances.frechet([0, 1], np.diag([4, 9]), [0, 0], np.diag([1, 0]))
    assert diagonal == pytest.approx(1 + (2 - 1) ** 2 + 9)


def test_frechet_of_fewer_rows_than_features():
    """Against the nuclear norm of AᵀB, where Σ₁ = AAᵀ and Σ₂ = BBᵀ: the same in another form."""
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, 9, 40))
    a, b = ((rows - rows.mean(0)).T / np.sqrt(8) for rows in (x, y))
    expected = (
        ((x.mean(0) - y.mean(0)) ** 2).sum()
        + (a**2).sum()
        + (b**2).sum()
        - 2 * np.linalg.norm(a.T @ b, 'nuc')
    )
    assert distances.frechet(*stats(x), *stats(y)) == pytest.approx(expected, rel=1e-6)
    assert distances.frechet(*stats(x), *stats(x)) == pytest.approx(0, abs=1e-5)


def test_frechet_refuses():
    with pytest.raises(ValueError, match='2 and 3 features'):
        distances.frechet(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))
    with pytest.raises(ValueError, match=r'sigma \[D, D\]'):
        distances.frechet(np.zeros(2), np.eye(3), np.zeros(2), np.eye(2))


def test_inception_score_agrees_with_torch_fidelity(golden):
    found = distances.inception_score(golden['isc_logits'])
    np.testing.assert_allclose(found, [golden['isc_mean'], golden['isc_std']], rtol=1e-4)


def test_inception_score_by_hand():
    assert distances.inception_score(np.zeros((20, 7)), splits=2) == pytest.approx((1, 0))
    certain = 1e4 * np.eye(6)[[0, 1, 2, 3, 4] * 4]  # the sixth class has probability exactly 0
    assert distances.inception_score(certain, splits=4) == pytest.approx((5, 0))
    with pytest.raises(ValueError, match='at least 10'):
        distances.inception_score(np.zeros((9, 7)))


def test_kid_by_hand():
    # k(a, b) = (ab + 1)³: within {0, 1} it is 1, within {0, 2} it is 1, and across it is
    # 1, 1, 1 and 27, or 7.5 on average.
    found = distances.kid(np.array([[0], [1]]), np.array([[0], [2]]), subsets=3, subset_size=2)
    assert found == pytest.approx((1 + 1 - 2 * 7.5, 0))


def test_kid_by_loops():
    random = np.random.default_rng(1)
    x, y = random.standard_normal((2, 6, 5)).astype(np.float32)

    def kernel(a, b):
        return (float(a @ b) / 5 + 1) ** 3

    pairs = [(i, j) for i in range(6) for j in range(6)]
    within = sum(kernel(z[i], z[j]) for z in (x, y) for i, j in pairs if i != j) / 30
    expected = within - 2 * sum(kernel(x[i], y[j]) for i, j in pairs) / 36
    assert distances.kid(x, y, subsets=2, subset_size=6)[0] == pytest.approx(expected, rel=1e-5)


def test_kid_subsets_follow_the_seed():
    x, y = np.random.default_rng(2).standard_normal((2, 50, 3))
    few = {'subsets': 5, 'subset_size': 10}
    assert (
        distances.kid(x, y, seed=1, **few)
        == distances.kid(x, y, seed=1, **few)
        != distances.kid(x, y, seed=2, **few)
    )
    with pytest.raises(ValueError, match='at least 60'):
        distances.kid(x, y, subset_size=60)


def test_precision_recall_by_hand():
    # k = 1: balls of the real [−1, 1], [0, 2], [1, 5], [3, 11];
    # of the fake [19, 21], [20, 22], [0.2, 1.2], [0.7, 1.7].
    real, fake = np.array([[0], [1], [3], [7]]), np.array([[20], [21], [0.7], [1.2]])
    assert distances.precision_recall(real, fake, k=1) == (0.5, 0.25)
    with pytest.raises(ValueError, match='at least 5'):
        distances.precision_recall(real, fake, k=4)


@pytest.mark.parametrize('offset', [0, 1000])
def test_precision_recall_by_loops(monkeypatch, offset):
    monkeypatch.setattr(distances, '_ROWS', 16)
    random = np.random.default_rng(3)
    real = random.standard_normal((40, 4)) + offset
    fake = 0.7 * random.standard_normal((32, 4)) + 1.2 + offset

    def share(rows, centres):
        radius = [sorted(np.linalg.norm(c - other) for other in centres)[3] for c in centres]
        return np.mean(
            [any(np.linalg.norm(row - c) <= r for c, r in zip(centres, radius)) for row in rows]
        )

    expected = share(fake, real), share(real, fake)
    assert 0.1 < min(expected) and max(expected) < 0.99  # or the example would show little
    assert distances.precision_recall(real, fake) == pytest.approx(expected)
