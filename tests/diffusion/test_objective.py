import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jit_jax.diffusion.objective import (
    QUANTITIES,
    Diffusion,
    add_noise,
    clean_image,
    convert,
    expand,
    loss,
    sample_t,
    v_loss,
    velocity,
)

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


# What is predicted, and what the loss is of

NINE = [(predict, of) for predict in QUANTITIES for of in QUANTITIES]
INSIDE = np.array([0.06, 0.2, 0.4, 0.6, 0.8, 0.94], np.float32)  # of the clamps


@pytest.mark.parametrize('source, target', NINE)
def test_the_table_of_conversions(images, source, target):
    """Each of x, ε and v becomes each other one as z = t·x + (1 − t)·ε and v = x − ε say."""
    x, e, _ = images
    are = {'x': x, 'eps': e, 'v': x - e}
    found = convert(are[source], add_noise(x, e, INSIDE), INSIDE, D, source=source, target=target)
    np.testing.assert_allclose(found, are[target], atol=5e-5)


@pytest.mark.parametrize('source, target', NINE)
def test_conversions_take_each_other_back(images, source, target):
    said, _, z = images
    there = convert(said, z, INSIDE, D, source=source, target=target)
    back = convert(there, z, INSIDE, D, source=target, target=source)
    np.testing.assert_allclose(back, said, atol=1e-4)


@pytest.mark.parametrize('target', QUANTITIES)
def test_every_conversion_stays_finite_at_both_ends(images, target):
    said, z, _ = images
    for source in QUANTITIES:
        assert np.isfinite(convert(said, z, TIMES, D, source=source, target=target)).all()
    at_noise = convert(said, z, TIMES, D, source='eps', target='x')[0]
    np.testing.assert_allclose(at_noise, (z[0] - said[0]) / D.t_eps, rtol=1e-6)


@pytest.mark.parametrize('predict, of', NINE)
def test_a_loss_is_the_distance_of_what_it_is_of(images, predict, of):
    """By way of x̂, which the loss itself does not take where predict and loss are the same."""
    x, e, output = images
    d = Diffusion(noise_scale=2.0, predict=predict, loss=of)
    z = add_noise(x, e, INSIDE)
    x_hat = clean_image(output, z, INSIDE, d)
    errors = {'x': x_hat - x, 'v': velocity(x_hat, z, INSIDE, d) - velocity(x, z, INSIDE, d)}
    share = (INSIDE / (1 - INSIDE))[:, None, None, None]
    errors['eps'] = share * (x_hat - x)
    by_hand = np.mean(np.float64(errors[of]) ** 2, (1, 2, 3))
    np.testing.assert_allclose(loss(output, x, z, INSIDE, d), by_hand, rtol=1e-3)


@pytest.mark.parametrize('predict, of', NINE)
def test_a_network_that_is_right_has_no_loss_at_any_time(images, predict, of):
    x, e, _ = images
    d = Diffusion(noise_scale=2.0, predict=predict, loss=of)
    z = add_noise(x, e, TIMES)
    right = convert(x, z, TIMES, d, source='x', target=predict)
    np.testing.assert_array_equal(loss(right, x, z, TIMES, d), 0)
    assert (loss(right + 1, x, z, TIMES, d)[1:-1] > 0).all()


def test_the_published_loss_by_default_bit_for_bit(images):
    x, z, x_hat = images

    def published(x_hat, x, z, t):
        share = jnp.maximum(1 - t.reshape(-1, 1, 1, 1), 0.05)
        return jnp.mean(((x_hat - z) / share - (x - z) / share) ** 2, (1, 2, 3))

    def ours(x_hat, x, z, t):
        return loss(x_hat, x, z, t, D)

    expected = jax.jit(published)(x_hat, x, z, TIMES)
    np.testing.assert_array_equal(jax.jit(ours)(x_hat, x, z, TIMES), expected)
    np.testing.assert_array_equal(v_loss(x_hat, x, z, TIMES, D), ours(x_hat, x, z, TIMES))
    np.testing.assert_array_equal(clean_image(x_hat, z, TIMES, D), x_hat)


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
