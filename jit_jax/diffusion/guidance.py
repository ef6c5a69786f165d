"""Classifier-free guidance (arXiv 2207.12598), limited to an interval of t (arXiv 2404.07724)."""

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


def guide(conditional: Denoise, null: Denoise, scale, interval=(0.0, 1.0)) -> Denoise:
    """v = v_null + scale·(v_cond − v_null) for low < t < high, else v_cond.

    v is affine in x̂ at one (z, t), so mixing x̂ is the same as mixing v. With low = 0 the interval
    includes t = 0, as in the official code. Outside the interval, and everywhere for scale = 1, the
    null branch does not run. A step of MeanFlow, from t to end, is inside where a part of it is.

    Args:
      conditional, null: the network with its condition, and without.
      scale: float or float32 scalar; 1 is no guidance.
      interval: (low, high), floats or float32 scalars. Scale and interval may be traced, so that
        one program
        serves every value of a sweep.
    """
    low, high = interval

    def denoise(z, t, *end):
        x_cond = conditional(z, t, *end)

        def mixed():
            x_null = null(z, t, *end)
            return x_null + scale * (x_cond - x_null)

        def unmixed():
            return x_cond

        latest = end[0][0] if end else t[0]
        after_low = (latest > low) | (low == 0)
        before_high = t[0] < high
        return jax.lax.cond(after_low & before_high & (scale != 1), mixed, unmixed)

    return denoise
