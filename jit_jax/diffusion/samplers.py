"""From noise to images: Euler, Heun and a multistep method over a callable.

`denoise(z, t)` takes z float32 [B, H, W, C] and t [1] and returns x̂ of z's shape; the samplers
know no model. `meanflow` asks `denoise(z, t, end)`, with the end [1] of the step that x̂ is of.
State and velocity stay float32: a bfloat16 state ends in salt-and-pepper noise.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jit_jax.diffusion.objective import Diffusion, velocity

Denoise = Callable[..., jax.Array]


def euler(v: Denoise, z, t, t_next, before, first) -> tuple[jax.Array, jax.Array]:
    """z + (t' − t)·v(z, t)."""
    now = v(z, t)
    return z + (t_next - t) * now, now


def heun(v: Denoise, z, t, t_next, before, first) -> tuple[jax.Array, jax.Array]:
    """Euler's step, then the mean of the velocities at both of its ends: two passes of the
    network.
    """
    now = v(z, t)
    ahead = v(z + (t_next - t) * now, t_next)
    return z + (t_next - t) * 0.5 * (now + ahead), now


def multistep(v: Denoise, z, t, t_next, before, first) -> tuple[jax.Array, jax.Array]:
    """Adams and Bashforth's second order: the velocity goes on changing as in the step before. One
    pass.
    """
    now = v(z, t)
    slope = jnp.where(first, 0, 0.5 * (now - before))  # Nothing was before the first step.
    return z + (t_next - t) * (now + slope), now


def meanflow(v: Denoise, z, t, t_next, before, first) -> tuple[jax.Array, jax.Array]:
    """z + (t' − t)·u(z, t, t'), by the average velocity u that a network has learned. One pass."""
    now = v(z, t, t_next)
    return z + (t_next - t) * now, now


# (v, z, t, t', the velocity one step before, whether there was none) → (z', v(z, t)), for steps of
# equal length.
SAMPLERS = {'euler': euler, 'heun': heun, 'multistep': multistep, 'meanflow': meanflow}


def sample(
    denoise: Denoise, z, d: Diffusion, *, steps: int, sampler: str = 'heun', start=0.0
) -> jax.Array:
    """Integrates dz/dt = v from z at t = start (at 0 noise, already scaled) to an image at t = 1.

    Takes `steps` equal steps. The last one is Euler's, as in the official code, and no network is
    asked at t = 1. d.t_eps is the least 1 − t that v divides by. The last step ends on x̂, bit for
    bit, where it is at least as long as t_eps, so always where t_eps is 0. A shorter one stops
    short of x̂ and leaves noise in the image: at 50 steps with t_eps 0.05 it covers 0.02 / 0.05 of
    the way from z to x̂, as published.

    One scan runs all steps but the last, so one step is compiled. `start` may be traced. Returns
    float32 of z's shape.
    """
    step = SAMPLERS[sampler]
    times = jnp.linspace(start, 1.0, steps + 1)

    def v(z, t, *end):
        x_hat = denoise(z, t[None], *(one[None] for one in end)).astype(jnp.float32)
        return velocity(x_hat, z, t[None], d)

    def advance(carry, ends):
        z, before = carry
        t, t_next = ends
        return step(v, z, t, t_next, before, t == times[0]), None

    z = z.astype(jnp.float32)
    carry = (z, jnp.zeros_like(z))
    (z, _), _ = jax.lax.scan(advance, carry, (times[:-2], times[1:-1]))
    t = times[-2]
    way = (1 - t) / jnp.maximum(1 - t, d.t_eps)  # from z to x̂, for Euler's step from t to 1
    end = [times[-1:]] if sampler == 'meanflow' else []
    x_hat = denoise(z, t[None], *end).astype(jnp.float32)
    return (1 - way) * z + way * x_hat  # not z + way · (x̂ − z), which rounds x̂
