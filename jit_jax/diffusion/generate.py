"""The network, a sampler and guidance put together: noise and conditioning → images."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp

from jit_jax.diffusion import conditions, guidance, objective, samplers
from jit_jax.diffusion.objective import Diffusion
from jit_jax.model import sharding
from jit_jax.model.jit import JiT, layers_of


@dataclass(frozen=True)
class Settings:
    """How to sample: a name of SAMPLERS, its steps, guidance by a scale (1: none) for low < t <
    high, and the least 1 − t that the sampler divides by (0: the last step ends on x̂).
    """

    sampler: str = 'heun'
    steps: int = 50
    guidance: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    t_eps: float = objective.T_EPS


def generate(
    params,
    z,
    conditioning: dict,
    scale=None,
    interval=(0.0, 1.0),
    begin=None,
    *,
    model: JiT,
    d: Diffusion,
    sampler: str,
    steps: int,
    t_eps: float,
    watch: Callable | None = None,
) -> jax.Array:
    """Denoises unit normal noise under a condition. Pure: to be jitted.

    The null branch of guidance is the same network without condition slots, so it pays for 256 of
    them.

    Args:
      params: the parameter tree, float32, in the memory of the device or of its host.
      z: float32 [B, H, W, C], unit normal.
      conditioning: keywords of `JiT.__call__`, B rows each; {} for none.
      scale, interval: guidance, numbers or float32 scalars. scale None leaves the null branch out.
        A model that takes guidance as an input is told scale at all t, and has no null branch.
      begin: (t, x) to begin from images x, float32 [B, H, W, C] in [−1, 1], under noise at time t,
        a number or float32 scalar from 0 to below 1: z_t = t·x + (1 − t)·noise_scale·z. None: from
        noise at t = 0.
      d: what the network was trained with.
      sampler, steps, t_eps: as `Settings` has them. The sampler takes t_eps in place of d's, which
        stays where the network's output becomes x̂.
      watch: called as watch(t, z, x̂) after each pass of the network, in order, on one device.

    Returns float32 [B, H, W, C] in about [−1, 1].
    """
    params = jax.device_put(
        params, jax.memory.Space.Device
    )  # from the host, where it keeps averages
    params = cast_kernels(params, model.dtype)
    # A program holds three or six copies of the network: scanned, they compile in seconds. On a
    # GPU each of many passes would copy the weights out of their stacks.
    weights = {}
    if sharding.platform() == 'gpu' and not model.scan:
        weights = {'layers': layers_of(params, model.depth)}
    model = model.clone(scan=True, remat='none')

    asked = {}
    if conditioning and scale is not None and model.guidance:
        asked['guidance'] = jnp.reshape(scale, 1)

    def denoiser(conditioning):
        def denoise(z, t, *end):
            told = conditioning | asked | ({'end': end[0]} if end else {})
            output = model.apply({'params': params}, z, t, **weights, **told)
            return objective.clean_image(output, z, t, d)

        return denoise

    net = denoiser(conditioning)
    if conditioning and scale is not None and not model.guidance:
        null = denoiser(conditions.null(conditioning, model.num_classes))
        net = guidance.guide(net, null, scale, interval)
    if watch:
        net = watched(net, watch)
    z, start = d.noise_scale * z, 0.0
    if begin is not None:
        start, x = begin
        z = objective.add_noise(x, z, jnp.full(1, start))
    d = replace(d, t_eps=t_eps)
    return samplers.sample(net, z, d, steps=steps, sampler=sampler, start=start)


def cast_kernels(params, dtype) -> dict:
    """Kernels in the dtype of the arithmetic, once for all passes; everything else as it is."""

    def cast(path, leaf):
        return leaf.astype(dtype) if sharding.path_name(path).endswith('kernel') else leaf

    return jax.tree_util.tree_map_with_path(cast, params)


def watched(net: samplers.Denoise, watch: Callable) -> samplers.Denoise:
    """`net`, which also calls watch(t, z, x̂) for every pass, in order, while the program runs."""

    def denoise(z, t, *end):
        x_hat = net(z, t, *end)
        jax.debug.callback(watch, t[0], z, x_hat, ordered=True)
        return x_hat

    return denoise


def noise(key, start: int, count: int, model: JiT) -> jax.Array:
    """Unit normal noise of images number start … start + count − 1: float32 [count, H, W, C].

    Image i is the same in any batching.
    """
    shape = (model.image_size, model.image_size, model.channels)

    def one(i):
        return jax.random.normal(jax.random.fold_in(key, i), shape)

    return jax.vmap(one)(start + jnp.arange(count))


# A Linen module, its settings and a mesh hash by what they hold, so a second call finds its
# program.
@lru_cache(16)
def sampling_program(
    model: JiT, d: Diffusion, sampler: str, steps: int, t_eps: float, mesh: jax.sharding.Mesh
) -> Callable:
    """`generate`, jitted for arrays on `mesh`: (params, z, conditioning, *guidance_arguments(…),
    begin=None) → images.
    """
    run = partial(generate, model=model, d=d, sampler=sampler, steps=steps, t_eps=t_eps)
    return jax.jit(sharding.within(mesh, run))


def guidance_arguments(scale: float, interval: tuple[float, float]) -> tuple:
    """Guidance as arguments of a program, which serves all their values; () for scale 1, without a
    null branch.
    """
    if scale == 1:
        return ()
    low, high = interval
    return jnp.float32(scale), (jnp.float32(low), jnp.float32(high))


def begin_arguments(begin: tuple | None) -> dict:
    """Where to begin, as keywords of a program, which serves every time after 0; {} for noise."""
    if begin is None or begin[0] == 0:
        return {}
    t, x = begin
    return {'begin': (jnp.float32(t), x)}


def compiled_sampler(
    model: JiT, d: Diffusion, sampler: str, steps: int, t_eps: float, mesh: jax.sharding.Mesh
) -> Callable:
    """(params, z, conditioning, guidance=1, interval=(0, 1), begin=None) → images, for arrays on
    `mesh`.

    Compiled once for each shape of the conditioning, and once more for guidance other than 1, and
    for beginning from images, at whatever time.
    """
    program = sampling_program(model, d, sampler, steps, t_eps, mesh)

    def draw(params, z, conditioning, guidance=1.0, interval=(0.0, 1.0), begin=None):
        arguments = guidance_arguments(guidance, interval)
        return program(params, z, conditioning, *arguments, **begin_arguments(begin))

    return draw
