"""A run on one page: curves, pictures, what it may have copied, its mask, config and machine.

    jit-jax report --workdir=runs/uncond    # runs/uncond/report/index.html, one file, and its PNGs beside it

A run writes it at its end. It draws no samples: it reads those in `samples/` and every number in `metrics.jsonl`.
"""

import base64
import html
import io
import json
import math
import os
import platform
import re
from importlib.metadata import version

import jax
import numpy as np
from etils import epath
from PIL import Image

from jit_jax.diffusion import conditions
from jit_jax.evaluation import preview
from jit_jax.model import sequence
from jit_jax.output import files
from jit_jax.output.charts import WIDTH, chart
from jit_jax.output.images import grid, save_png
from jit_jax.recipe import build

TRAIN_IMAGES, HELD_OUT_IMAGES = 2048, 256  # at most, for the nearest neighbours
STYLE = """body{font:15px/1.5 system-ui,sans-serif;color:#2a2f38;max-width:1040px;margin:2em auto;padding:0 1em}
h1,h2{font-weight:600}h2{margin-top:2em;border-bottom:1px solid #e4e7ec}figure{display:inline-block;margin:0 .6em .6em 0;vertical-align:top}
figcaption,p{color:#687080;font-size:13px}img{max-width:100%;image-rendering:pixelated}pre{background:#f6f7f9;padding:1em;overflow:auto}"""


def families(path: str) -> dict[str, dict[str, list]]:
    """metrics.jsonl → {'loss': {'': [(step, value), …]}, 'v_loss': {'t0.2': …, 't0.5': …}, …}.

    What ends in a number shares a chart; what is always zero has none.
    """
    found = {'loss': {}, 'learning_rate': {}}
    for line in map(json.loads, epath.Path(path).read_text().splitlines()):
        for name, value in line.items():
            if name == 'step' or not math.isfinite(value):
                continue
            parts = re.fullmatch(r'(.+?)[_/](t?[\d.]+(?:_[\d.]+)?)', name)
            family, member = parts.groups() if parts else (name, '')
            found.setdefault(family, {}).setdefault(member, []).append((line['step'], value))
    return {
        name: series
        for name, series in found.items()
        if any(value for rows in series.values() for _, value in rows)
    }


def slots(conditioning: dict, model, rows: int = 4) -> np.ndarray:
    """The mask of what a model is told (keywords of `JiT.__call__`, `rows` rows) as a picture, uint8 [·, 1026, 3].

    A strip for each row: live condition slots blue, the target orange, dead slots pale. Below, for the first two rows, which
    slot (down) attends to which (across).
    """
    n = (
        math.prod(sequence.condition_grid(conditioning['cond'].shape, model.patch))
        if 'cond' in conditioning
        else 0
    )
    cond = conditioning.get('cond_valid', np.ones((rows, n), bool)) if n else None
    label = (
        conditioning.get('label_valid', np.ones(rows, bool)) if 'label' in conditioning else None
    )
    valid = np.asarray(sequence.slot_mask(rows, cond, label, model.class_tokens))
    colors = np.array([[0x35, 0x66, 0xA8]] * 256 + [[0xD9, 0x82, 0x2B]] * 256, np.uint8)
    paint = lambda live: np.where(live[..., None], colors, np.uint8(0xE9))
    framed = lambda image, *pads: np.pad(image, (*pads, (0, 0)), constant_values=255)
    strips = [framed(np.tile(paint(row).repeat(2, 0), (14, 1, 1)), (0, 4), (0, 2)) for row in valid]
    squares = np.concatenate(
        [framed(paint(row[None] & row[:, None]), (8, 0), (0, 1)) for row in valid[:2]], 1
    )
    return np.concatenate([*strips, framed(squares, (0, 0), (0, 1026 - squares.shape[1]))])


