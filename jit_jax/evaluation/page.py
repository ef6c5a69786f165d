"""A run on one page: curves, pictures, what it may have copied, its mask, config and machine.

    jit-jax report --workdir=runs/uncond    # runs/uncond/report/index.html, one file, and its PNGs

A run writes it at its end. It draws no samples: it reads those in `samples/` and every number in
`metrics.jsonl`. What a folder does not have, such as the curves of a converted run, is left out.
"""

import base64
import html
import io
import json
import os
import platform
import re
from importlib.metadata import version
from zipfile import BadZipFile

import jax
import numpy as np
from etils import epath
from PIL import Image, UnidentifiedImageError

from jit_jax import data
from jit_jax.diffusion import conditions
from jit_jax.errors import UserError
from jit_jax.evaluation import held_out, neighbours
from jit_jax.evaluation.curves import families
from jit_jax.evaluation.preview import LATEST
from jit_jax.evaluation.slot_picture import CAPTION, slots
from jit_jax.output import files
from jit_jax.output.charts import WIDTH, chart
from jit_jax.output.images import save_png
from jit_jax.output.warnings_once import reason
from jit_jax.recipe import build

TRAIN_IMAGES, HELD_OUT_IMAGES = 2048, 256  # at most, for the nearest neighbours
STAGES = 6  # of the samples over time
ROWS = 4  # of the mask
LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #2a2f38; max-width: 1040px; margin: 2em auto;
  padding: 0 1em; }
