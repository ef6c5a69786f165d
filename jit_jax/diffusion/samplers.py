"""From noise to images: Euler, Heun and a multistep method over a callable, and classifier-free guidance with an interval.

`denoise(z, t)` takes z float32 [B, H, W, C] and t [1] and returns x̂ of z's shape; the samplers know no model.
State and velocity stay float32: a bfloat16 state ends in salt-and-pepper noise.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jit_jax.diffusion.objective import Diffusion, velocity

Denoise = Callable[[jax.Array, jax.Array], jax.Array]


def euler(v: Denoise, z, t, t_next, before) -> tuple[jax.Array, jax.Array]:
    """z + (t' − t)·v(z, t)."""
    now = v(z, t)
    return z + (t_next - t) * now, now


def heun(v: Denoise, z, t, t_next, before) -> tuple[jax.Array, jax.Array]:
    """Euler's step, then the mean of the velocities at both of its ends: two passes of the network."""
    now = v(z, t)
    ahead = v(z + (t_next - t) * now, t_next)
    return z + (t_next - t) * 0.5 * (now + ahead), now


def multistep(v: Denoise, z, t, t_next, before) -> tuple[jax.Array, jax.Array]:
    """Adams and Bashforth's second order: the velocity goes on changing as it did since the step before. One pass."""
    now = v(z, t)
    slope = jnp.where(t > 0, 0.5 * (now - before), 0)  # nothing was before the first step
    return z + (t_next - t) * (now + slope), now


# (v, z, t, t', the velocity one step before) → (z', v(z, t)), for steps of equal length.
SAMPLERS = {'euler': euler, 'heun': heun, 'multistep': multistep}


def sample(denoise: Denoise, z, d: Diffusion, *, steps: int, sampler: str = 'heun') -> jax.Array:
    """Integrates dz/dt = v from z at t = 0 (noise, already scaled) to an image at t = 1: float32, z's shape.

    `steps` equal steps; the last one is Euler's, as published for Heun: it ends on x̂. One scan, so it compiles one step.
    """
    step, times = SAMPLERS[sampler], jnp.linspace(0.0, 1.0, steps + 1)
    v = lambda z, t: velocity(denoise(z, t[None]).astype(jnp.float32), z, t[None], d)
    advance = lambda carry, ends: (step(v, carry[0], *ends, carry[1]), None)
    z = z.astype(jnp.float32)
    (z, before), _ = jax.lax.scan(advance, (z, jnp.zeros_like(z)), (times[:-2], times[1:-1]))
    return euler(v, z, times[-2], times[-1], before)[0]
