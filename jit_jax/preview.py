"""Pictures of a run: the grid that refreshes while it learns, and condition | result | truth."""

import os
from functools import partial

import jax
import numpy as np
from jax.experimental import multihost_utils
from PIL import Image, ImageDraw, ImageFont

from jit_jax import build, metrics, sharding
from jit_jax.conditions import from_uint8, picture
from jit_jax.generate import jitted, noise


class Preview:
    """The grid of a run: the same noise and, with a condition, the same held-out images each time."""

    def __init__(self, run: build.Run, workdir: str):
        self.run, self.workdir = run, workdir
        config, self.num = run.config, run.config.sample.num
        rows = sharding.whole_rows(self.num, run.mesh)  # all devices draw; the rest is dropped
        self.told, self.truth = held_out(config, rows, config.seed, run.test)
        self.inputs = sharding.spread((noise(jax.random.key(config.seed), 0, rows, run.model), self.told), run.mesh)
        self.generate = jitted(run.model, run.diffusion, run.settings, run.mesh)

    def draw(self, state, step: int, writer) -> None:
        """samples/<step>.png, and samples/latest.png beside it; every process takes part, the first one writes."""
        images = self.generate(state.ema['ema1'], *self.inputs)
        images = metrics.to_uint8(multihost_utils.process_allgather(images, tiled=True))
        told, truth = jax.tree.map(lambda x: x[: self.num], (self.told, self.truth))
        picture = sheet(images[: self.num], told, truth, self.run.model, self.run.train.classes)
        for name in (f'{step:07d}.png', 'latest.png'):
            writer.images(step, 'samples', picture, os.path.join(self.workdir, 'samples', name))


def held_out(config, count: int, seed: int, source=None, start: int = 0) -> tuple[dict, np.ndarray | None]:
    """What the model is told about test images number start … start + count − 1, and the images themselves, uint8.

    Row i depends on the seed and i alone. ({}, None) for a run without a condition, whose data is then not opened.
    """
    if config['condition']['kind'] == 'none':
        return {}, None
    source = build.source(config, 'test') if source is None else source
    index = range(start, start + count)
    rows = [source[i % len(source)] for i in index]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    told = _tell_each(batch, jax.random.key(seed), np.asarray(index), build.condition(config))
    return jax.tree.map(np.asarray, told), batch['image']


@partial(jax.jit, static_argnums=3)
def _tell_each(batch, key, index, condition):
    """The condition of each row by a key of its own."""

    def one(row, i):
        row = jax.tree.map(lambda x: x[None], row)
        return condition(from_uint8(row['image']), row, jax.random.fold_in(key, i))

    return jax.tree.map(lambda x: x[:, 0], jax.vmap(one)(batch, index))


def sheet(images: np.ndarray, told: dict, truth, model, classes=()) -> np.ndarray:
    """A grid of samples (uint8), their class below where they have one; of triples condition | result | truth with a condition image."""
    columns = max(1, round(len(images) ** 0.5))
    seen = picture(told, model.image_size)
    if seen is not None:
        parts = [metrics.to_uint8(seen), images] + ([] if truth is None else [truth])
        images, columns = np.concatenate(parts, 2), max(1, columns // 2)
    if 'label' in told:
        names = dict(enumerate(classes))
        images = captioned(images, [names.get(int(label), str(label)) for label in told['label']])
    return metrics.grid(images, columns)


def strip(path: list, count: int) -> np.ndarray:
    """One image along its way: z above x̂ (float32 [H, W, C]) at `count` of the recorded times, evenly spread, t below."""
    chosen = [path[i] for i in np.linspace(0, len(path) - 1, count).round().astype(int)]
    columns = metrics.to_uint8([np.concatenate([z, x]) for _, z, x in chosen])
    return metrics.grid(captioned(columns, [f't={t:.2f}' for t, _, _ in chosen]), count)


def captioned(images: np.ndarray, texts: list[str]) -> np.ndarray:
    """uint8 [N, h, w, C] with a line of text below each, cut at the image's width: [N, h + ·, w, 3]."""
    size = max(10, images.shape[2] // 12)
    out = []
    for image, text in zip(np.broadcast_to(images, (*images.shape[:-1], 3)), texts, strict=True):
        sheet = Image.new('RGB', (image.shape[1], image.shape[0] + size + 4), 'white')
        sheet.paste(Image.fromarray(np.ascontiguousarray(image)))
        ImageDraw.Draw(sheet).text((1, image.shape[0] + 1), text, 'black', ImageFont.load_default(size))
        out.append(np.asarray(sheet))
    return np.stack(out)


COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # low to high: dark to bright


def heat_map(values: np.ndarray, rows: list[str], columns: list[str], title: str, best: tuple[int, int]) -> np.ndarray:
    """A table of numbers [R, C] as coloured cells with their values, named rows and columns, and the best one framed: uint8."""
    wide, high, left, top = 52, 32, 20 + 8 * max(map(len, rows)), 72
    sheet = Image.new('RGB', (max(left + wide * len(columns) + 12, 20 + 8 * len(title)), top + high * len(rows) + 12), 'white')
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    draw.text((10, 10), title, 'black', ImageFont.load_default(15))
    for j, name in enumerate(columns):
        draw.text((left + wide * (j + 0.5), top - 14), name, 'black', font, 'mm')
    low, span = values.min(), max(np.ptp(values), 1e-12)
    for i, name in enumerate(rows):
        draw.text((left - 8, top + high * (i + 0.5)), name, 'black', font, 'rm')
        for j, value in enumerate(values[i]):
            x, y, at = left + wide * j, top + high * i, (value - low) / span
            colour = tuple(int(np.interp(at * 4, range(5), channel)) for channel in zip(*COLOURS))
            draw.rectangle((x, y, x + wide - 2, y + high - 2), colour, 'red' if (i, j) == best else None, 3)
            draw.text((x + wide / 2, y + high / 2), f'{value:.4g}', 'black' if at > 0.5 else 'white', font, 'mm')
    return np.asarray(sheet)
