"""A run on one page: what it is, curves, pictures, what it may have copied, its mask and config.

    jit-jax report --workdir=runs/uncond    # runs/uncond/report/index.html, one file, and its PNGs

A run writes it at its end. It draws no samples: it reads those in `samples/` and every number in
`metrics.jsonl`. What a folder does not have, such as the curves of a converted run, is left out.
"""

import io
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
from jit_jax.evaluation import held_out, neighbours, run_facts
from jit_jax.evaluation.curves import families
from jit_jax.evaluation.measure import has_condition_image
from jit_jax.evaluation.preview import LATEST
from jit_jax.evaluation.slot_picture import CAPTION, slots
from jit_jax.output.charts import WIDTH, chart
from jit_jax.output.document import Document
from jit_jax.output.images import enlarged
from jit_jax.output.warnings_once import reason
from jit_jax.recipe import build

TRAIN_IMAGES, HELD_OUT_IMAGES = 2048, 256  # at most, for the nearest neighbours
WIDE = 400  # pixels of the newest samples, at least
STAGES = 6  # of the samples over time
ROWS = 4  # of the mask
LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def write(
    workdir: str, config: dict, train: data.Source | None = None, test: data.Source | None = None
) -> str:
    """Writes <workdir>/report/index.html, and PNGs beside it; returns the path.

    config: the run's config.json. train, test: its images, or None where they are not at hand.
    Raises UserError where there is no such folder or it cannot be written.
    """
    if not epath.Path(workdir).exists():
        raise UserError(f'There is no run folder {workdir}.')
    page = Document(os.path.join(workdir, 'report'))
    try:
        page.table([[*fact] for fact in run_facts.facts(workdir, config, train, test).items()])
        _add_newest(page, workdir, config)
        _add_curves(page, workdir)
        _add_evaluation(page, workdir)
        _add_stages(page, workdir)
        _add_neighbours(page, workdir, train, test)
        _add_mask(page, config, test)
        _add_origin(page, config)
        return page.save(os.path.basename(os.path.abspath(workdir)))
    except OSError as error:
        raise UserError(
            f'{page.folder} cannot be written ({reason(error)}): make room or change who may write.'
        ) from error


def sample_grids(workdir: str) -> dict[int, np.ndarray]:
    """The grids that a run drew, uint8 [·, ·, 3] by step; a file that is no picture is left out."""
    folder = epath.Path(workdir) / 'samples'
    found = {}
    for path in folder.iterdir() if folder.exists() else ():
        if re.fullmatch(r'\d+\.png', path.name):
            try:
                image = Image.open(io.BytesIO(path.read_bytes()))
                found[int(path.stem)] = np.asarray(image.convert('RGB'))
            except (UnidentifiedImageError, OSError):
                continue  # torn by a kill or a full disk
    return found


def try_write(workdir: str, *args) -> str:
    """`write` for the end of a run, which it must not spoil.

    Returns a sentence for the person who watches.
    """
    try:
        return f'{contents(workdir)} {write(workdir, *args)}'
    except UserError as error:
        return f'The report could not be drawn: {error}'
    except Exception as error:  # noqa: BLE001 - whatever it is, the run is done and saved
        return f'The report could not be drawn: {error!r}.'


def contents(workdir: str) -> str:
    """What the page of a run shows so far, up to 'in' before its path."""
    curves = families(os.path.join(workdir, 'metrics.jsonl'))
    if sample_grids(workdir):
        first = 'Curves, samples' if curves else 'Samples'
        return f'{first} and their nearest training images are in'
    if curves:
        return 'Curves are in the report, and samples when the first are drawn:'
    return 'The report has neither curves nor samples yet:'


