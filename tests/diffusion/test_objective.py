import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jit_jax.diffusion.objective import Diffusion, add_noise, expand, sample_t, v_loss, velocity

D = Diffusion(noise_scale=2.0)
TIMES = np.array([0.0, 0.2, 0.5, 0.9, 0.96, 1.0], np.float32)  # the last two are inside the clamp


@pytest.fixture(scope='module')
def images():
    random = np.random.default_rng(0)
    return [random.standard_normal((len(TIMES), 4, 4, 3)).astype(np.float32) for _ in range(3)]


def test_published_numbers():
    assert (D.t_mean, D.t_std, D.t_eps) == (-0.8, 0.8, 0.05)


def test_add_noise_by_hand(images):
    x, e, _ = images
    z = add_noise(x, e, TIMES)
    for b, t in enumerate(TIMES):
        np.testing.assert_allclose(z[b], t * x[b] + (1 - t) * e[b], rtol=1e-6)
    np.testing.assert_array_equal(z[0], e[0])  # t = 0 is noise
    np.testing.assert_array_equal(z[-1], x[-1])  # t = 1 is clean


def test_velocity_by_hand_and_clamped(images):
    x, z, _ = images
    v = velocity(x, z, TIMES, D)
    for b, share in enumerate([1.0, 0.8, 0.5, 0.1, 0.05, 0.05]):
        np.testing.assert_allclose(v[b], (x[b] - z[b]) / share, rtol=2e-5)
    np.testing.assert_allclose(
        velocity(x, z, TIMES, Diffusion(2.0, t_eps=0.5))[-1], (x[-1] - z[-1]) / 0.5, rtol=1e-6
    )


def test_velocity_of_the_truth_is_the_straight_line(images):
    x, e, _ = images
    t = np.full(len(x), 0.3, np.float32)
    np.testing.assert_allclose(velocity(x, add_noise(x, e, t), t, D), x - e, atol=2e-6)


def test_v_loss_is_its_definition(images):
    x, e, x_hat = images
    z = np.asarray(add_noise(x, e, TIMES))
    loss = np.asarray(v_loss(x_hat, x, z, TIMES, D))
    for b, share in enumerate([1.0, 0.8, 0.5, 0.1, 0.05, 0.05]):
        error = (x_hat[b] - z[b]) / share - (x[b] - z[b]) / share
        assert loss[b] == pytest.approx(float(np.mean(error.astype(np.float64) ** 2)), rel=1e-4)


def test_v_loss_of_bfloat16_is_float32(images):
    x, z, x_hat = images
    loss = v_loss(jnp.asarray(x_hat, jnp.bfloat16), x, z, TIMES, D)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, v_loss(x_hat, x, z, TIMES, D), rtol=0.05)


def test_loss_and_gradient_stay_bounded_at_the_clean_end(images):
    x, e, x_hat = images
    t = np.ones(len(x), np.float32)
    loss, gradient = jax.value_and_grad(lambda h: v_loss(h, x, add_noise(x, e, t), t, D).sum())(
        x_hat
    )
    assert loss == pytest.approx(
        float(np.sum(np.mean((x_hat - x) ** 2, (1, 2, 3)))) / 0.05**2, rel=1e-4
    )
    assert np.isfinite(gradient).all()


def test_times_are_logit_normal():
    for mean, std in ((-0.8, 0.8), (0.5, 1.5)):
        t = np.asarray(
            sample_t(jax.random.key(0), 20_000, Diffusion(1.0, t_mean=mean, t_std=std)), np.float64
        )
        assert t.dtype == np.float64 and 0 < t.min() and t.max() < 1
        logits = np.log(t / (1 - t))
        assert logits.mean() == pytest.approx(mean, abs=4 * std / math.sqrt(20_000))
        assert logits.std() == pytest.approx(std, rel=0.03)
        normal = statistics.NormalDist(mean, std)  # Kolmogorov-Smirnov, far in the tail
        steps = np.arange(20_000) / 20_000
        assert np.abs([normal.cdf(x) for x in np.sort(logits)] - steps).max() < 2 / math.sqrt(
            20_000
        )


def test_times_are_their_key():
    a, b = jax.random.split(jax.random.key(0))
    assert sample_t(a, 8, D).dtype == jnp.float32
    np.testing.assert_array_equal(sample_t(a, 8, D), sample_t(a, 8, D))
    assert not np.isin(sample_t(a, 8, D), sample_t(b, 8, D)).any()


def test_expand():
    assert expand(jnp.zeros(3), jnp.zeros((3, 2, 2, 1))).shape == (3, 1, 1, 1)
    assert expand(jnp.zeros(1), jnp.zeros((3, 2, 2, 1))).shape == (1, 1, 1, 1)
