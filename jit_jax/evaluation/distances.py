"""Numbers from features: Fréchet distance (FID), Inception score, KID, precision and recall.

All of it is NumPy float64 on the host, where covariances of 2048 features belong, except the
all-pairs distances of precision and recall, which run on the default device. Features are [N, D],
one row an image.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jit_jax.evaluation.moments import checked

# All-pairs distances are formed for this many rows at a time: 200 MB against 50,000 others.
_ROWS = 1024


def frechet(mu1, sigma1, mu2, sigma2) -> float:
    """|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½), which is FID for Inception's '2048' features.

    See arXiv 1706.08500.     With Σ₁ = F Fᵀ, Σ₁ Σ₂ has the eigenvalues of the symmetric Fᵀ Σ₂ F, so
    no root of a matrix is taken and fewer rows than features are no trouble. mu [D], sigma [D, D];
    ValueError if they are not, or differ in D.
    """
    mu1, sigma1 = checked(mu1, sigma1, 'The first distribution')
    mu2, sigma2 = checked(mu2, sigma2, 'The second distribution')
    if mu1.shape != mu2.shape:
        raise ValueError(f'The distributions have {len(mu1)} and {len(mu2)} features.')
    values, vectors = np.linalg.eigh(sigma1)
    # Rounding leaves a null direction slightly negative.
    factor = vectors * np.sqrt(np.maximum(values, 0))
    overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(factor.T @ sigma2 @ factor), 0)).sum()
    distance = np.sum((mu1 - mu2) ** 2) + np.trace(sigma1) + np.trace(sigma2) - 2 * overlap
    return max(float(distance), 0.0)


def inception_score(logits, splits: int = 10) -> tuple[float, float]:
    """(mean, standard deviation) over consecutive splits of exp E KL(p(y|x) ‖ p(y)).

    See arXiv 1606.03498. logits [N, classes], in the order of generation: rows are not shuffled, so
    with labels in order the caller should interleave them. Published scores use 'logits_unbiased'
    and 50,000 rows. ValueError if N < splits.
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
    """(mean, standard deviation) over random subsets of the unbiased MMD² (arXiv 1801.01401).

    The kernel is (x·y / D + 1)³. x [N, D], y [M, D]: '2048' features. Each subset draws
    `subset_size` rows of either without replacement. ValueError if a side has fewer rows, or if a
    subset is smaller than two.
    """
    if subset_size < 2:
        raise ValueError(f'KID needs subsets of at least two rows, not {subset_size}.')
    x, y = _rows(x, subset_size, 'x'), _rows(y, subset_size, 'y')
    random, draws = np.random.default_rng(seed), []
    for _ in range(subsets):
        a = np.float64(x[random.choice(len(x), subset_size, replace=False)])
        b = np.float64(y[random.choice(len(y), subset_size, replace=False)])
        aa, bb, ab = _cubic(a, a), _cubic(b, b), _cubic(a, b)
        within = aa.sum() - np.trace(aa) + bb.sum() - np.trace(bb)  # unbiased: no row meets itself
        draws.append(within / (subset_size * (subset_size - 1)) - 2 * ab.mean())
    return float(np.mean(draws)), float(np.std(draws))


def _cubic(a, b) -> np.ndarray:
    """KID's kernel of every row of a with every row of b."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def precision_recall(real, fake, k: int = 3) -> tuple[float, float]:
    """(precision, recall): the share of fakes on the manifold of reals, and the reverse.

    See arXiv 1904.06991. A manifold is the union of balls around its rows, each reaching that row's
    k-th neighbour. real [N, D] and fake [M, D] are '2048' features. Distances are float32 on the
    default device. ValueError without k + 1 rows.
    """
    real, fake = _rows(real, k + 1, 'real'), _rows(fake, k + 1, 'fake')
    # |a|² + |b|² − 2ab would lose float32 digits to a common offset.
    centre = real.mean(axis=0, dtype=np.float64)
    real, fake = (jnp.asarray(rows - centre, jnp.float32) for rows in (real, fake))
    return _share_inside(fake, real, k), _share_inside(real, fake, k)


def _share_inside(rows, centres, k: int) -> float:
    """The share of rows inside any centre's ball."""
    radii = jnp.concatenate([_squared_radii(part, centres, k) for part in _parts(centres)])
    inside = [_inside(part, centres, radii) for part in _parts(rows)]
    return float(np.concatenate(inside).mean())


def _parts(rows) -> list:
    return [rows[i : i + _ROWS] for i in range(0, len(rows), _ROWS)]


@partial(jax.jit, static_argnames='k')
def _squared_radii(rows, centres, k):
    # The k nearest and the row itself.
    nearest, _ = jax.lax.top_k(-_squared_distances(rows, centres), k + 1)
    return -nearest.min(axis=1)  # nearest[:, k] is far slower on a CPU: XLA makes a full sort of it


@jax.jit
def _inside(rows, centres, squared_radii):
    return (_squared_distances(rows, centres) <= squared_radii).any(axis=1)


def _squared_distances(a, b):
    """[A, D], [B, D] → [A, B]."""
    cross = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(jnp.sum(a**2, axis=1)[:, None] + jnp.sum(b**2, axis=1) - 2 * cross, 0)


def _rows(features, least: int, name: str) -> np.ndarray:
    """Checked features as NumPy [N, D]; not in float64 yet, where 50,000 are most of a gigabyte."""
    features = np.asarray(features)
    if features.ndim != 2 or len(features) < least:
        raise ValueError(
            f'{name} must be [N, D] with N at least {least}, not {list(features.shape)}.'
        )
    if not np.isfinite(features).all():
        raise ValueError(f'{name} has NaN or infinite entries.')
    return features
