"""Images against the truth: PSNR, SSIM, LPIPS, and the same of a guess that takes no learning.

Images are uint8 [N, H, W, C], rounded as a PNG would be; every number of a paper is of such images.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jit_jax.diffusion import conditions
from jit_jax.errors import UserError
from jit_jax.model import lpips
from jit_jax.output.images import to_uint8


def psnr(a, b) -> np.ndarray:
    """Peak signal-to-noise ratio in dB, float64 [N]; infinite for equal images."""
    error = (a.astype(np.float64) - b).reshape(len(a), -1)
    with np.errstate(divide='ignore'):
        return 10 * np.log10(255**2 / np.mean(error**2, 1))


@jax.jit
def ssim(a, b) -> jax.Array:
    """Structural similarity (Wang et al. 2004), float32 [N], for images of at least 11 × 11 pixels.

    The window is Gaussian, 11 × 11 with σ 1.5; the mean is over channels and over the pixels whose
    window is whole.
    """
    window = jnp.exp(-0.5 * (jnp.arange(-5, 6) / 1.5) ** 2)
    window = window / window.sum()
    N, H, W, C = a.shape

    def planes(images):
        images = jnp.moveaxis(jnp.asarray(images, jnp.float32), -1, 1)
        return images.reshape(N * C, 1, H, W)

    def blur(x):
        exact = jax.lax.Precision.HIGHEST
        x = jax.lax.conv(x, window.reshape(1, 1, 11, 1), (1, 1), 'VALID', exact)
        return jax.lax.conv(x, window.reshape(1, 1, 1, 11), (1, 1), 'VALID', exact)

    a, b = planes(a), planes(b)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = blur(a), blur(b)
    variance_a = blur(a * a) - mean_a**2
    variance_b = blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    return (above / below).mean((1, 2, 3)).reshape(N, C).mean(1)


def guess(conditioning: dict, image_size: int) -> np.ndarray:
    """What takes no learning, float32 [N, H, H, C] in [−1, 1].

    A small condition is enlarged (bicubic; the nearest pixel where rows differ in size), and a hole
    is filled with the mean of what is around it.
    """
    cond = jnp.asarray(conditioning['cond'])
    if 'cond_grid' in conditioning:
        everything = jnp.ones_like(conditioning['cond_valid'])
        whole = conditions.picture({**conditioning, 'cond_valid': everything}, image_size)
    else:
        shape = (len(cond), image_size, image_size, cond.shape[-1])
        whole = jax.image.resize(cond, shape, 'cubic')
    if 'cond_valid' not in conditioning:
        return np.asarray(whole)
    known = conditions.picture({**conditioning, 'cond': jnp.ones_like(cond)}, image_size)
    count = jnp.maximum(known.sum((1, 2), keepdims=True), 1)
    mean = (whole * known).sum((1, 2), keepdims=True) / count
    return np.asarray(jnp.where(known > 0, whole, mean))


def as_rgb(images) -> jax.Array:
    """[N, H, W, 1 or 3] → [N, H, W, 3]."""
    return images if images.shape[-1] == 3 else images.repeat(3, -1)


class TruthMetric:
    """Means of PSNR, SSIM and, with weights, LPIPS against what conditions were made from.

    Beside each score stands `<score>_baseline`, that of `guess`. lpips_weights: a file, '' for
    none. Raises UserError, at once, for a file that does not fit and for images too small for
    LPIPS.
    """

    def __init__(self, image_size: int, lpips_weights: str = ''):
        self.image_size = image_size
        self.scores = {'psnr': psnr, 'ssim': ssim}
        if lpips_weights:
            if image_size < lpips.SMALLEST:
                raise UserError(
                    f'--lpips needs images of at least {lpips.SMALLEST} pixels, and this run '
                    f'has {image_size}; leave it out.'
                )
            weights = jax.device_put(lpips.load_weights(lpips_weights))
            self.scores['lpips'] = partial(_rgb_lpips, weights)
        self.reset()

    def reset(self) -> None:
        self._rows = {}  # by the name of a number: a list of arrays [n]

    def update(self, images, conditioning: dict, truth) -> None:
        """images, truth: uint8 [n, H, H, C]; conditioning has a condition image for each."""
        baseline = to_uint8(guess(conditioning, self.image_size))
        for name, score in self.scores.items():
            self._add(name, score(images, truth))
            self._add(f'{name}_baseline', score(baseline, truth))

    def _add(self, name: str, rows) -> None:
        self._rows.setdefault(name, []).append(np.asarray(rows))

    def compute(self) -> dict[str, float]:
        return {name: float(np.mean(np.concatenate(rows))) for name, rows in self._rows.items()}


def _rgb_lpips(weights, a, b) -> jax.Array:
    return lpips.distance(weights, as_rgb(a), as_rgb(b))
