"""Pictures of a run: the grid that refreshes while it learns, and condition | result | truth."""

import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from jit_jax.diffusion import conditions
from jit_jax.diffusion.generate import compiled_sampler, noise
from jit_jax.evaluation import held_out
from jit_jax.model import sharding
from jit_jax.output.images import captioned, grid, to_uint8
from jit_jax.recipe import build

GAP = 2  # pixels of white between the images of a grid


class Preview:
    """The grid of a run: the same noise and, with a condition, the same held-out images each time.

    Every process of a run takes part; the first one writes. Raises UserError where a run with
    a condition has no held-out image that can be read.
    """

    def __init__(self, run: build.Run, workdir: str):
        self.run, self.workdir = run, workdir
        self.num = run.config.sample.num
        seed, how = run.config.seed, run.settings
        rows = sharding.whole_rows(self.num, run.mesh)  # all devices draw; the rest is dropped
        self.conditioning, self.truth = held_out.examples(run.config, rows, seed, run.test)
        z = noise(jax.random.key(seed), 0, rows, run.model)
        self.inputs = sharding.spread((z, self.conditioning), run.mesh)
        self.generate = compiled_sampler(run.model, run.diffusion, how.sampler, how.steps, run.mesh)

    def due(self, step: int) -> bool:
        """Whether a grid is drawn after `step`: by `config.sample.every`, and at the end."""
        config = self.run.config
        return step % config.sample.every == 0 or step == config.steps

    def draw(self, state, step: int, writer) -> None:
        """Writes samples/<step>.png, and the same picture as samples/latest.png."""
        how = self.run.settings
        images = self.generate(state.ema['ema1'], *self.inputs, how.guidance, how.interval)
        images = to_uint8(multihost_utils.process_allgather(images, tiled=True))
        images, conditioning, truth = jax.tree.map(
            lambda x: x[: self.num], (images, self.conditioning, self.truth)
        )
        picture = sheet(images, conditioning, truth, self.run.model, self.run.train.classes)
        folder = os.path.join(self.workdir, 'samples')
        paths = [os.path.join(folder, name) for name in (f'{step:07d}.png', 'latest.png')]
        writer.images(step, 'samples', picture, *paths)


def sheet(
    images: np.ndarray, conditioning: dict, truth: np.ndarray | None, model, classes=()
) -> np.ndarray:
    """A grid of samples: uint8 [N, S, S, C] → uint8 [·, ·, 3].

    With a condition image each is condition | result | truth, or without the truth where that is
    None. Samples of a class have its name below.
    """
    columns = max(1, round(len(images) ** 0.5))
    shown = conditions.picture(conditioning, model.image_size)
    if shown is not None:
        parts = [to_uint8(shown), images]
        if truth is not None:
            parts.append(truth)
        images = np.concatenate(parts, 2)
        columns = max(1, columns // 2)
    if 'label' in conditioning:
        names = dict(enumerate(classes))
        texts = [names.get(int(label), str(label)) for label in conditioning['label']]
        images = captioned(images, texts)
    return grid(images, columns, GAP)


def results(picture: np.ndarray, size: int, count: int, *, triples: bool) -> np.ndarray:
    """The first `count` samples of a `sheet`, uint8 [count, size, size, 3].

    Of triples it is the middle image, and never what is written below.
    """
    width = size * 3 if triples else size
    columns = (picture.shape[1] - GAP) // (width + GAP)
    high = (picture.shape[0] - GAP) // -(-count // columns)  # of a row, with its gap
    first = GAP + size if triples else GAP
    found = []
    for i in range(count):
        y, x = GAP + i // columns * high, first + i % columns * (width + GAP)
        found.append(picture[y : y + size, x : x + size])
    return np.stack(found)


def strip(path: list[tuple], count: int) -> np.ndarray:
    """How one image comes to be: z above x̂ at `count` of the recorded times, evenly spread.

    path: (t, z, x̂) at each time, the images float32 [H, W, C]. Returns a picture with t below.
    """
    chosen = [path[i] for i in np.linspace(0, len(path) - 1, count).round().astype(int)]
    columns = to_uint8([np.concatenate([z, x]) for _, z, x in chosen])
    return grid(captioned(columns, [f't={t:.2f}' for t, _, _ in chosen]), count)
