"""A perceptual loss: LPIPS between x̂ and the clean image x, of rows with little noise.

Pixel MeanFlow (arXiv 2601.22158) and PixelGen (2602.02493) add it to the loss of v:

    loss = mean over rows of |v̂ − v|² + weight · [t > after] · LPIPS(x̂, x)

Where there is much noise, x̂ is the mean of many images, and to make it look like one of them would
cost variety; both leave those rows out, at t ≤ 0.2 and t ≤ 0.3 in the time of this code. The row
counts in the mean all the same, as theirs do.

Features are float32 whatever the network computes in: they are compared where x̂ is close to x, and
a difference of two of them has few digits left. With what enters their products rounded to
bfloat16, the gradient errs by more than a tenth, and by a third where x̂ is closest; rounded to
TensorFloat-32, by a few hundredths. So products are of JAX's HIGH precision: TensorFloat-32 on a
GPU, three passes of bfloat16 on a TPU, float32 elsewhere.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jit_jax.model import lpips
from jit_jax.model.sharding import by_rows


@dataclass(frozen=True)
class Perceptual:
    """The numbers of the loss; a weight of 0 is none, and nothing of it is in the step.

    side: smaller images are enlarged to side × side pixels, as LPIPS is used for small images
    (consistency models, arXiv 2303.01469: 224); larger ones stay as they are.
    """

    weight: float = 0.0
    after: float = 0.3
    side: int = 224


def distance(weights: dict, x_hat, x, t, p: Perceptual) -> jax.Array:
    """LPIPS(x̂, x) of rows with t > p.after, float32 [B]; 0 for the others, and no gradient.

    weights: those of `lpips.load_weights`. x_hat, x: [B, H, H, 1 or 3]; gray becomes RGB.
    """
    rows = lpips.between(weights, _seen(x_hat, p), _seen(x, p), jax.lax.Precision.HIGH)
    return jnp.where(t > p.after, rows, 0)


def _seen(images, p: Perceptual) -> jax.Array:
    """What LPIPS sees of images: float32 [B, S, S, 3], S at least p.side."""
    images = images.astype(jnp.float32)
    if images.shape[-1] == 1:
        images = images.repeat(3, -1)
    rows, side, _, channels = images.shape
    if side < p.side:
        images = jax.image.resize(images, (rows, p.side, p.side, channels), 'linear')
    return by_rows(images)


def flops(image_size: int, p: Perceptual) -> float:
    """What it costs for one image in a step, in matrix products: features of x and of x̂, and the
    way back to x̂, which is as much again. LPIPS' own weights have no gradient.
    """
    if not p.weight:
        return 0
    return 3 * 2 * lpips.multiply_adds(max(image_size, p.side))
