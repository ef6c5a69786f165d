"""The network, a sampler and guidance put together: noise and what the model is told → images."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import jax
import jax.numpy as jnp

from jit_jax.diffusion import conditions, guidance, samplers
from jit_jax.diffusion.objective import Diffusion
from jit_jax.model import sharding
from jit_jax.model.jit import JiT


@dataclass(frozen=True)
class Settings:
    """How to sample: a name of SAMPLERS, network passes by `steps`, classifier-free guidance on low < t < high."""

    sampler: str = 'heun'
    steps: int = 50
    guidance: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)


def generate(
    params, z, conditioning: dict, *, model: JiT, d: Diffusion, settings: Settings, watch=None
) -> jax.Array:
    """Denoises z [B, H, W, C] (unit normal noise) under `told` (keywords of `JiT.__call__`) → float32 images in about [−1, 1].

    The null branch of guidance is the same network without condition slots, so it pays for 256 of them.
    Pure: jit it once for each shape of `told`. watch(t, z, x̂), if given, is called with each pass of the network.
    """

    params = jax.device_put(
        params, jax.memory.Space.Device
    )  # from the host, where it keeps the averages
    model = model.clone(
        scan=True, remat='none'
    )  # two or four copies of the network: compile them in seconds

    def denoise(conditioning):
        return lambda z, t: model.apply({'params': params}, z, t, **conditioning)

    net = denoise(conditioning)
    if conditioning:
        net = guidance.guide(
            net,
            denoise(conditions.null(conditioning, model.num_classes)),
            settings.guidance,
            settings.interval,
        )
    if watch:
        net = watched(net, watch)
    return samplers.sample(
        net, d.noise_scale * z, d, steps=settings.steps, sampler=settings.sampler
    )


def watched(net: samplers.Denoise, watch) -> samplers.Denoise:
    """`net`, telling watch(t, z, x̂) of every pass, in order, while the program runs (on one device)."""

    def denoise(z, t):
        x = net(z, t)
        jax.debug.callback(watch, t[0], z, x, ordered=True)
        return x

    return denoise


def noise(key, start: int, count: int, model: JiT) -> jax.Array:
    """Unit normal noise of images number start … start + count − 1: image i is the same in any batching."""
    shape = (model.image_size, model.image_size, model.channels)
    one = lambda i: jax.random.normal(jax.random.fold_in(key, i), shape)
    return jax.vmap(one)(start + jnp.arange(count))


@lru_cache(
    16
)  # a Linen module, its settings and a mesh hash by what they hold, so a second call finds its program
def jitted(model: JiT, d: Diffusion, settings: Settings, mesh: jax.sharding.Mesh) -> Callable:
    """`generate` compiled for arrays on `mesh`: (params, z, told) → images."""
    return jax.jit(sharding.within(mesh, partial(generate, model=model, d=d, settings=settings)))
