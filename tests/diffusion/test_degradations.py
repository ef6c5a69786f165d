"""Degradations: in range, by key and by row, nothing at strength 0, and each what it says."""

import io
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jit_jax.diffusion import conditions, degradations

KEY, OTHER = jax.random.split(jax.random.key(0))
SIDE = 32


def smooth(rows: int, channels: int = 3, side: int = SIDE) -> np.ndarray:
    """Waves of a few periods: float32 [rows, side, side, channels] in [−1, 1]."""
    at = np.arange(side) / side
    waves = []
    for row in range(rows):
        for channel in range(channels):
            down, across = row + channel + 1, row + 2
            waves.append(np.sin(2 * np.pi * (down * at[:, None] + across * at)))
    return np.float32(waves).reshape(rows, channels, side, side).transpose(0, 2, 3, 1)


@pytest.fixture(scope='module')
def degrade():
    """(x, key, times, strength) → degraded, compiled once for equal arguments."""
    return jax.jit(degradations.degrade, static_argnames=('times', 'strength'))


@pytest.mark.parametrize('times', [1, 2])
def test_rows_are_in_range_and_degraded_by_their_own_amounts(degrade, times):
    x = np.repeat(smooth(1), 6, 0)
    how = {'times': times, 'strength': (0.5, 1.0)}
    found = np.asarray(degrade(x, KEY, **how))
    assert found.shape == x.shape and found.dtype == np.float32
    assert np.abs(found).max() <= 1 and np.abs(found - x).mean((1, 2, 3)).min() > 0.01
    assert len({row.tobytes() for row in found}) == 6
    np.testing.assert_array_equal(degrade(x, KEY, **how), found)
    assert (np.asarray(degrade(x, OTHER, **how)) != found).any((1, 2, 3)).all()
    alone = degrade(x[:2], KEY, **how)  # a row does not depend on how many there are
    np.testing.assert_allclose(alone, found[:2], atol=0.02)


def test_a_second_time_and_more_strength_take_more(degrade):
    x = smooth(8)

    def lost(times, strength):
        return np.mean((np.asarray(degrade(x, KEY, times=times, strength=strength)) - x) ** 2)

    once = lost(1, (1.0, 1.0))
    assert lost(2, (1.0, 1.0)) > 1.1 * once
    assert lost(1, (0.3, 0.3)) < 0.5 * once < lost(1, (1.6, 1.6)) / 1.5


@pytest.mark.parametrize('channels', [1, 3])
def test_strength_zero_is_the_identity(degrade, channels):
    x = smooth(3, channels)
    np.testing.assert_allclose(degrade(x, KEY, times=2, strength=(0.0, 0.0)), x, atol=2e-6)


def test_a_new_key_compiles_nothing():
    traces = []

    def counted(x, key):
        traces.append(key)
        return degradations.degrade(x, key, times=1, strength=(0.0, 1.0))

    program = jax.jit(counted)
    for i in range(3):
        program(smooth(2), jax.random.key(i))
    assert len(traces) == 1


def test_a_round_blur_is_a_gaussian_of_that_width():
    x = np.zeros((SIDE, SIDE, 1), np.float32)
    x[16, 16] = 1
    found = np.asarray(degradations.blur(x, jnp.asarray([2.0, 2.0]), 0.3, 8))[..., 0]
    at = np.arange(SIDE) - 16
    expected = np.exp(-(at[:, None] ** 2 + at**2) / 8)
    np.testing.assert_allclose(found / found.max(), expected, atol=1e-3)
    np.testing.assert_allclose(degradations.blur(0 * x + 0.5, jnp.ones(2), 0.3, 8), 0.5, atol=1e-6)


def test_a_long_blur_lies_along_its_angle():
    x = np.zeros((SIDE, SIDE, 1), np.float32)
    x[16, 16] = 1
    found = np.asarray(degradations.blur(x, jnp.asarray([3.0, 0.5]), math.pi / 4, 9))[..., 0]
    assert found[19, 19] > 0.3 * found[16, 16] and found[13, 19] < 1e-3 * found[16, 16]


