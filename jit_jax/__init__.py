"""JiT, image generation in pixel space with a plain transformer, in JAX: one sequence for every condition.

model, params = jit_jax.load('runs/uncond')
images = jit_jax.sample(model, params, jax.random.key(0), num=16)
"""

__version__ = '0.1.0'


def load(path, ema=None) -> tuple:
    """See `jit_jax.trained.load`."""
    from jit_jax import trained

    return trained.load(path, ema)


def sample(model, params, key, num=16, **kwargs) -> object:
    """See `jit_jax.trained.sample`."""
    from jit_jax import trained

    return trained.sample(model, params, key, num, **kwargs)
