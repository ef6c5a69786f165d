"""Features gathered over a mesh, with Inception's network or a fast one in its place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from measuring import mesh

from jit_jax import data
from jit_jax.errors import UserError
from jit_jax.evaluation import distances, inception_scores
from jit_jax.evaluation.inception_scores import WIDTH, InceptionMetric
from jit_jax.evaluation.reference import Statistics


@jax.jit
def fast(images) -> dict:
    """Features that depend on the image alone, for when Inception itself is not the matter."""
    flat = images.reshape(len(images), -1)[:, :64].astype(jnp.float32) / 255
    return {'2048': jnp.tile(flat, (1, WIDTH // 64)), 'logits_unbiased': flat}


def images(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def test_rows_at_a_time_play_no_part():
    real, generated = images(13, 0), images(11, 1)
    found = []
    for rows in (8, 16):
        names = ['is', 'kid', 'precision_recall']
        metric = InceptionMetric(names, fast, [data.from_arrays(real)], mesh(8), rows=rows)
        metric.update(generated[:3], {}, None)
        metric.update(generated[3:], {}, None)
        found.append(metric.compute())
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    features = [np.asarray(fast(x)['2048']) for x in (real, generated)]
    # Every image counts in a subset, and not only those of one process or part.
    assert found[0]['kid'] == pytest.approx(distances.kid(*features, subset_size=11)[0], rel=1e-5)


def test_statistics_of_a_reference_are_kept_and_serve_as_one(tmp_path, monkeypatch):
    cache = str(tmp_path / 'reference.npz')

    def metric(reference):
        return InceptionMetric(['fid'], fast, reference, mesh(8), rows=8, cache=cache)

    sources = [data.from_arrays(images(12, 0))]
    first, _ = metric(sources).real()
    monkeypatch.setattr(inception_scores.data, 'eval_batches', None)  # nobody reads images again
    for reference in (sources, first):
        again, _ = metric(reference).real()
        np.testing.assert_array_equal(again.mean, first.mean)
        np.testing.assert_array_equal(again.covariance, first.covariance)


def test_kept_statistics_that_do_not_fit_are_learnt_again(tmp_path):
    cache = tmp_path / 'reference.npz'
    sources = [data.from_arrays(images(12, 0))]
    for content in (b'torn', None):
        if content:
            cache.write_bytes(content)
        else:
            np.savez(cache, mu=np.zeros(3), sigma=np.eye(3))
        metric = InceptionMetric(['fid'], fast, sources, mesh(8), rows=8, cache=str(cache))
        assert metric.real()[0].mean.shape == (WIDTH,)
        with np.load(cache) as kept:
            np.testing.assert_array_equal(kept['mu'], metric.real()[0].mean)


def test_statistics_of_another_network_are_refused():
    reference = Statistics(np.zeros(3), np.eye(3))
    with pytest.raises(UserError, match='--reference holds statistics of 3 features.*has 2048'):
        InceptionMetric(['fid'], fast, reference, mesh(8), rows=8)