h1, h2 { font-weight: 600; overflow-wrap: anywhere; }
h2 { margin-top: 2em; border-bottom: 1px solid #e4e7ec; }
figure { display: inline-block; margin: 0 .6em .6em 0; vertical-align: top; max-width: 100%; }
figcaption, p { color: #687080; font-size: 13px; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; image-rendering: pixelated; }
img.smooth { image-rendering: auto; }
pre { background: #f6f7f9; padding: 1em; overflow: auto; }
"""


def write(
    workdir: str, config: dict, train: data.Source | None = None, test: data.Source | None = None
) -> str:
    """Writes <workdir>/report/index.html, and PNGs beside it; returns the path.

    config: the run's config.json. train, test: its images, or None where they are not at hand.
    Raises UserError where there is no such folder or it cannot be written.
    """
    if not epath.Path(workdir).exists():
        raise UserError(f'There is no run folder {workdir}.')
    page = Page(os.path.join(workdir, 'report'))
    try:
        _add_curves(page, workdir)
        _add_samples(page, workdir, config, train, test)
        _add_mask(page, config, test)
        _add_origin(page, config)
        model = config['model']
        name = os.path.basename(os.path.abspath(workdir))
        size = f'{model["image_size"]}×{model["image_size"]}'
        about = f'JiT-{model["variant"]} at {size}, condition {config["condition"]["kind"]}'
        return page.save(name, about)
    except OSError as error:
        raise UserError(
            f'{page.folder} cannot be written ({reason(error)}): make room or change who may write.'
        ) from error


def try_write(*args) -> str:
    """`write` for the end of a run, which it must not spoil.

    Returns a sentence for the person who watches.
    """
    try:
        return f'Curves, samples and their nearest training images are in {write(*args)}'
    except UserError as error:
        return f'The report could not be drawn: {error}'
    except Exception as error:  # noqa: BLE001 - whatever it is, the run is done and saved
        return f'The report could not be drawn: {error!r}.'


class Page:
    """HTML on its way; every picture goes into it and into a PNG beside it."""

    def __init__(self, folder: str):
        self.folder, self.parts = folder, []

    def section(self, title: str, note: str = '') -> None:
        """Begins a part of the page."""
        self.parts.append(f'<h2>{html.escape(title)}</h2>')
        self.note(note)

    def note(self, text: str) -> None:
        """Adds a paragraph; '' adds none."""
        if text:
            self.parts.append(f'<p>{html.escape(text)}</p>')

    def picture(
        self,
        name: str,
        image: np.ndarray,
        caption: str = '',
        *,
        width: int | None = None,
        smooth: bool = False,
    ) -> None:
        """Adds a picture, uint8 [h, w, 3]; pixels stay squares unless it is `smooth`."""
        path = os.path.join(self.folder, f'{name}.png')
        save_png(path, image)
        content = base64.b64encode(epath.Path(path).read_bytes()).decode()
        width = width or min(image.shape[1], 1000)
        kind = ' class="smooth"' if smooth else ''
        source = f'src="data:image/png;base64,{content}"'
        self.parts.append(
            f'<figure><img alt="{html.escape(name)}"{kind} width="{width}" {source}>'
            f'<figcaption>{html.escape(caption)}</figcaption></figure>'
        )

    def details(self, title: str, values: dict) -> None:
        """Adds values that open with a click."""
        text = html.escape(json.dumps(values, indent=1))
        self.parts.append(
            f'<details><summary>{html.escape(title)}</summary><pre>{text}</pre></details>'
        )

    def save(self, title: str, about: str) -> str:
        """Writes index.html and returns its path."""
        title = html.escape(title)
        text = (
            '<!doctype html><html lang="en"><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width">'
            f'<title>{title}</title><style>{STYLE}</style>'
            f'<h1>{title}</h1><p>{html.escape(about)}</p>{"".join(self.parts)}</html>'
        )
        path = os.path.join(self.folder, 'index.html')
        files.write_whole(path, text.encode())
        return path


def _add_curves(page: Page, workdir: str) -> None:
    found = families(os.path.join(workdir, 'metrics.jsonl'))
    if not found:
        return
    page.section(
        'Curves',
        'Every number of metrics.jsonl over steps; mfu is the share of the rate that plain matrix '
        'products reach here.',
    )
    for name, curves in found.items():
        picture = chart(name, curves)
        page.picture(f'chart-{name.replace("/", "-")}', picture, width=WIDTH, smooth=True)


def _add_samples(page: Page, workdir: str, config: dict, train, test) -> None:
    grids = _grids(epath.Path(workdir) / 'samples')
    if not grids:
        return
    triples = bool(conditions.kinds(config['condition']['kind']) - {'class'})
    note = 'The same noise and conditions; condition | result | truth.'
    page.section('Samples over time', note if triples else 'The same noise.')
    steps = sorted(grids)
    chosen = {round(i) for i in np.linspace(0, len(steps) - 1, STAGES)}
    for step in (steps[i] for i in sorted(chosen)):
        image = Image.fromarray(grids[step])
        image.thumbnail((320, 640))
        page.picture(f'samples-{step:07d}', np.asarray(image), f'step {step}', width=156)
    page.section('The newest samples', f'Step {steps[-1]}.')
    page.picture('newest', grids[steps[-1]])
    samples = _newest(epath.Path(workdir) / 'samples' / LATEST)
    if train is not None and samples is not None:
        _add_neighbours(page, samples, train, test)


def _newest(path: epath.Path) -> np.ndarray | None:
    """The newest samples, uint8 [N, S, S, C]; None where no file holds them, as in older runs."""
    try:
        return np.load(io.BytesIO(path.read_bytes()))['arr_0']
    except (OSError, ValueError, KeyError, BadZipFile):
        return None


def _grids(folder: epath.Path) -> dict[int, np.ndarray]:
    """The grids that a run drew, uint8 [·, ·, 3] by step; a file that is no picture is left out."""
    found = {}
    for path in folder.iterdir() if folder.exists() else ():
        if re.fullmatch(r'\d+\.png', path.name):
            try:
                image = Image.open(io.BytesIO(path.read_bytes()))
                found[int(path.stem)] = np.asarray(image.convert('RGB'))
            except (UnidentifiedImageError, OSError):
                continue  # torn by a kill or a full disk
    return found


def _add_neighbours(page: Page, samples: np.ndarray, train, test) -> None:
    page.section('Are they copies?')
    training = _readable(train, TRAIN_IMAGES)
    if training is None:
        page.note('Not known: the training images cannot be read.')
        return
    unseen = None if test is None else _readable(test, HELD_OUT_IMAGES)
    sentences, rows = neighbours.nearest(samples, training, unseen)
    if unseen is None:
        page.note('There is no held-out image that can be read, to compare with.')
    page.note(sentences)
    page.picture('neighbours', rows)


def _readable(source: data.Source, count: int) -> np.ndarray | None:
    try:
        return neighbours.images_of(source, count)
    except UserError:
        return None


def _add_mask(page: Page, config: dict, test) -> None:
    conditioning = _conditioning(config, test)
    if conditioning is not None:
        page.section('The 512 slots', CAPTION)
        page.picture('slots', slots(conditioning, build.network(config), ROWS))


def _conditioning(config: dict, test) -> dict | None:
    """Of a few held-out images; of classes alone none are needed. None: they cannot be read."""
    kinds = conditions.kinds(config['condition']['kind'])
    if kinds == {'class'}:
        return {'label': np.zeros(ROWS, np.int32)}
    if kinds and test is None:
        return None
    try:
        return held_out.examples(config, ROWS, config['seed'] if kinds else 0, test)[0]
    except UserError:
        return None


def _add_origin(page: Page, config: dict) -> None:
    page.section('How it was made')
    page.details('config', config)
    environment = {'python': platform.python_version()}
    for name in LIBRARIES:
        environment[name] = version(name)
    environment['devices'] = f'{jax.device_count()} × {jax.devices()[0].device_kind}'
    environment['platform'] = platform.platform()
    page.details('environment', environment)
