"""The paper's equations ("Back to Basics: Let Denoising Generative Models Denoise", arXiv
2511.13720).

Time runs from t = 0 (noise) to t = 1 (clean). Images are float32 in [−1, 1], NHWC; t is [B].
The network predicts the clean image x̂; the loss is taken in v-space.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Diffusion:
    """The numbers of the objective.

    t = sigmoid(N(t_mean, t_std²)); e ~ N(0, noise_scale²); 1 − t is clamped at t_eps wherever v
    divides by it.
    """

    noise_scale: float
    t_mean: float = -0.8
    t_std: float = 0.8
    t_eps: float = 0.05


def expand(t, like) -> jax.Array:
    """t [B] or [1] → [B, 1, 1, 1], to multiply images."""
    return t.reshape(-1, *[1] * (like.ndim - 1))


def sample_t(key, batch: int, d: Diffusion) -> jax.Array:
    """Logit-normal times, float32 [B] in (0, 1)."""
    return jax.nn.sigmoid(d.t_mean + d.t_std * jax.random.normal(key, (batch,)))


def add_noise(x, e, t) -> jax.Array:
    """z_t = t·x + (1 − t)·e (eq. 1), with e already scaled."""
    t = expand(t, x)
    return t * x + (1 - t) * e


def velocity(x, z, t, d: Diffusion) -> jax.Array:
    """v = (x − z) / (1 − t) (eq. 4 solved for v), with 1 − t clamped at t_eps as in the official
    code.
    """
    return (x - z) / jnp.maximum(1 - expand(t, z), d.t_eps)


def v_loss(x_hat, x, z, t, d: Diffusion) -> jax.Array:
    """|v̂ − v|² (eq. 6), averaged over the pixels of each row: float32 [B]."""
    error = velocity(x_hat.astype(jnp.float32), z, t, d) - velocity(x, z, t, d)
    return jnp.mean(error**2, axis=tuple(range(1, error.ndim)))
