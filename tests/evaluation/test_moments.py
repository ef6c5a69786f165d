"""Moments of features that arrive in batches, and files of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jit_jax.errors import UserError
from jit_jax.evaluation import moments
from jit_jax.evaluation.moments import Moments


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=2, max_size=6),
    offset=st.sampled_from([0.0, -3.0, 1e6]),
    seed=st.integers(0, 2**32 - 1),
)
def test_streaming_and_merging_equal_one_shot(sizes, offset, seed):
    random = np.random.default_rng(seed)
    rows = random.standard_normal((sum(sizes) + 2, 4)) + offset
    batches = np.split(rows, np.cumsum(sizes))
    halves = Moments(4), Moments(4)
    for i, batch in enumerate(batches):
        weight = np.arange(len(batch) + 3) < len(batch)
        padded = np.concatenate([batch, np.full((3, 4), np.nan)])  # padding may contain anything
        halves[i % 2].update(padded, weight)
    halves[0].merge(halves[1])
    assert halves[0].count == len(rows)
    np.testing.assert_allclose(halves[0].mean, rows.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        halves[0].covariance, np.cov(rows, rowvar=False), rtol=1e-7, atol=1e-9
    )


def test_moments_refuse():
    some = Moments(3)
    with pytest.raises(ValueError, match='at least two rows'):
        _ = some.covariance
    with pytest.raises(ValueError, match=r'\[B, 3\]'):
        some.update(np.zeros((2, 4)))
    with pytest.raises(ValueError, match='0 or a 1'):
        some.update(np.zeros((2, 3)), weight=[0.5, 1])
    with pytest.raises(ValueError, match='0 or a 1'):
        some.update(np.zeros((2, 3)), weight=[1])
    with pytest.raises(ValueError, match='NaN'):
        some.update(np.full((2, 3), np.nan))
    assert some.count == 0


def test_one_host_is_every_host():
    some = Moments(2)
    some.update([[1.0, 2.0], [3.0, 5.0]])
    total = some.across_hosts()
    assert total.count == 2 and total is not some
    np.testing.assert_array_equal(total.covariance, [[2, 3], [3, 4.5]])


def test_stats_round_trip(tmp_path):
    path = tmp_path / 'reference.npz'
    mu, sigma = np.arange(3.0), np.diag([1.0, 2.0, 3.0])
    moments.save_stats(path, mu, sigma)
    loaded = moments.load_stats(path)
    np.testing.assert_array_equal(loaded[0], mu)
    np.testing.assert_array_equal(loaded[1], sigma)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    'arrays, message',
    [
        ({'arr_0': np.zeros(2)}, 'no arrays `mu` and `sigma`; it holds arr_0'),
        ({'mu': np.zeros(3), 'sigma': np.eye(2)}, r'sigma \[D, D\]'),
        ({'mu': np.full(2, np.nan), 'sigma': np.eye(2)}, 'NaN'),
        ({'mu': np.array([{}, {}]), 'sigma': np.eye(2)}, 'plain arrays'),
    ],
)
def test_stats_that_are_no_stats(tmp_path, arrays, message):
    path = tmp_path / 'reference.npz'
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message):
        moments.load_stats(path)


def test_stats_that_are_no_npz(tmp_path):
    with pytest.raises(UserError, match='no reference statistics'):
        moments.load_stats(tmp_path / 'absent.npz')
    (tmp_path / 'damaged.npz').write_bytes(b'PK damaged')
    np.save(tmp_path / 'array.npy', np.zeros(2))
    for name in ('damaged.npz', 'array.npy'):
        with pytest.raises(ValueError, match='not a readable .npz'):
            moments.load_stats(tmp_path / name)
