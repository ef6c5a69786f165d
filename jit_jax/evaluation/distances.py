"""Numbers from features: Fréchet distance (FID), Inception score, KID, precision and recall.

All of it is NumPy float64 on the host, where covariances of 2048 features belong, except the all-pairs distances of
precision and recall, which run on the default device. Features are [N, D], one row an image.
"""

import zipfile
import zlib
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

_ROWS = 1024  # all-pairs distances are formed for this many rows at a time: 200 MB against 50,000 others


class Moments:
    """Count, mean and covariance of features that arrive in batches, in float64.

    Two accumulators over two halves of the rows, merged, equal one over all of them up to rounding (Chan, Golub and
    LeVeque 1979: sums of squares about the mean, never raw ones, so a large mean costs no precision).
    """

    def __init__(self, width: int):
        self.count = 0
        self.mean = np.zeros(width)
        self.scatter = np.zeros((width, width))  # Σ (x − mean)(x − mean)ᵀ

    def update(self, features, weight=None) -> None:
        """Adds the rows of features [B, D] whose weight [B] is 1 (or True); 0 marks a row that only pads the batch.

        The rows are this process's own; a padded one may contain anything. Raises ValueError if the shapes do not
        fit, a weight is neither 0 nor 1, or a row that counts is not finite.
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
        """Adds everything that the other accumulator has seen."""
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
        """[D, D], unbiased: divided by count − 1, as published FIDs are. Raises ValueError below two rows."""
        if self.count < 2:
            raise ValueError(f'A covariance needs at least two rows, not {self.count}.')
        return self.scatter / (self.count - 1)

    def across_hosts(self) -> 'Moments':
        """The merge of every process's accumulator, the same bits in each. Collective: all processes must call it."""
        width = len(self.mean)
        mine = np.concatenate([[self.count], self.mean, self.scatter.ravel()])
        total = Moments(width)
        for process in range(
            jax.process_count()
        ):  # one at a time, or a pod would hold hundreds of covariances
            bits = mine.view(np.uint32)  # JAX would round float64 to float32 on the way
            bits = multihost_utils.broadcast_one_to_all(
                bits, is_source=process == jax.process_index()
            )
            theirs = np.asarray(bits).view(np.float64)
            other = Moments(width)
            other.count, other.mean = int(theirs[0]), theirs[1 : 1 + width]
            other.scatter = theirs[1 + width :].reshape(width, width)
            total.merge(other)
        return total


def save_stats(path, mu, sigma) -> None:
    """Writes mean [D] and covariance [D, D] as float64 `mu` and `sigma` of an `.npz`, as ADM's references have them."""
    path = Path(path)
    mu, sigma = _checked(mu, sigma, 'The statistics to save')
    part = path.with_name(
        path.name + '.part'
    )  # renamed when whole, so a kill in between leaves no damaged file
    with open(part, 'wb') as file:
        np.savez(file, mu=mu, sigma=sigma)
    part.replace(path)


