"""How good images are: against the truth, against a data set's features, and to a classifier's eye.

Images are uint8 [N, H, W, C], rounded as a PNG would have them; every number of a paper is of such images.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jit_jax.diffusion import conditions


def psnr(a, b) -> np.ndarray:
    """Peak signal-to-noise ratio in dB, float64 [N]; infinite for equal images."""
    error = (a.astype(np.float64) - b).reshape(len(a), -1)
    with np.errstate(divide='ignore'):
        return 10 * np.log10(255**2 / np.mean(error**2, 1))


@jax.jit
def ssim(a, b) -> jax.Array:
    """Structural similarity, float32 [N] (Wang et al. 2004): Gaussian window 11×11, σ 1.5, mean over channels and valid pixels."""
    window = jnp.exp(-0.5 * (jnp.arange(-5, 6) / 1.5) ** 2)
    window = window / window.sum()
    N, H, W, C = a.shape
    a, b = (
        jnp.moveaxis(jnp.asarray(x, jnp.float32), -1, 1).reshape(N * C, 1, H, W) for x in (a, b)
    )

    def blur(x):
        x = jax.lax.conv(x, window.reshape(1, 1, 11, 1), (1, 1), 'VALID', jax.lax.Precision.HIGHEST)
        return jax.lax.conv(
            x, window.reshape(1, 1, 1, 11), (1, 1), 'VALID', jax.lax.Precision.HIGHEST
        )

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    index = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return index.mean((1, 2, 3)).reshape(N, C).mean(1)


def guess(conditioning: dict, image_size: int) -> np.ndarray:
    """What takes no learning: a small condition enlarged (bicubic), a hole filled with the mean of what is around it. float32."""
    cond = jnp.asarray(conditioning['cond'])
    whole = jax.image.resize(cond, (len(cond), image_size, image_size, cond.shape[-1]), 'cubic')
    if 'cond_grid' in conditioning:  # rows of several sizes: nearest neighbour
        whole = conditions.picture(
            {**conditioning, 'cond_valid': jnp.ones_like(conditioning['cond_valid'])}, image_size
        )
    if 'cond_valid' not in conditioning:
        return np.asarray(whole)
    seen = conditions.picture(
        {'cond': jnp.ones_like(cond), **{k: conditioning[k] for k in conditioning if k != 'cond'}},
        image_size,
    )
    mean = (whole * seen).sum((1, 2), keepdims=True) / jnp.maximum(
        seen.sum((1, 2), keepdims=True), 1
    )
    return np.asarray(jnp.where(seen > 0, whole, mean))
