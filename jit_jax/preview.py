"""Pictures of a run: the grid that refreshes while it learns, and condition | result | truth."""

import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from jit_jax import build, metrics, sharding
from jit_jax.conditions import from_uint8, picture
from jit_jax.generate import jitted, noise


class Preview:
    """The grid of a run: the same noise and, with a condition, the same held-out images each time."""

    def __init__(self, run: build.Run, workdir: str):
        self.run, self.workdir = run, workdir
        config, self.num = run.config, run.config.sample.num
        rows = -(-self.num // run.mesh.size) * run.mesh.size  # all devices draw; the rest is dropped
        self.told, self.truth = held_out(config, rows, config.seed, run.test)
        self.inputs = sharding.spread((noise(jax.random.key(config.seed), 0, rows, run.model), self.told), run.mesh)
        self.generate = jitted(run.model, run.diffusion, run.settings, run.mesh)

    def draw(self, state, step: int, writer):
        """samples/<step>.png, and samples/latest.png beside it; every process takes part, the first one writes."""
        images = self.generate(state.ema['ema1'], *self.inputs)
        images = metrics.to_uint8(multihost_utils.process_allgather(images, tiled=True))
        told, truth = jax.tree.map(lambda x: x[: self.num], (self.told, self.truth))
        picture = sheet(images[: self.num], told, truth, self.run.model)
        for name in (f'{step:07d}.png', 'latest.png'):
            writer.images(step, 'samples', picture, os.path.join(self.workdir, 'samples', name))


def held_out(config, count: int, seed: int, source=None) -> tuple[dict, np.ndarray | None]:
    """What the model is told about the first `count` test images, and the images themselves, uint8.

    ({}, None) for a run without a condition, whose data is then not opened.
    """
    if config['condition']['kind'] == 'none':
        return {}, None
    source = build.source(config, 'test') if source is None else source
    rows = [source[i % len(source)] for i in range(count)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    told = build.condition(config)(from_uint8(batch['image']), batch, jax.random.key(seed))
    return jax.tree.map(np.asarray, told), batch['image']


def sheet(images: np.ndarray, told: dict, truth, model) -> np.ndarray:
    """A grid of samples (uint8); with a condition image, of triples condition | result | truth."""
    columns = max(1, round(len(images) ** 0.5))
    seen = picture(told, model.image_size)
    if seen is None:
        return metrics.grid(images, columns)
    parts = [metrics.to_uint8(seen), images] + ([] if truth is None else [truth])
    return metrics.grid(np.concatenate(parts, 2), max(1, columns // 2))
