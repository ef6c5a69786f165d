"""How good images are: against the truth, against a data set's features, and to a classifier's eye.

Images are uint8 [N, H, W, C], rounded as a PNG would have them; every number of a paper is of such images.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jit_jax import conditions, diffusion
from jit_jax.fid.distance import Moments

TIMES = (0.2, 0.5, 0.8)  # of x̂ in the denoising evaluation
BUCKETS = 4  # of t, for the validation loss


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

    images uint8 [N, H, W, C] and labels int [N] are of the training split. Its numbers are not FID and are named otherwise.
    """

    def __init__(self, images, labels):
        from sklearn.neural_network import MLPClassifier

        self.net = MLPClassifier((128,), max_iter=100, random_state=0).fit(self._rows(images), labels)

    @staticmethod
    def _rows(images):
        """Luminance, flat, of images made smaller to at most 32 × 32 or a little more."""
        gray, by = images.mean(-1), max(1, images.shape[1] // 32)
        side = gray.shape[1] // by
        gray = gray[:, : side * by, : side * by].reshape(len(gray), side, by, side, by).mean((2, 4))
        return gray.reshape(len(gray), -1) / 127.5 - 1

    def confidence(self, images) -> np.ndarray:
        """The probability of the likeliest class, [N]."""
        return self.net.predict_proba(self._rows(images)).max(1)

    def moments(self, images, moments: Moments | None = None) -> Moments:
        """Of the hidden layer, 128 wide; added to `moments` when they are given."""
        moments = Moments(128) if moments is None else moments
        moments.update(np.maximum(self._rows(images) @ self.net.coefs_[0] + self.net.intercepts_[0], 0))
        return moments


def denoising(params, batch, key, *, model, d, condition) -> dict:
    """How well held-out images are denoised, summed over the rows of a batch whose 'weight' is 1.

    Returns {'weight': [], 'mse': [3], 'psnr': [3], 'v_loss': [BUCKETS]}: MSE (of images in [−1, 1]) and PSNR of x̂ at
    each of TIMES, and the v-loss at a random t in each of equal parts of [0, 1].
    """
    params = jax.device_put(params, jax.memory.Space.Device)  # from the host, where it keeps the averages
    condition_key, noise_key, t_key = jax.random.split(key, 3)
    x = conditions.from_uint8(batch['image'])
    told = condition(x, batch, condition_key)
    e = d.noise_scale * jax.random.normal(noise_key, x.shape)
    random = (jnp.arange(BUCKETS)[:, None] + jax.random.uniform(t_key, (BUCKETS, len(x)))) / BUCKETS
    fixed = jnp.broadcast_to(jnp.asarray(TIMES)[:, None], (len(TIMES), len(x)))

    def at(t):
        z = diffusion.add_noise(x, e, t)
        x_hat = model.apply({'params': params}, z, t, **told)
        mse = jnp.mean((jnp.clip(x_hat, -1, 1) - x) ** 2, (1, 2, 3))
        return jnp.stack([mse, 10 * jnp.log10(4 / mse), diffusion.v_loss(x_hat, x, z, t, d)])

    found = jax.lax.map(at, jnp.concatenate([fixed, random]))  # [times, 3, B]: rows stay where they are until the end
    mse, psnr, v_loss = (found * batch['weight']).sum(-1).T
    n = len(TIMES)
    return {'weight': batch['weight'].sum(), 'mse': mse[:n], 'psnr': psnr[:n], 'v_loss': v_loss[n:]}


def denoised(sums: list[dict]) -> dict:
    """What `denoising` returned for several batches → their means by name, such as psnr_t0.5 and v_loss_t0.25_0.5."""
    total = jax.tree.map(lambda *parts: np.sum([np.asarray(part, np.float64) for part in parts], 0), *sums)
    edges = [k / BUCKETS for k in range(BUCKETS + 1)]
    names = {name: [f'{name}_t{t}' for t in TIMES] for name in ('mse', 'psnr')}
    names['v_loss'] = [f'v_loss_t{low}_{high}' for low, high in zip(edges, edges[1:])]
    return {name: value for kind in names for name, value in zip(names[kind], total[kind] / total['weight'], strict=True)}


def guess(told: dict, image_size: int) -> np.ndarray:
    """What takes no learning: a small condition enlarged (bicubic), a hole filled with the mean of what is around it. float32."""
    cond = jnp.asarray(told['cond'])
    whole = jax.image.resize(cond, (len(cond), image_size, image_size, cond.shape[-1]), 'cubic')
    if 'cond_grid' in told:  # rows of several sizes: nearest neighbour
        whole = conditions.picture({**told, 'cond_valid': jnp.ones_like(told['cond_valid'])}, image_size)
    if 'cond_valid' not in told:
        return np.asarray(whole)
    seen = conditions.picture({'cond': jnp.ones_like(cond), **{k: told[k] for k in told if k != 'cond'}}, image_size)
    mean = (whole * seen).sum((1, 2), keepdims=True) / jnp.maximum(seen.sum((1, 2), keepdims=True), 1)
    return np.asarray(jnp.where(seen > 0, whole, mean))
