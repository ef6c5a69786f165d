"""The library's two verbs: `jit_jax.load` a run's weights, `jit_jax.sample` images from them."""

from dataclasses import dataclass, fields, replace
from functools import partial

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from jit_jax.diffusion.generate import (
    Settings,
    compiled_sampler,
    generate,
    guidance_arguments,
    noise,
)
from jit_jax.diffusion.objective import Diffusion
from jit_jax.model.jit import JiT
from jit_jax.model.sharding import make_mesh, replicated, spread, whole_rows
from jit_jax.output.images import to_uint8
from jit_jax.recipe import build
from jit_jax.training import checkpoint

SETTINGS = tuple(field.name for field in fields(Settings))


@dataclass(frozen=True)
class Model:
    """A trained network and what its run says about it."""

    net: JiT
    diffusion: Diffusion
    settings: Settings  # the run's own way to sample
    config: dict  # the run's config.json
    step: int

    def apply(self, params, z, t, **conditioning) -> jax.Array:
        """x̂ for noisy images z at times t; keywords as in `JiT.__call__`."""
        return self.net.apply({'params': params}, z, t, **conditioning)


def load(path: str, ema: str | None = None) -> tuple[Model, dict]:
    """Reads a run folder, a step folder, an export or a converted checkpoint → (model, params).

    ema: 'ema1', 'ema2' … or 'params' for the live weights; None: 'ema1', or the only ones there. Raises FileNotFoundError or ValueError, in one sentence.
    """
    config, params, step = checkpoint.read_weights(path, ema)
    net, diffusion = build.network(config), build.diffusion(config)
    return Model(net, diffusion, build.settings(config), config, step), params


def sample(
    model: Model,
    params,
    key,
    num: int = 16,
    *,
    start: int = 0,
    batch_size: int = 64,
    **conditioning_and_settings,
) -> np.ndarray:
    """Draws images number start … start + num − 1 of a key: uint8 [num, H, W, C].

    Image i depends on (key, i) and what is told about it alone, in any batching. told_and_settings: `cond` float32
    [num, Hc, Wc, C] in [−1, 1], `cond_valid`, `label` … as in `JiT.__call__`, with num rows each; and sampler, steps,
    guidance, interval instead of the run's own.
    """
    settings = {
        name: conditioning_and_settings.pop(name)
        for name in SETTINGS
        if name in conditioning_and_settings
    }
    conditioning = {name: np.asarray(rows) for name, rows in conditioning_and_settings.items()}
    for name, rows in conditioning.items():
        if len(rows) != num:
            raise ValueError(
                f'{name} has {len(rows)} rows for num={num} images; give one row an image.'
            )
    mesh = make_mesh((-1, 1, 1))
    how = replace(model.settings, **settings)
    run = compiled_sampler(model.net, model.diffusion, how.sampler, how.steps, mesh)
    params = jax.device_put(params, replicated(mesh))
    size = whole_rows(min(batch_size, num), mesh)
    images = []
    for first in range(0, num, size):
        rows = (
            np.arange(first, first + size) % num
        )  # the last batch is padded, so that one program serves all
        batch = {name: v[rows] for name, v in conditioning.items()}
        z, batch = spread((noise(key, start + first, size, model.net), batch), mesh)
        images.append(
            to_uint8(
                process_allgather(run(params, z, batch, how.guidance, how.interval), tiled=True)
            )
        )
    return np.concatenate(images)[:num]


def trajectory(
    model: Model, params, key, **conditioning_and_settings
) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """Image 0 of a key on its way from noise: (t, z_t, x̂) at every step of the sampler, float32 [H, W, C] in about [−1, 1].

    told_and_settings: as in `sample`, one row each.
    """
    settings = {
        name: conditioning_and_settings.pop(name)
        for name in SETTINGS
        if name in conditioning_and_settings
    }
    seen = {}  # by t: what a sampler tries ahead of a step is followed by the step itself

    def watch(t, z, x_hat):
        seen[float(t)] = (np.asarray(z[0]), np.asarray(x_hat[0]))

    how = replace(model.settings, **settings)
    run = partial(
        generate,
        model=model.net,
        d=model.diffusion,
        sampler=how.sampler,
        steps=how.steps,
        watch=watch,
    )
    guidance = guidance_arguments(how.guidance, how.interval)
    z = noise(key, 0, 1, model.net)
    z = jax.jit(run)(params, z, conditioning_and_settings, *guidance)
    jax.effects_barrier()
    seen[1.0] = (np.asarray(z[0]), np.asarray(z[0]))
    return [(t, *seen[t]) for t in sorted(seen)]