def _add_newest(page: Document, workdir: str, config: dict) -> None:
    grids = sample_grids(workdir)
    if not grids:
        return
    step = max(grids)
    triples = has_condition_image(config)
    note = f'Step {step}; condition | result | truth, of held-out images.'
    page.section('The newest samples', note if triples else f'Step {step}.')
    newest = enlarged(grids[step], WIDE)  # of an older run, whose grids were small
    page.picture('newest', newest, width=newest.shape[1])


def _add_curves(page: Document, workdir: str) -> None:
    found = families(os.path.join(workdir, 'metrics.jsonl'))
    if not found:
        return
    once = {name: found.pop(name) for name in list(found) if _is_one_point(found[name])}
    marks = run_facts.resumed_steps(workdir)
    resumed = ' A dotted line stands where the run was resumed.' if marks else ''
    page.section(
        'Curves',
        'Every number of metrics.jsonl over steps; mfu is the share of the rate that plain matrix '
        f'products reach here.{resumed}',
    )
    page.begin_row('charts')
    for name, curves in found.items():
        picture = chart(name, curves, marks)
        page.picture(f'chart-{name.replace("/", "-")}', picture, width=WIDTH, kind='chart')
    page.end_row()
    if once:
        page.note('Measured once so far, which makes no curve:')
        rows = []
        for name, curves in once.items():
            for member, ((step, value),) in curves.items():
                rows.append([f'{name} {member}'.rstrip(), f'{value:.4g}', f'step {step:,}'])
        page.table(rows)


def _is_one_point(curves: dict[str, list]) -> bool:
    return all(len(curve) == 1 for curve in curves.values())


def _add_evaluation(page: Document, workdir: str) -> None:
    numbers = run_facts.evaluation(workdir)
    if numbers:
        page.section('Evaluation', 'What jit-jax evaluate measured last.')
        page.table([[name, f'{value:.4g}'] for name, value in numbers])


def _add_stages(page: Document, workdir: str) -> None:
    grids = sample_grids(workdir)
    steps = sorted(grids)
    if len(steps) < 2:
        return
    page.section('Samples over time', 'From the same noise and conditions each time.')
    chosen = {round(i) for i in np.linspace(0, len(steps) - 1, STAGES)}
    page.begin_row('stages')
    for step in (steps[i] for i in sorted(chosen)):
        image = Image.fromarray(grids[step])
        image.thumbnail((320, 640))
        page.picture(f'samples-{step:07d}', np.asarray(image), f'step {step}', width=160)
    page.end_row()


def _newest(path: epath.Path) -> np.ndarray | None:
    """The newest samples, uint8 [N, S, S, C]; None where no file holds them, as in older runs."""
    try:
        return np.load(io.BytesIO(path.read_bytes()))['arr_0']
    except (OSError, ValueError, KeyError, BadZipFile):
        return None


def _add_neighbours(page: Document, workdir: str, train, test) -> None:
    samples = _newest(epath.Path(workdir) / 'samples' / LATEST)
    if train is None or samples is None:
        return
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
    page.picture('neighbours', rows, width=rows.shape[1], scrolls=True)


def _readable(source: data.Source, count: int) -> np.ndarray | None:
    try:
        return neighbours.images_of(source, count)
    except UserError:
        return None


def _add_mask(page: Document, config: dict, test) -> None:
    conditioning = _conditioning(config, test)
    if conditioning is None:
        return
    page.section('The 512 slots', CAPTION)
    names = held_out.kinds(config, ROWS, config['seed'] if 'seed' in config else 0)
    picture = slots(conditioning, build.network(config), ROWS, names)
    page.picture('slots', picture, width=picture.shape[1], kind='chart', scrolls=True)


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


def _add_origin(page: Document, config: dict) -> None:
    page.section('How it was made')
    page.details('config', config)
    environment = {'python': platform.python_version()}
    for name in LIBRARIES:
        environment[name] = version(name)
    environment['devices'] = f'{jax.device_count()} × {jax.devices()[0].device_kind}'
    environment['platform'] = platform.platform()
    page.details('environment', environment)
