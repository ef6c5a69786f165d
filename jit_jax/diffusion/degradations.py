"""What photographs suffer, made on the device: blur, fewer pixels, noise, JPEG blocks.

The four follow each other once or twice, as in Real-ESRGAN (arXiv 2107.10833), each by a random
amount. Functions with a `strength` take one image, float32 [H, W, C] in [−1, 1], and are vmapped
over rows; strength 0 is the identity, 1 about the range of that paper, and more is stronger. All is
matrix products, which every accelerator has, and which the partitioner splits by rows.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

BLUR = 1 / 32  # of the side: the largest standard deviation at strength 1
SHRINK = 3.0  # a side becomes up to 1 + 3 times smaller at strength 1
NOISE = 0.2  # the largest standard deviation of noise at strength 1; images span 2
JPEG = 1.7  # times the standard tables at strength 1: about quality 30
BLOCK = 8  # pixels along each side of a JPEG block
GREY_NOISE, POISSON = 0.4, 0.5  # how often noise is the same in all channels, and like photons

# ITU-T T.81 | ISO/IEC 10918-1, annex K: rows are vertical frequencies, from the lowest.
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)
# RGB → Y, Cb, Cr (JFIF), rows; of values around 0.
YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168736, -0.331264, 0.5),
    (0.5, -0.418688, -0.081312),
)
einsum = partial(jnp.einsum, precision='highest')  # bfloat16 passes would be seen as noise


def degrade(x, key, *, times: int, strength: tuple[float, float]) -> jax.Array:
    """Each row degraded by amounts of its own.

    Args:
      x: float32 [B, H, H, C] in [−1, 1], H a multiple of 8.
      key: a random key; row i depends on it and on i alone.
      times: how often blur, resizing, noise and JPEG follow each other: 1, or 2 for the paper's
        second order.
      strength: (low, high), between which each row's strength is drawn, evenly.

    Returns float32 of x's shape in [−1, 1].
    """
    radius = math.ceil(3 * BLUR * strength[1] * x.shape[1])

    def one(x, i):
        strength_key, *keys = jax.random.split(jax.random.fold_in(key, i), 1 + times)
        row = jax.random.uniform(strength_key, minval=strength[0], maxval=strength[1])
        for once in keys:
            x = degrade_once(x, once, row, radius)
        return x

    return jax.vmap(one)(x, jnp.arange(len(x)))


def degrade_once(x, key, strength, radius: int) -> jax.Array:
    """Blur, resizing, noise and JPEG, in this order. radius: of the blur, in pixels."""
    blur_key, resize_key, noise_key, jpeg_key = jax.random.split(key, 4)
    x = random_blur(x, blur_key, strength, radius)
    x = random_resize(x, resize_key, strength)
    x = jnp.clip(random_noise(x, noise_key, strength), -1, 1)
    scale = JPEG * strength * jax.random.uniform(jpeg_key)
    return jnp.clip(jpeg(x, scale), -1, 1)


def random_blur(x, key, strength, radius: int) -> jax.Array:
    """A Gaussian of random widths along two axes that are turned at random; half the time round."""
    first, second, turn, is_round = jax.random.uniform(key, (4,))
    widths = jnp.stack([first, jnp.where(is_round < 0.5, first, second)])
    widths = strength * BLUR * x.shape[0] * widths
    angle = math.pi * turn
    return blur(x, widths, angle, radius)


def blur(x, widths, angle, radius: int) -> jax.Array:
    """x under a Gaussian of standard deviations `widths` [2], in pixels, the first along `angle`.

    What lies beyond the picture has no weight. Row by row of the kernel, of 2·radius + 1, a matrix
    product over columns.
    """
    H, W, C = x.shape
    # The inverse of the covariance; below a tenth of a pixel the kernel is one pixel all the same.
    u, v = 1 / jnp.maximum(widths, 0.1) ** 2
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    yy = u * sin**2 + v * cos**2
    xy = (u - v) * sin * cos
    xx = u * cos**2 + v * sin**2
    across = jnp.arange(W) - jnp.arange(W)[:, None]  # from a new pixel to an old one
    counted = jnp.concatenate([x, jnp.ones((H, W, 1))], -1)  # the last channel sums the weights
    padded = jnp.pad(counted, ((radius, radius), (0, 0), (0, 0)))

    def add(total, down):
        weights = jnp.exp(-(yy * down**2 + 2 * xy * down * across + xx * across**2) / 2)
        rows = jax.lax.dynamic_slice_in_dim(padded, radius + down, H)
        return total + einsum('hwc,vw->hvc', rows, weights), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(counted), jnp.arange(-radius, radius + 1))
    return total[..., :C] / total[..., C:]


def random_resize(x, key, strength) -> jax.Array:
    """A square x made smaller by a random factor and as large as before, linear or cubic."""
    amount, kernel = jax.random.uniform(key, (2,))
    size = len(x)
    count = jnp.round(size / (1 + SHRINK * strength * amount))
    is_cubic = kernel < 0.5
    down = resampling(size, size, count, is_cubic)
    up = resampling(size, count, size, is_cubic)
    there_and_back = einsum('ij,jk->ik', up, down)
    return einsum('ih,hwc,jw->ijc', there_and_back, x, there_and_back)


def resampling(size: int, count, wanted, is_cubic) -> jax.Array:
    """Weights [size, size] that make `wanted` pixels of `count`, both at most `size`; antialiased.

    Row i is the new pixel i, column j the old pixel j; what lies beyond is 0. Cubic (Catmull and
    Rom's, wider where pixels become fewer, as in Pillow) or linear. A count may be traced.
    """
    new, old = jnp.arange(size)[:, None], jnp.arange(size)
    ratio = count / wanted
    distance = jnp.abs(old - ((new + 0.5) * ratio - 0.5)) / jnp.maximum(ratio, 1)
    weights = jnp.where(is_cubic, _cubic(distance), jnp.maximum(1 - distance, 0))
    weights = jnp.where((old < count) & (new < wanted), weights, 0)
    total = weights.sum(1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1)


def _cubic(distance) -> jax.Array:
    """The cubic kernel with a = −½."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return jnp.where(distance < 1, near, jnp.where(distance < 2, far, 0))


def random_noise(x, key, strength) -> jax.Array:
    """x with normal noise, at times grey, at times stronger where x is brighter, as photons are."""
    amount_key, noise_key = jax.random.split(key)
    amount, grey, photons = jax.random.uniform(amount_key, (3,))
    noise = jax.random.normal(noise_key, x.shape)
    noise = jnp.where(grey < GREY_NOISE, noise[..., :1], noise)
    light = jnp.sqrt(jnp.clip((x + 1) / 2, 0, 1))
    noise = jnp.where(photons < POISSON, light, 1) * noise
    return x + NOISE * strength * amount * noise


def jpeg(x, scale) -> jax.Array:
    """What JPEG keeps of x [H, W, 1 or 3]: blocks of 8×8 whose frequencies are rounded.

    scale: what the standard tables are multiplied with, 0 for no rounding at all; quality q of
    libjpeg is 2 − q/50 from q = 50 on. Colours keep their resolution.
    """
    colour = jnp.asarray(YCBCR) if x.shape[-1] == 3 else jnp.eye(1)
    tables = jnp.asarray([LUMINANCE, CHROMINANCE, CHROMINANCE][: x.shape[-1]], jnp.float32)
    steps = scale * jnp.moveaxis(tables, 0, -1)[:, None] / 127.5  # [8, 1, 8, C], of x's values
    found = block_frequencies(einsum('hwc,dc->hwd', x, colour))
    kept = jnp.where(steps > 0, jnp.round(found / jnp.where(steps > 0, steps, 1)) * steps, found)
    return einsum('hwd,cd->hwc', from_block_frequencies(kept), jnp.linalg.inv(colour))


def block_frequencies(x) -> jax.Array:
    """x [H, W, C] → the cosine transform of each block: [H/8, 8, W/8, 8, C], scaled as in JPEG."""
    H, W, C = x.shape
    blocks = x.reshape(H // BLOCK, BLOCK, W // BLOCK, BLOCK, C)
    return einsum('ui,aibjc,vj->aubvc', _dct(), blocks, _dct())


def from_block_frequencies(found) -> jax.Array:
    """The inverse of `block_frequencies`."""
    rows, _, columns, _, C = found.shape
    blocks = einsum('ui,aubvc,vj->aibjc', _dct(), found, _dct())
    return blocks.reshape(rows * BLOCK, columns * BLOCK, C)


def _dct() -> np.ndarray:
    """The orthonormal cosine transform of 8 values, float32 [8, 8], rows by frequency."""
    u, i = np.meshgrid(np.arange(BLOCK), np.arange(BLOCK), indexing='ij')
    waves = np.cos((2 * i + 1) * u * np.pi / (2 * BLOCK)) * math.sqrt(2 / BLOCK)
    waves[0] /= math.sqrt(2)
    return waves.astype(np.float32)
