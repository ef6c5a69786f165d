"""The paper's equations ("Back to Basics: Let Denoising Generative Models Denoise", arXiv
2511.13720).

Time runs from t = 0 (noise) to t = 1 (clean). Images are float32 in [−1, 1], NHWC; t is [B].
As published, the network predicts the clean image x and the loss is of the velocity v. The paper's
table 1 has all nine combinations: x, the noise ε or v, predicted under a loss of any of them.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

QUANTITIES = ('x', 'eps', 'v')  # what a network can predict, and what a loss can be of
T_EPS = 0.05  # as published
OBJECTIVES = ('flow', 'meanflow')  # x̂ of the velocity at t, or of the average one from t to an end


@dataclass(frozen=True)
class Diffusion:
    """The numbers of the objective, and its two quantities.

    t = sigmoid(N(t_mean, t_std²)); e ~ N(0, noise_scale²); 1 − t, and t where ε is predicted, are
    clamped at t_eps wherever something is divided by them; samplers have a t_eps of their own.
    predict: what the network's output is; loss: what the squared error is of; both of QUANTITIES.
    objective: what x̂ is of, one of OBJECTIVES; the rest is of `meanflow.py` alone: of how many rows
    one has a step, the share of uniform times, the range of guidance, and the power by which rows
    of a large loss weigh less.
    """

    noise_scale: float
    t_mean: float = -0.8
    t_std: float = 0.8
    t_eps: float = T_EPS
    predict: str = 'x'
    loss: str = 'v'
    objective: str = 'flow'
    mean_every: int = 2
    uniform: float = 0.5
    guidance: tuple[float, float] = (1.0, 1.0)
    adaptive: float = 0.0


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


def convert(value, z, t, d: Diffusion, *, source: str, target: str) -> jax.Array:
    """One of QUANTITIES as another one, at (z, t): the paper's table 1.

    All of it is z = t·x + (1 − t)·ε (eq. 1) and v = x − ε (eq. 2), solved for what is asked. What
    divides is at least t_eps, as 1 − t is in the official code. So ε at t = 0, which says nothing
    of x, becomes (z − ε) / t_eps.
    """
    t = expand(t, z)
    match source, target:
        case 'x', 'v':
            return (value - z) / jnp.maximum(1 - t, d.t_eps)  # eq. 4
        case 'x', 'eps':
            return (z - t * value) / jnp.maximum(1 - t, d.t_eps)
        case 'eps', 'x':
            return (z - (1 - t) * value) / jnp.maximum(t, d.t_eps)
        case 'eps', 'v':
            return (z - value) / jnp.maximum(t, d.t_eps)
        case 'v', 'x':
            return z + (1 - t) * value
        case 'v', 'eps':
            return z - t * value
    return value


def clean_image(output, z, t, d: Diffusion) -> jax.Array:
    """x̂ of what the network says about z at t."""
    return convert(output, z, t, d, source=d.predict, target='x')


def velocity(x, z, t, d: Diffusion) -> jax.Array:
    """v of x (eq. 4), with 1 − t clamped at t_eps as in the official code."""
    return convert(x, z, t, d, source='x', target='v')


def loss(output, x, z, t, d: Diffusion) -> jax.Array:
    """The squared error of what the network predicts, of the quantity that d.loss names.

    Averaged over the pixels of each row: float32 [B]. The truth is converted as the output is,
    clamps included, so a network that is right has no loss at any t.
    """
    truth = convert(x, z, t, d, source='x', target=d.predict)
    return _squared_error(output, truth, z, t, d, source=d.predict, target=d.loss)


def v_loss(x_hat, x, z, t, d: Diffusion) -> jax.Array:
    """|v̂ − v|² (eq. 6) of x̂, whatever d predicts: float32 [B]. The published loss."""
    return _squared_error(x_hat, x, z, t, d, source='x', target='v')


def _squared_error(output, truth, z, t, d: Diffusion, *, source: str, target: str) -> jax.Array:
    """|·|² between two values of `source`, both as `target`, averaged over each row: [B]."""
    said = convert(output.astype(jnp.float32), z, t, d, source=source, target=target)
    error = said - convert(truth, z, t, d, source=source, target=target)
    return jnp.mean(error**2, axis=tuple(range(1, error.ndim)))
