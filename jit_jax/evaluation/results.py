"""Measures cells, each one set of weights and one way to sample, and remembers the numbers."""

import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
from etils import epath

from jit_jax import trained
from jit_jax.diffusion.generate import Settings
from jit_jax.errors import UserError
from jit_jax.evaluation.denoising import DenoisingScore
from jit_jax.evaluation.image_parts import ImageParts
from jit_jax.evaluation.image_scores import TruthMetric
from jit_jax.evaluation.kept_files import keep, tag, weights_hash
from jit_jax.evaluation.measure import Files, Measure, make_metrics
from jit_jax.model.sharding import make_mesh, replicated
from jit_jax.output.files import write_whole
from jit_jax.recipe import build
from jit_jax.training.processes import every_process, in_every_process

GUIDED = (
    1.5  # beside a run that samples without guidance, the guidance that its scores are shown with
)


@dataclass(frozen=True)
class Cell:
    """ema: 'params', 'ema1' …; None for what `trained.load` chooses."""

    ema: str | None
    settings: Settings


class MeasuredRun:
    """A run, its data, and its weights on a mesh of all devices, one set at a time.

    emas: every set of weights that will be asked for. Each is read once at the start, so that what
    is missing or damaged is a UserError before anything is measured. train, test: `data.Source`s,
    None for converted weights.
    """

    def __init__(self, workdir: str, emas: list[str | None]):
        self.workdir = workdir
        self.mesh = make_mesh((-1, 1, 1))
        self.hashes = {}  # by name of the weights
        for ema in emas:
            self.model, params = every_process(partial(trained.load, workdir, ema))
            self.hashes[ema] = weights_hash(params)
        self.train = self.test = None
        if 'data' in self.model.config:
            self.train = every_process(partial(build.source, self.model.config, 'train'))
            self.test = every_process(partial(build.source, self.model.config, 'test'))
        self._read = emas[-1], params  # in this host's memory, until they are placed
        self._placed = None, None

    def params(self, ema: str | None) -> dict:
        """Weights on the mesh. Collective."""
        if self._placed[0] != ema or self._placed[1] is None:
            self._placed = None, None  # there may not be room for two sets
            params = self._params_here(ema)
            self._placed = ema, jax.device_put(params, replicated(self.mesh))
        return self._placed[1]

    def _params_here(self, ema: str | None) -> dict:
        last, params = self._read
        self._read = None, None
        if params is None or last != ema:
            _, params = every_process(partial(trained.load, self.workdir, ema))
        return params


class Remembered:
    """The numbers of cells, in a JSON file. Every process has the same, or none counts."""

    def __init__(self, path: str):
        self._path = path
        self._entries = every_process(partial(_read_json, path))

    def find(self, key: str) -> dict | None:
        """Collective."""
        entry = self._entries.get(key)
        return entry if in_every_process(entry is not None) else None

    def add(self, key: str, entry: dict) -> None:
        self._entries[key] = entry
        keep(self._path, write_whole, json.dumps(self._entries, indent=1).encode())


def _read_json(path: str) -> dict:
    file = epath.Path(path)
    try:
        entries = json.loads(file.read_text()) if file.exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read ({error}); repair, move or remove it.') from error
    if not isinstance(entries, dict):
        raise UserError(f'{path} does not hold numbers of an evaluation; move or remove it.')
    return entries


class CellMeasure:
    """Measures cells of a run by some of METRICS, with a number of images that is the same for all.

    Makes metrics and reads what they need, so raises UserError for what does not fit. say: called
    with a line as each part of a cell begins. Collective.
    """

    def __init__(
        self,
        run: MeasuredRun,
        remembered: Remembered,
        names: list[str],
        *,
        num: int,
        batch: int,
        seed: int,
        files: Files,
        say: Callable[[str], None] | None = None,
    ):
        self.run, self.remembered, self.names = run, remembered, names
        self.num, self.seed, self.files, self._say = num, seed, files, say
        data = {'train': run.train, 'test': run.test}
        how = {'num': num, 'batch': batch, 'seed': seed}
        self.parts = ImageParts(run.model, run.mesh, **how, test=run.test)
        metrics = make_metrics(
            names, run.model, run.mesh, rows=min(num, batch), files=files, **data
        )
        self._measure = Measure(self.parts, metrics)
        self._denoising = None
        if 'denoising' in names:
            self._denoising = DenoisingScore(run.model, run.mesh, run.test, **how)

    def folder(self, cell: Cell) -> str:
        """Where the images of a cell are kept: however many, they are the same."""
        root = os.path.join(self.run.workdir, 'evaluation')
        return self.parts.folder(root, self.run.hashes[cell.ema], cell.settings)

    def recall(self, cell: Cell) -> dict | None:
        """The entry of a cell that was measured before in the same way, or None. Collective."""
        return self.remembered.find(tag(self._about(cell)))

    def __call__(
        self,
        cell: Cell,
        *,
        other_guidance: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> dict:
        """The entry of a cell: what was measured, and numbers by name. Collective.

        other_guidance: PSNR, SSIM and LPIPS once more, without guidance where the cell has it and
        with it elsewhere.
        """
        params = self.run.params(cell.ema)
        found = {}
        if self._measure.metrics:
            self._begin(f'{self.num} images')
            found |= self._measure(params, cell.settings, self.folder(cell), progress)
        # A run that was never without its condition has no null branch to be guided by, and one
        # that takes guidance as an input has scales of its own.
        model = self.run.model
        guidable = model.config['condition'].get('drop') != 0 and not model.net.guidance
        if other_guidance and guidable and 'truth' in self.names:
            found |= self._other_guidance(params, cell, progress)
        if self._denoising:
            self._begin('denoising of held-out images')
            found |= self._denoising(params)
        about = self._about(cell)
        entry = about | {name: round(value, 6) for name, value in found.items()}
        self.remembered.add(tag(about), entry)
        return entry

    def _begin(self, part: str) -> None:
        if self._say:
            self._say(f'Now: {part} …')

    def _other_guidance(self, params, cell: Cell, progress) -> dict[str, float]:
        guidance = GUIDED if cell.settings.guidance == 1 else 1.0
        self._begin(f'{self.num} images with guidance {guidance}')
        other = Cell(cell.ema, dataclasses.replace(cell.settings, guidance=guidance))
        metric = next(m for m in self._measure.metrics if isinstance(m, TruthMetric))
        found = Measure(self.parts, [metric])(params, other.settings, self.folder(other), progress)
        return {f'{name}_guidance_{guidance}': found[name] for name in metric.scores}

    def _about(self, cell: Cell) -> dict:
        """What decides the numbers of a cell, as JSON can say it."""
        return {
            'step': self.run.model.step,
            'ema': cell.ema,
            'images': os.path.basename(self.folder(cell)),
            'seed': self.seed,
            'num': self.num,
            'settings': dataclasses.asdict(cell.settings),
            'metrics': self.names,
            'inception': self.files.inception,
            'reference': self.files.reference,
            'lpips': self.files.lpips,
        }
