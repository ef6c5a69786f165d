"""Pictures of a run: the grid that refreshes while it learns, and condition | result | truth."""

import os
from functools import partial

import jax
import numpy as np
from jax.experimental import multihost_utils

from jit_jax.diffusion.conditions import from_uint8, picture
from jit_jax.diffusion.generate import compiled_sampler, noise
from jit_jax.model import sharding
from jit_jax.output.images import captioned, grid, to_uint8
from jit_jax.recipe import build


class Preview:
    """The grid of a run: the same noise and, with a condition, the same held-out images each time."""

    def __init__(self, run: build.Run, workdir: str):
        self.run, self.workdir = run, workdir
        config, self.num = run.config, run.config.sample.num
        rows = sharding.whole_rows(self.num, run.mesh)  # all devices draw; the rest is dropped
        self.conditioning, self.truth = held_out(config, rows, config.seed, run.test)
        self.inputs = sharding.spread(
            (noise(jax.random.key(config.seed), 0, rows, run.model), self.conditioning), run.mesh
        )
        how = run.settings
        self.generate = compiled_sampler(run.model, run.diffusion, how.sampler, how.steps, run.mesh)

    def due(self, step: int) -> bool:
        """Whether a grid is drawn after `step`: at every `config.sample.every` steps and at the end."""
        config = self.run.config
        return step % config.sample.every == 0 or step == config.steps

    def draw(self, state, step: int, writer) -> None:
        """samples/<step>.png, and samples/latest.png beside it; every process takes part, the first one writes."""
        images = self.generate(
            state.ema['ema1'], *self.inputs, self.run.settings.guidance, self.run.settings.interval
        )
        images = to_uint8(multihost_utils.process_allgather(images, tiled=True))
        conditioning, truth = jax.tree.map(lambda x: x[: self.num], (self.conditioning, self.truth))
        picture = sheet(
            images[: self.num], conditioning, truth, self.run.model, self.run.train.classes
        )
        for name in (f'{step:07d}.png', 'latest.png'):
            writer.images(step, 'samples', picture, os.path.join(self.workdir, 'samples', name))


def held_out(
    config, count: int, seed: int, source=None, start: int = 0
) -> tuple[dict, np.ndarray | None]:
    """What the model is told about test images number start … start + count − 1, and the images themselves, uint8.

    Row i depends on the seed and i alone. ({}, None) for a run without a condition, whose data is then not opened.
    """
    if config['condition']['kind'] == 'none':
        return {}, None
    source = build.source(config, 'test') if source is None else source
    index = range(start, start + count)
    rows = [source[i % len(source)] for i in index]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    conditioning = _tell_each(
        batch, jax.random.key(seed), np.asarray(index), build.condition(config)
    )
    return jax.tree.map(np.asarray, conditioning), batch['image']


@partial(jax.jit, static_argnums=3)
def _tell_each(batch, key, index, condition):
    """The condition of each row by a key of its own."""

    def one(row, i):
        row = jax.tree.map(lambda x: x[None], row)
        return condition(from_uint8(row['image']), row, jax.random.fold_in(key, i))

    return jax.tree.map(lambda x: x[:, 0], jax.vmap(one)(batch, index))


def sheet(images: np.ndarray, conditioning: dict, truth, model, classes=()) -> np.ndarray:
    """A grid of samples (uint8), their class below where they have one; of triples condition | result | truth with a condition image."""
    columns = max(1, round(len(images) ** 0.5))
    seen = picture(conditioning, model.image_size)
    if seen is not None:
        parts = [to_uint8(seen), images] + ([] if truth is None else [truth])
        images, columns = np.concatenate(parts, 2), max(1, columns // 2)
    if 'label' in conditioning:
        names = dict(enumerate(classes))
        images = captioned(
            images, [names.get(int(label), str(label)) for label in conditioning['label']]
        )
    return grid(images, columns)


def strip(path: list, count: int) -> np.ndarray:
    """One image along its way: z above x̂ (float32 [H, W, C]) at `count` of the recorded times, evenly spread, t below."""
    chosen = [path[i] for i in np.linspace(0, len(path) - 1, count).round().astype(int)]
    columns = to_uint8([np.concatenate([z, x]) for _, z, x in chosen])
    return grid(captioned(columns, [f't={t:.2f}' for t, _, _ in chosen]), count)
