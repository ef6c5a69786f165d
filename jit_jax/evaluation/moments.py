"""Count, mean and covariance of features, over batches and processes, and files of them."""

from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from jit_jax.errors import UserError
from jit_jax.model.array_files import open_npz
from jit_jax.output.files import save_npz


class Moments:
    """Count, mean and covariance of features that arrive in batches, in float64.

    Two accumulators over two halves of the rows, merged, equal one over all of them up to rounding
    (Chan, Golub and LeVeque 1979: sums of squares about the mean, so a large mean costs no
    precision).
    """

    def __init__(self, width: int):
        self.count = 0
        self.mean = np.zeros(width)
        self.scatter = np.zeros((width, width))  # Σ (x − mean)(x − mean)ᵀ

    def update(self, features, weight=None) -> None:
        """Adds rows of features [B, D].

        weight [B]: 1 or True for a row that counts, 0 for one that pads the batch. The rows are
        this process's own; a padded one may contain anything. Raises ValueError if the shapes do
        not fit, a weight is neither 0 nor 1, or a row that counts is not finite.
        """
        rows = np.asarray(features, np.float64)
        if rows.ndim != 2 or rows.shape[1] != len(self.mean):
            raise ValueError(
                f'These moments take features [B, {len(self.mean)}], not {list(rows.shape)}.'
            )
        if weight is not None:
            weight = np.asarray(weight)
            if weight.shape != rows.shape[:1] or not np.isin(weight, (0, 1)).all():
                raise ValueError(f'weight holds a 0 or a 1 for each of the {len(rows)} rows.')
            rows = rows[weight.astype(bool)]
        if not np.isfinite(rows).all():
            raise ValueError('A feature is NaN or infinite.')
        if len(rows):
            mean = rows.mean(axis=0)
            centred = rows - mean
            self._add(len(rows), mean, centred.T @ centred)

    def merge(self, other: 'Moments') -> None:
        """Adds every row of the other accumulator."""
        if other.count:
            self._add(other.count, other.mean, other.scatter)

    def _add(self, count, mean, scatter):
        total = self.count + count
        shift = mean - self.mean
        self.scatter += scatter + np.outer(shift, shift * (self.count * count / total))
        self.mean += shift * (count / total)
        self.count = total

    @property
    def covariance(self) -> np.ndarray:
        """[D, D], divided by count − 1, as published FIDs are. Raises ValueError below two rows."""
        if self.count < 2:
            raise ValueError(f'A covariance needs at least two rows, not {self.count}.')
        return self.scatter / (self.count - 1)

    def across_hosts(self) -> 'Moments':
        """The merge of every process's accumulator, the same bits in each. Collective."""
        width = len(self.mean)
        mine = np.concatenate([[self.count], self.mean, self.scatter.ravel()])
        total = Moments(width)
        # One process at a time, or a pod would hold hundreds of covariances.
        for process in range(jax.process_count()):
            bits = multihost_utils.broadcast_one_to_all(
                mine.view(np.uint32),  # JAX would round float64 to float32 on the way
                is_source=process == jax.process_index(),
            )
            theirs = np.asarray(bits).view(np.float64)
            other = Moments(width)
            other.count, other.mean = int(theirs[0]), theirs[1 : 1 + width]
            other.scatter = theirs[1 + width :].reshape(width, width)
            total.merge(other)
        return total


def save_stats(path, mu, sigma) -> None:
    """Writes mean [D] and covariance [D, D] as float64 `mu` and `sigma`, whole or not at all.

    ADM's references have the same names.
    """
    mu, sigma = checked(mu, sigma, 'The statistics to save')
    save_npz(path, mu=mu, sigma=sigma)


def load_stats(path) -> tuple[np.ndarray, np.ndarray]:
    """Reads (`mu` [D], `sigma` [D, D]) in float64 from an `.npz`, and nothing else in it.

    Raises UserError where there is no file, where it is damaged, and where the two are absent,
    misshapen or not finite.
    """
    if not Path(path).is_file():
        raise UserError(f'There are no reference statistics at {path}.')
    with open_npz(path) as file:
        missing = {'mu', 'sigma'} - set(file.files)
        if missing:
            held = ', '.join(file.files)
            raise UserError(f'{path} has no arrays `mu` and `sigma`; it holds {held}.')
        mu, sigma = file['mu'], file['sigma']
    return checked(mu, sigma, str(path))


def checked(mu, sigma, owner: str) -> tuple[np.ndarray, np.ndarray]:
    """Both in float64. Raises UserError, naming their owner, unless finite, [D] and [D, D]."""
    mu, sigma = np.asarray(mu, np.float64), np.asarray(sigma, np.float64)
    if mu.ndim != 1 or sigma.shape != mu.shape * 2:
        shapes = f'{list(mu.shape)} and {list(sigma.shape)}'
        raise UserError(f'{owner}: mu must be [D] and sigma [D, D], not {shapes}.')
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f'{owner}: mu or sigma has NaN or infinite entries.')
    return mu, sigma