def load_stats(path) -> tuple[np.ndarray, np.ndarray]:
    """Reads (`mu` [D], `sigma` [D, D]) in float64 from an `.npz` reference; whatever else it holds is not read.

    Raises FileNotFoundError, or ValueError if the file is damaged or the two are absent, misshapen or not finite.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'No reference statistics at {path}.')
    try:
        with np.load(path, allow_pickle=False) as file:
            mu, sigma = file['mu'], file['sigma']
    except KeyError:
        raise ValueError(
            f'{path} has no arrays `mu` and `sigma`; it holds {", ".join(file.files)}.'
        ) from None
    except (ValueError, OSError, EOFError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error):
        raise ValueError(f'{path} is not a readable .npz of plain arrays.') from None
    return _checked(mu, sigma, str(path))


def _checked(mu, sigma, owner: str) -> tuple[np.ndarray, np.ndarray]:
    mu, sigma = np.asarray(mu, np.float64), np.asarray(sigma, np.float64)
    if mu.ndim != 1 or sigma.shape != mu.shape * 2:
        raise ValueError(
            f'{owner}: mu must be [D] and sigma [D, D], not {list(mu.shape)} and {list(sigma.shape)}.'
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(f'{owner}: mu or sigma has NaN or infinite entries.')
    return mu, sigma


def frechet(mu1, sigma1, mu2, sigma2) -> float:
    """|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½): FID if these are moments of '2048' features (arXiv 1706.08500).

    With Σ₁ = F Fᵀ, Σ₁ Σ₂ has the eigenvalues of the symmetric Fᵀ Σ₂ F, so no root of a matrix is taken and fewer rows
    than features are no trouble. mu [D], sigma [D, D]; ValueError if they are not, or differ in D.
    """
    mu1, sigma1 = _checked(mu1, sigma1, 'The first distribution')
    mu2, sigma2 = _checked(mu2, sigma2, 'The second distribution')
    if mu1.shape != mu2.shape:
        raise ValueError(f'The distributions have {len(mu1)} and {len(mu2)} features.')
    values, vectors = np.linalg.eigh(sigma1)
    factor = vectors * np.sqrt(
        np.maximum(values, 0)
    )  # rounding leaves a null direction slightly negative
    overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(factor.T @ sigma2 @ factor), 0)).sum()
    distance = np.sum((mu1 - mu2) ** 2) + np.trace(sigma1) + np.trace(sigma2) - 2 * overlap
    return max(float(distance), 0.0)


def inception_score(logits, splits: int = 10) -> tuple[float, float]:
    """(mean, standard deviation) over consecutive splits of exp E KL(p(y|x) ‖ p(y)) (arXiv 1606.03498).

    logits [N, classes], in the order of generation: rows are not shuffled, so with labels in order the caller
    should interleave them. Published scores use 'logits_unbiased' and 50,000 rows. ValueError if N < splits.
    """
    logits = _rows(logits, splits, 'logits')
    scores = []
    for i in range(splits):
        part = np.float64(logits[i * len(logits) // splits : (i + 1) * len(logits) // splits])
        part = part - part.max(axis=1, keepdims=True)
        log_p = part - np.log(np.exp(part).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        marginal = p.mean(axis=0)
        log_marginal = np.log(np.maximum(marginal, np.finfo(np.float64).tiny))  # 0 log 0 is 0
        scores.append(np.exp((p * log_p).sum(axis=1).mean() - marginal @ log_marginal))
    return float(np.mean(scores)), float(np.std(scores))


def kid(x, y, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> tuple[float, float]:
    """(mean, standard deviation) over random subsets of the unbiased MMD², kernel (x·y / D + 1)³ (arXiv 1801.01401).

    x [N, D], y [M, D]: '2048' features. Each subset draws `subset_size` rows of either without replacement.
    ValueError if a side has fewer rows, or if a subset is smaller than two.
    """
    if subset_size < 2:
        raise ValueError(f'KID needs subsets of at least two rows, not {subset_size}.')
    x, y = _rows(x, subset_size, 'x'), _rows(y, subset_size, 'y')
    random, draws = np.random.default_rng(seed), []
    for _ in range(subsets):
        a = np.float64(x[random.choice(len(x), subset_size, replace=False)])
        b = np.float64(y[random.choice(len(y), subset_size, replace=False)])
        aa, bb, ab = ((p @ q.T / x.shape[1] + 1) ** 3 for p, q in ((a, a), (b, b), (a, b)))
        within = aa.sum() - np.trace(aa) + bb.sum() - np.trace(bb)  # unbiased: no row meets itself
        draws.append(within / (subset_size * (subset_size - 1)) - 2 * ab.mean())
    return float(np.mean(draws)), float(np.std(draws))


def precision_recall(real, fake, k: int = 3) -> tuple[float, float]:
    """(precision, recall): how many fakes lie on the manifold of reals, and the reverse (arXiv 1904.06991).

    A manifold is the union of balls around its rows, each reaching that row's k-th neighbour. real [N, D] and
    fake [M, D] are '2048' features. Distances are float32 on the default device. ValueError without k + 1 rows.
    """
    real, fake = _rows(real, k + 1, 'real'), _rows(fake, k + 1, 'fake')
    centre = real.mean(
        axis=0, dtype=np.float64
    )  # |a|² + |b|² − 2ab loses float32 digits to a common offset
    real, fake = (jnp.asarray(rows - centre, jnp.float32) for rows in (real, fake))
    return _share_inside(fake, real, k), _share_inside(real, fake, k)


def _share_inside(rows, centres, k: int) -> float:
    """The share of rows inside any centre's ball."""
    radii = [
        _squared_radii(centres[i : i + _ROWS], centres, k) for i in range(0, len(centres), _ROWS)
    ]
    radii = jnp.concatenate(radii)
    inside = [_inside(rows[i : i + _ROWS], centres, radii) for i in range(0, len(rows), _ROWS)]
    return float(np.concatenate(inside).mean())


@partial(jax.jit, static_argnames='k')
def _squared_radii(rows, centres, k):
    nearest, _ = jax.lax.top_k(
        -_squared_distances(rows, centres), k + 1
    )  # the row itself is one of them
    return -nearest.min(axis=1)  # nearest[:, k] is far slower on a CPU: XLA makes a full sort of it


@jax.jit
def _inside(rows, centres, squared_radii):
    return (_squared_distances(rows, centres) <= squared_radii).any(axis=1)


def _squared_distances(a, b):
    """[A, D], [B, D] → [A, B]."""
    cross = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(jnp.sum(a**2, axis=1)[:, None] + jnp.sum(b**2, axis=1) - 2 * cross, 0)


def _rows(features, least: int, name: str) -> np.ndarray:
    """Checked features as NumPy [N, D]; not in float64 yet, where 50,000 of them are most of a gigabyte."""
    features = np.asarray(features)
    if features.ndim != 2 or len(features) < least:
        raise ValueError(
            f'{name} must be [N, D] with N at least {least}, not {list(features.shape)}.'
        )
    if not np.isfinite(features).all():
        raise ValueError(f'{name} has NaN or infinite entries.')
    return features
