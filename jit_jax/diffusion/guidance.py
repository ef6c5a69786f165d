"""Classifier-free guidance."""

import jax

from jit_jax.diffusion.samplers import Denoise

# Published guidance scales by image size and variant; the release names none for G.
GUIDANCE = {
    (256, 'B'): 3.0,
    (256, 'L'): 2.4,
    (256, 'H'): 2.2,
    (512, 'B'): 3.0,
    (512, 'L'): 2.5,
    (512, 'H'): 2.3,
}


def guide(
    conditional: Denoise, null: Denoise, scale: float, interval: tuple[float, float] = (0.0, 1.0)
) -> Denoise:
    """Classifier-free guidance: v = v_null + scale·(v_cond − v_null) for low < t < high, else v_cond.

    v is affine in x̂ at one (z, t), so mixing x̂ is the same. With low = 0 the interval includes t = 0. Outside
    the interval, and everywhere for scale = 1, the null branch does not run.
    """
    low, high = interval
    if scale == 1:
        return conditional

    def denoise(z, t):
        x = conditional(z, t)
        mix = lambda x: (lambda x0: x0 + scale * (x - x0))(null(z, t))
        return jax.lax.cond(((t[0] > low) | (low == 0)) & (t[0] < high), mix, lambda x: x, x)

    return denoise