def test_resampling_is_pillows():
    x = smooth(1)[0, :, :, 0]
    for is_cubic, method in ((True, Image.Resampling.BICUBIC), (False, Image.Resampling.BILINEAR)):
        down = np.asarray(degradations.resampling(SIDE, SIDE, 13.0, is_cubic))
        assert (down[13:] == 0).all()
        small = (down @ x @ down.T)[:13, :13]
        exact = Image.fromarray(x).resize((13, 13), method)
        np.testing.assert_allclose(small, np.asarray(exact), atol=1e-3)
        up = np.asarray(degradations.resampling(SIDE, 13.0, SIDE, is_cubic))[:, :13]
        exact = exact.resize((SIDE, SIDE), method)
        np.testing.assert_allclose(up @ small @ up.T, np.asarray(exact), atol=2e-3)


def test_blocks_come_back_from_their_frequencies():
    x = smooth(1)[0]
    found = degradations.block_frequencies(x)
    assert found.shape == (4, 8, 4, 8, 3)
    np.testing.assert_allclose(degradations.from_block_frequencies(found), x, atol=1e-6)
    even = degradations.block_frequencies(np.full((8, 8, 1), 0.5, np.float32))
    assert float(even[0, 0, 0, 0, 0]) == pytest.approx(4) and np.abs(even).sum() < 4.001


def test_jpeg_is_that_of_a_file():
    """Grey, quality 50: the tables as they are. Pillow's differs by its rounding to uint8."""
    pixels = np.uint8((smooth(1, 1)[0] + 1) * 127.5)
    content = io.BytesIO()
    Image.fromarray(pixels[..., 0]).save(content, 'JPEG', quality=50)
    exact = np.asarray(Image.open(content)).astype(np.float32)
    found = (np.asarray(degradations.jpeg(pixels / 127.5 - 1, 1.0))[..., 0] + 1) * 127.5
    assert np.abs(found - exact).mean() < 2 and np.abs(exact - pixels[..., 0]).mean() > 2


def test_jpeg_leaves_blocks():
    """Neighbours differ more across the borders of blocks than within, and not before."""
    ramp = np.tile(np.linspace(-0.2, 0.2, 64, dtype=np.float32), (64, 1))[..., None]

    def steps(image):
        difference = np.abs(np.diff(np.asarray(image)[..., 0], axis=1)).mean(0)
        borders = np.arange(63) % 8 == 7
        return difference[borders].mean(), difference[~borders].mean()

    border, within = steps(ramp)
    assert border == pytest.approx(within, rel=1e-3)
    border, within = steps(degradations.jpeg(ramp, 3.0))
    assert border > 3 * within


def test_noise_is_grey_or_coloured_and_stronger_in_the_light():
    x = np.full((64, 64, 3), -1, np.float32)
    x[:32] = 1
    ratios, grey = [], []
    for i in range(40):
        noise = np.asarray(degradations.random_noise(x, jax.random.key(i), 1.0)) - x
        ratios.append(noise[32:].std() / noise[:32].std())
        grey.append(np.ptp(noise, axis=-1).max() < 1e-6)
    like_photons = np.asarray(ratios) < 0.1
    assert 0.3 < like_photons.mean() < 0.7 and 0.2 < np.mean(grey) < 0.6
    np.testing.assert_allclose(np.asarray(ratios)[~like_photons], 1, atol=0.1)


def test_a_run_is_conditioned_on_degraded_images(degrade):
    x = smooth(4)
    make = conditions.make('degraded', degradations=2, strength=(0.2, 0.4))
    cond = np.asarray(jax.jit(make)(x, {}, KEY)['cond'])
    key = jax.random.fold_in(KEY, 0)  # of the first name of the first option
    expected = degrade(x, key, times=2, strength=(0.2, 0.4))
    np.testing.assert_allclose(cond, expected, atol=1e-5)
