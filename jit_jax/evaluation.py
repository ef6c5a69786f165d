"""How good images are: against the truth, against a data set's features, and to a classifier's eye.

Images are uint8 [N, H, W, C], rounded as a PNG would have them; every number of a paper is of such images.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jit_jax import conditions, diffusion
from jit_jax.fid import distance
from jit_jax.step import draw

TIMES = (0.2, 0.5, 0.8)  # of the denoising evaluation


def psnr(a, b) -> np.ndarray:
    """Peak signal-to-noise ratio in dB, float64 [N]; infinite for equal images."""
    error = (a.astype(np.float64) - b).reshape(len(a), -1)
    with np.errstate(divide='ignore'):
        return 10 * np.log10(255**2 / np.mean(error**2, 1))


@jax.jit
def ssim(a, b):
    """Structural similarity, float32 [N] (Wang et al. 2004): Gaussian window 11×11, σ 1.5, mean over channels and valid pixels."""
    window = jnp.exp(-0.5 * (jnp.arange(-5, 6) / 1.5) ** 2)
    window = window / window.sum()
    N, H, W, C = a.shape
    a, b = (jnp.moveaxis(jnp.asarray(x, jnp.float32), -1, 1).reshape(N * C, 1, H, W) for x in (a, b))

    def blur(x):
        x = jax.lax.conv(x, window.reshape(1, 1, 11, 1), (1, 1), 'VALID', jax.lax.Precision.HIGHEST)
        return jax.lax.conv(x, window.reshape(1, 1, 1, 11), (1, 1), 'VALID', jax.lax.Precision.HIGHEST)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    index = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return index.mean((1, 2, 3)).reshape(N, C).mean(1)


class Classifier:
    """A small classifier of a labelled data set: its verdict, and its hidden layer as features, where no Inception is at hand.

    images uint8 [N, H, W, C] and labels int [N] are the training split. Its numbers are not FID and are named otherwise.
    """

    def __init__(self, images, labels):
        from sklearn.neural_network import MLPClassifier

        self.net = MLPClassifier((128,), max_iter=100, random_state=0).fit(self._rows(images), labels)

    @staticmethod
    def _rows(images):
        return images.mean(-1).reshape(len(images), -1) / 127.5 - 1  # luminance, flat

    def confidence(self, images) -> np.ndarray:
        """The probability of the likeliest class, [N]."""
        return self.net.predict_proba(self._rows(images)).max(1)

    def features(self, images) -> np.ndarray:
        """The hidden layer, [N, 128]."""
        return np.maximum(self._rows(images) @ self.net.coefs_[0] + self.net.intercepts_[0], 0)


def frechet(a, b) -> float:
    """Fréchet distance between two sets of features [N, D]."""
    return distance.frechet(*(s for x in (a, b) for s in (x.mean(0), np.cov(x, rowvar=False))))


@partial(jax.jit, static_argnames=('model', 'd', 'condition'))
def denoising(params, batch, key, *, model, d, condition):
    """Mean squared error of x̂ (images in [−1, 1]) and v-loss at each of TIMES for a batch: {'mse': [3], 'v_loss': [3]}."""
    drawn = draw(batch, key, model=model, d=d, condition=condition, drop=0.0)
    x = drawn['x']
    e = d.noise_scale * jax.random.normal(key, x.shape)

    def at(t):
        t = jnp.full((len(x),), t)
        z = diffusion.add_noise(x, e, t)
        x_hat = model.apply({'params': params}, z, t, **drawn['told'])
        return {'mse': jnp.mean((x_hat - x) ** 2), 'v_loss': jnp.mean(diffusion.v_loss(x_hat, x, z, t, d))}

    return jax.lax.map(at, jnp.asarray(TIMES))


def guess(told: dict, image_size: int) -> np.ndarray:
    """What takes no learning: a small condition enlarged (bicubic), a hole filled with the mean of what is around it. float32."""
    cond = jnp.asarray(told['cond'])
    whole = jax.image.resize(cond, (len(cond), image_size, image_size, cond.shape[-1]), 'cubic')
    if 'cond_valid' not in told:
        return np.asarray(whole)
    seen = conditions.picture({'cond': jnp.ones_like(cond), **{k: told[k] for k in told if k != 'cond'}}, image_size)
    mean = (whole * seen).sum((1, 2), keepdims=True) / jnp.maximum(seen.sum((1, 2), keepdims=True), 1)
    return np.asarray(jnp.where(seen > 0, whole, mean))
