"""The network, a sampler and guidance put together: noise and conditioning → images."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jit_jax.diffusion import conditions, guidance, objective, samplers
from jit_jax.diffusion.objective import Diffusion
from jit_jax.model import sharding
from jit_jax.model.jit import LAYERED, JiT, layers_of


class SkipGuidance(NamedTuple):
    """Guidance by the network itself with some blocks left out, as a worse model of the same.

    Autoguidance (arXiv 2406.02507) with a weak model that costs no weights and no training, known
    as skip-layer guidance: x̂_skip + scale·(x̂ − x̂_skip) for low < t < high.
    """

    blocks: tuple[int, ...]  # numbered from 0
    scale: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Settings:
    """How to sample: a name of SAMPLERS, its steps, guidance by a scale (1: none) for low < t <
    high, and the least 1 − t that the sampler divides by (0: the last step ends on x̂).

    skip_blocks, skip_scale, skip_interval: guidance away from the same network without these
    blocks, numbered from 0 (`SkipGuidance`); () or scale 1: none.
    """

    sampler: str = 'heun'
    steps: int = 50
    guidance: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    t_eps: float = objective.T_EPS
    skip_blocks: tuple[int, ...] = ()
    skip_scale: float = 1.0
    skip_interval: tuple[float, float] = (0.0, 1.0)

    @property
    def skip(self) -> SkipGuidance | None:
        """What `generate` takes; None where no block is left out or the scale is 1."""
        if not self.skip_blocks or self.skip_scale == 1:
            return None
        return SkipGuidance(self.skip_blocks, self.skip_scale, self.skip_interval)


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
    skip: SkipGuidance | None = None,
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
      skip: guidance away from the network without some blocks, on top of `scale`'s; None for none.
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
    network = model, params, weights

    asked = {}
    if conditioning and scale is not None and model.guidance:
        asked['guidance'] = jnp.reshape(scale, 1)

    def denoiser(conditioning, network=network):
        net, params, weights = network

        def denoise(z, t, *end):
            told = conditioning | asked | ({'end': end[0]} if end else {})
            output = net.apply({'params': params}, z, t, **weights, **told)
            return objective.clean_image(output, z, t, d)

        return denoise

    net = denoiser(conditioning)
    if conditioning and scale is not None and not model.guidance:
        null = denoiser(conditions.null(conditioning, model.num_classes))
        net = guidance.guide(net, null, scale, interval)
    if skip:
        worse = denoiser(conditioning, without_blocks(*network, skip.blocks))
        net = guidance.guide(net, worse, skip.scale, skip.interval)
    if watch:
        net = watched(net, watch)
    z, start = d.noise_scale * z, 0.0
    if begin is not None:
        start, x = begin
        z = objective.add_noise(x, z, jnp.full(1, start))
    d = replace(d, t_eps=t_eps)
    return samplers.sample(net, z, d, steps=steps, sampler=sampler, start=start)


def without_blocks(model: JiT, params, weights: dict, blocks: tuple[int, ...]) -> tuple:
    """A network without some of its blocks: (model, params, weights) as `generate` applies them.

    Class tokens still enter before the block that they entered before.
    """
    left = [i for i in range(model.depth) if i not in blocks]
    start = sum(i < model.class_start for i in left)
    smaller = dict(params)
    for name in LAYERED:
        smaller[name] = jax.tree.map(lambda leaf: leaf[np.array(left)], params[name])
    if weights:
        weights = {'layers': [weights['layers'][i] for i in left]}
    return model.clone(depth=len(left), class_start=start), smaller, weights


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
    model: JiT,
    d: Diffusion,
    sampler: str,
    steps: int,
    t_eps: float,
    mesh: jax.sharding.Mesh,
    skip: SkipGuidance | None = None,
) -> Callable:
    """`generate`, jitted for arrays on `mesh`: (params, z, conditioning, *guidance_arguments(…),
    begin=None) → images.
    """
    how = {'sampler': sampler, 'steps': steps, 't_eps': t_eps, 'skip': skip}
    run = partial(generate, model=model, d=d, **how)
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
    model: JiT,
    d: Diffusion,
    sampler: str,
    steps: int,
    t_eps: float,
    mesh: jax.sharding.Mesh,
    skip: SkipGuidance | None = None,
) -> Callable:
    """(params, z, conditioning, guidance=1, interval=(0, 1), begin=None) → images, for arrays on
    `mesh`.

    Compiled once for each shape of the conditioning, and once more for guidance other than 1, and
    for beginning from images, at whatever time.
    """
    program = sampling_program(model, d, sampler, steps, t_eps, mesh, skip)

    def draw(params, z, conditioning, guidance=1.0, interval=(0.0, 1.0), begin=None):
        arguments = guidance_arguments(guidance, interval)
        return program(params, z, conditioning, *arguments, **begin_arguments(begin))

    return draw
