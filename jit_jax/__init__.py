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


def train(config, workdir, *, yes=False, follow=None) -> None:
    """Trains a config object in a folder, as `jit-jax train` does: starts, or goes on where the folder left off.

    config: what `get_config` of a config file returns, with any of its values changed.
    yes: start even what would take a CPU days. follow(step) is called after each line of metrics.
    """
    from jit_jax import loop
    from jit_jax.recipe import build

    loop.train(build.run(config), workdir, yes=yes, follow=follow)
