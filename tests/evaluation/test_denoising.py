"""How well held-out images are denoised, of a model whose answer is known."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from measuring import mesh

from jit_jax.diffusion import conditions
from jit_jax.diffusion.conditions import from_uint8
from jit_jax.errors import UserError
from jit_jax.evaluation import denoising
from jit_jax.evaluation.denoising import DenoisingScore


@pytest.fixture(scope='module')
def grey(holes):
    """Parameters with which x̂ = 0 wherever it starts."""
    return jax.tree.map(np.zeros_like, holes[1])


def squares(test, count: int) -> np.ndarray:
    """Mean squares of the first images, which are the errors of a model that says grey."""
    x = np.stack([test[i]['image'] for i in range(count)]) / 127.5 - 1
    return (x**2).mean((1, 2, 3))


def mean_inverse_square(low: float, high: float) -> float:
    """Of 1 − t, for t from low to high."""
    return (1 / (1 - high) - 1 / (1 - low)) / (high - low)


@dataclass
class First:
    """The first images of a source."""

    source: object
    count: int

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.source[index]

    def load(self, index):
        return self.source.load(index)

    def intact_or_blank(self, index):
        return self.source.intact_or_blank(index)


def test_denoising_of_a_model_that_says_grey(holes, grey):
    """Every number follows from the images, and padded rows count for nothing."""
    model, _, _, test = holes
    test = First(test, 62)
    found = DenoisingScore(model, mesh(8), test, num=500, batch=32, seed=0)(grey)
    mse = squares(test, len(test))
    for t in denoising.TIMES:
        assert found[f'mse_t{t}'] == pytest.approx(mse.mean(), rel=1e-5)
        assert found[f'psnr_t{t}'] == pytest.approx((10 * np.log10(4 / mse)).mean(), rel=1e-5)
    expected = mse.mean() * mean_inverse_square(0.25, 0.5)
    assert found['v_loss_t0.25_0.5'] == pytest.approx(expected, rel=0.05)
    losses = [found[f'v_loss_t{low}_{low + 0.25}'] for low in (0.0, 0.25, 0.5, 0.75)]
    assert losses == sorted(losses) and len(set(losses)) == 4


class Blank:
    """A network that says what stands in for a broken image, exactly."""

    def apply(self, variables, z, t, **conditioning):
        return jnp.full_like(z, from_uint8(128))


def test_a_row_of_no_weight_counts_for_nothing_whatever_it_holds(holes):
    """A blank is without error here, so its PSNR is infinite."""
    model, _, _, test = holes
    images = np.stack([np.full((32, 32, 3), 128, np.uint8), test[0]['image']])
    batch = {'image': images, 'weight': np.float32([0, 1])}
    how = {'model': Blank(), 'd': model.diffusion, 'condition': conditions.make('none')}
    sums = denoising.batch_sums({}, batch, jax.random.key(0), **how)
    assert sums['weight'] == 1 and all(np.isfinite(value).all() for value in sums.values())
    mse = ((images[1] / 127.5 - 1 - from_uint8(128)) ** 2).mean()
    np.testing.assert_allclose(sums['mse'], mse, rtol=1e-4)


class Grey:
    """A network that has x̂ = 0 in mind and says v."""

    def apply(self, variables, z, t, **conditioning):
        return -z / (1 - t)[:, None, None, None]


def test_denoising_is_of_x_whatever_the_network_predicts(holes, grey):
    model, _, _, test = holes
    says_v = replace(model.diffusion, predict='v', loss='v')
    other = replace(model, net=Grey(), diffusion=says_v)
    how = {'num': 8, 'batch': 8, 'seed': 0}
    expected = DenoisingScore(model, mesh(8), test, **how)(grey)
    found = DenoisingScore(other, mesh(8), test, **how)({})
    for t in denoising.TIMES:
        assert found[f'mse_t{t}'] == pytest.approx(expected[f'mse_t{t}'], rel=1e-4)
    assert found['v_loss_t0.25_0.5'] == pytest.approx(expected['v_loss_t0.25_0.5'], rel=1e-4)
    z = np.ones((2, 32, 32, 3), np.float32)
    assert np.abs(other.apply({}, z, np.float32([0.1, 0.7]))).max() < 1e-6


def test_no_more_images_than_asked_for(holes, grey):
    model, _, _, test = holes
    found = DenoisingScore(model, mesh(8), test, num=11, batch=8, seed=0)(grey)
    assert found['mse_t0.5'] == pytest.approx(squares(test, 11).mean(), rel=1e-5)


@dataclass
class Broken:
    """A source of which the first images cannot be read."""

    source: object
    count: int

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return self.source[max(index, self.count)]

    def load(self, index):
        return None if index < self.count else self.source.load(index)

    def intact_or_blank(self, index):
        return self[index]


def test_images_that_cannot_be_read(holes, grey):
    model, _, _, test = holes
    found = DenoisingScore(model, mesh(8), Broken(test, 5), num=8, batch=8, seed=0)(grey)
    assert found['mse_t0.5'] == pytest.approx(squares(test, 8)[5:].mean(), rel=1e-5)
    with pytest.raises(UserError, match='None of the first 8 held-out images can be read'):
        DenoisingScore(model, mesh(8), Broken(test, 8), num=8, batch=8, seed=0)