def results(picture: np.ndarray, size: int, triples: bool, count: int) -> np.ndarray:
    """The `count` samples in a grid that a run drew, uint8 [count, size, size, 3]: of triples the middle, without what is written below."""
    width = size * (3 if triples else 1)
    columns = (picture.shape[1] - 2) // (width + 2)
    high = (picture.shape[0] - 2) // -(-count // columns)  # of a row
    corners = [
        (2 + i // columns * high, 2 + i % columns * (width + 2) + size * triples)
        for i in range(count)
    ]
    return np.stack([picture[y : y + size, x : x + size] for y, x in corners])


def distances(a, b) -> np.ndarray:
    """Root mean square differences [len(a), len(b)], in levels of 255, of images averaged to 16×16 pixels."""
    small = lambda x: (
        np.asarray(x, np.float64)
        .reshape(len(x), 16, x.shape[1] // 16, 16, -1, x.shape[3])
        .mean((2, 4))
        .reshape(len(x), -1)
    )
    a, b = small(a), small(b)
    square = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.sqrt(np.maximum(square, 0) / a.shape[1])


def images_of(source, count: int) -> np.ndarray:
    """At most `count` images, the same ones each time, uint8 [·, S, S, 3]."""
    order = np.random.default_rng(0).permutation(len(source))[:count]
    images = np.stack([source[int(i)]['image'] for i in order])
    return images.repeat(3, -1) if images.shape[-1] == 1 else images


def neighbours(samples, train, held_out) -> tuple[str, np.ndarray]:
    """Whether samples are copies: a sentence with numbers, and a grid of sample | its three nearest training images, nearest first."""
    found, usual = distances(samples, train), distances(held_out, train).min(1)
    nearest = found.min(1)
    order = np.argsort(nearest)[:12]
    rows = np.concatenate(
        [
            samples[order],
            *(train[np.argsort(found[order], 1)[:, k]] for k in range(min(3, len(train)))),
        ],
        2,
    )
    words = (
        f'{(nearest < usual.min()).sum()} of {len(samples)} samples are closer to a training image than any of {len(held_out)} held-out images is. '
        f'Distance to the nearest of {len(train)} training images, median (least): samples {np.median(nearest):.1f} ({nearest.min():.1f}), '
        f'held-out images {np.median(usual):.1f} ({usual.min():.1f}); root mean square of 255 levels at 16×16 pixels. '
        f'Sample | its three nearest, for the {len(order)} closest.'
    )
    return words, grid(rows, 3)


class Page:
    """HTML on its way; every picture goes into it and into a PNG beside it."""

    def __init__(self, folder: str):
        self.folder, self.parts = folder, []

    def section(self, title: str, note: str = '') -> None:
        self.parts.append(f'<h2>{html.escape(title)}</h2><p>{html.escape(note)}</p>')

    def picture(
        self, name: str, image: np.ndarray, caption: str = '', width: int | None = None
    ) -> None:
        path = os.path.join(self.folder, f'{name}.png')
        save_png(path, image)
        data = base64.b64encode(epath.Path(path).read_bytes()).decode()
        image = f'<img alt="{html.escape(name)}" width="{width or min(2 * image.shape[1], 1000)}" src="data:image/png;base64,{data}">'
        self.parts.append(
            f'<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>'
        )

    def details(self, title: str, values: dict) -> None:
        self.parts.append(
            f'<details><summary>{title}</summary><pre>{html.escape(json.dumps(values, indent=1))}</pre></details>'
        )


def write(workdir: str, config: dict, train=None, test=None) -> str:
    """Writes <workdir>/report/index.html and PNGs. train, test: `data.Source`s, or None where they are not at hand. Returns the path."""
    page, model, size = (
        Page(os.path.join(workdir, 'report')),
        config['model'],
        config['model']['image_size'],
    )
    kinds = conditions.kinds(config['condition']['kind'])
    page.section(
        'Curves',
        'Every number of metrics.jsonl over steps; mfu is the share of the rate that plain matrix products reach here.',
    )
    for name, series in families(os.path.join(workdir, 'metrics.jsonl')).items():
        page.picture(f'chart-{name.replace("/", "-")}', chart(name, series), width=WIDTH)
    folder = epath.Path(workdir) / 'samples'
    steps = (
        sorted(path.name for path in folder.iterdir() if re.fullmatch(r'\d+\.png', path.name))
        if folder.exists()
        else []
    )
    opened = lambda name: Image.open(io.BytesIO((folder / name).read_bytes()))
    if steps:
        triples = bool(kinds - {'class'})
        page.section(
            'Samples over time',
            'The same noise' + (' and conditions; condition | result | truth.' if triples else '.'),
        )
        for name in [
            steps[i] for i in sorted({round(i) for i in np.linspace(0, len(steps) - 1, 6)})
        ]:
            image = opened(name)
            image.thumbnail((320, 640))
            page.picture(
                f'samples-{name[:-4]}', np.asarray(image), f'step {int(name[:-4])}', width=156
            )
        last = np.asarray(opened(steps[-1]))
        page.section('The newest samples', f'Step {int(steps[-1][:-4])}.')
        page.picture('newest', last)
        if train is not None:
            drawn = results(last, size, triples, config['sample']['num'])
            words, rows = neighbours(
                drawn, images_of(train, TRAIN_IMAGES), images_of(test, HELD_OUT_IMAGES)
            )
            page.section('Are they copies?', words)
            page.picture('neighbours', rows)
    if test is not None or not kinds:
        conditioning, _ = preview.held_out(config, 4, config['seed'], test)
        page.section('The 512 slots', slots.__doc__.partition('\n\n')[2])
        page.picture('slots', slots(conditioning, build.network(config)))
    page.section('How it was made')
    page.details('config', config)
    versions = {
        name: version(name)
        for name in ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
    }
    machine = {
        'devices': f'{jax.device_count()} × {jax.devices()[0].device_kind}',
        'platform': platform.platform(),
    }
    page.details('environment', {'python': platform.python_version(), **versions, **machine})
    name = html.escape(os.path.basename(os.path.abspath(workdir)))
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title><style>{STYLE}</style>'
    about = f'JiT-{model["variant"]} at {size}×{size}, condition {config["condition"]["kind"]}'
    path = os.path.join(page.folder, 'index.html')
    files.write_whole(
        path,
        f'{head}<h1>{name}</h1><p>{html.escape(about)}</p>{"".join(page.parts)}</html>'.encode(),
    )
    return path


def try_write(*args) -> str:
    """`write` for the end of a run, which it must not spoil. Returns a sentence for the person who watches."""
    try:
        return f'Curves, samples and their nearest training images are in {write(*args)}'
    except Exception as error:  # noqa: BLE001 - whatever it is, the run is done and saved
        return f'The report could not be drawn: {error!r}.'
