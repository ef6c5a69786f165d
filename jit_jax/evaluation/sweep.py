"""A sweep: a grid of cells over one or two axes, the best of them, and a heat map."""

import contextlib
import dataclasses
import itertools
import math
import os
from collections.abc import Callable

import jax
import numpy as np
from etils import epath

from jit_jax.diffusion.samplers import SAMPLERS
from jit_jax.errors import UserError
from jit_jax.evaluation.kept_files import keep
from jit_jax.evaluation.results import Cell, CellMeasure
from jit_jax.output import charts
from jit_jax.output.images import save_png

MOST = 1000  # values on an axis
# By name of a metric: the number of it that a sweep compares, and what is better.
SCORES = {
    'fid': ('fid', min),
    'kid': ('kid', min),
    'is': ('is', max),
    'classifier': ('classifier_distance', min),
    'truth': ('psnr', max),
    'precision_recall': ('precision', max),
}


def parse_axes(text: str) -> dict[str, list]:
    """'ema=ema1,ema2 guidance=1:4:0.5' → values by name, ema first. Raises UserError."""
    axes = {}
    for word in text.split():
        name, _, values = word.partition('=')
        if name not in AXES:
            raise UserError(_not_an_axis(word))
        if name in axes:
            raise UserError(f'--sweep names {name} twice; give all of its values at once.')
        axes[name] = _axis(word, name, values)
    if not 1 <= len(axes) <= 2:
        raise UserError('--sweep takes one or two of ema, guidance, sampler, steps and t_eps.')
    if 'ema' in axes:  # the outer axis, so that weights are read once for a row
        axes = {'ema': axes['ema'], **axes}
    return axes


def _not_an_axis(word: str) -> str:
    return (
        f'--sweep: {word!r} is not ema=ema1,ema2 nor guidance=1.0:4.0:0.1 (first:last:step) nor '
        'sampler=heun,multistep nor steps=20,50 nor t_eps=0,0.05.'
    )


def _axis(word: str, name: str, values: str) -> list:
    try:
        texts = _range(values) if ':' in values else values.split(',')
        found = [AXES[name](value) for value in texts if value]
    except UserError as problem:
        raise UserError(f'--sweep: {word}: {problem}') from None
    except ValueError:
        found = []
    if not found:
        raise UserError(_not_an_axis(word))
    return list(dict.fromkeys(found))


def _range(text: str) -> list[str]:
    """'1:2:0.5' → ['1', '1.5', '2']."""
    first, last, step = map(float, text.split(':'))
    if not all(map(math.isfinite, (first, last, step))) or step <= 0 or last < first:
        raise UserError('first:last:step goes up from first to last by a step above 0.')
    if (last - first) / step > MOST:
        raise UserError(f'these are more than {MOST} values; take a larger step.')
    # Rounded, as 1.0 + 3 · 0.1 is 1.3000000000000003.
    texts = [f'{x:.6f}' for x in np.arange(first, last + step / 2, step)]
    return [text.rstrip('0').rstrip('.') for text in texts]


def _guidance(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise UserError('guidance must be finite.')
    return value


def _steps(text: str) -> int:
    value = int(text)
    if value < 1:
        raise UserError('a sampler takes 1 step or more.')
    return value


def _sampler(text: str) -> str:
    if text not in SAMPLERS:
        raise UserError(f'a sampler is one of {", ".join(SAMPLERS)}.')
    return text


def _t_eps(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise UserError('t_eps is a number from 0 to below 1.')
    return value


AXES = {
    'ema': str,
    'guidance': _guidance,
    'sampler': _sampler,
    'steps': _steps,
    't_eps': _t_eps,
}


def grid(axes: dict[str, list], base: Cell) -> list[Cell]:
    """The cells of all combinations, rows first; what is no axis is as in `base`."""
    cells = []
    for values in itertools.product(*axes.values()):
        change = dict(zip(axes, values, strict=True))
        ema = change.pop('ema', base.ema)
        cells.append(Cell(ema, dataclasses.replace(base.settings, **change)))
    return cells


class Sweep:
    """Measures every cell of a grid by the first of a CellMeasure's names.

    say: called with a line of text for the person who watches.
    """

    def __init__(self, axes: dict[str, list], base: Cell, measure: CellMeasure, say: Callable):
        self.axes, self.cells = axes, grid(axes, base)
        self.measure, self.say = measure, say
        self.score, self.better = SCORES[measure.names[0]]

    def run(self, progress: Callable[[int], None]) -> Cell:
        """The best cell. Of all images its own stay, and a heat map is drawn. Collective."""
        values, best = {}, None
        for cell in self.cells:
            entry = self.measure.recall(cell) or self.measure(cell, progress=progress)
            values[cell] = entry[self.score]
            self.say(f'{self._words(cell):32} {self.score} {values[cell]:.4f}')
            previous, best = best, self.better(values, key=values.get)
            for finished in {cell, previous} - {best, None}:
                _remove(self.measure.folder(finished))
        path = self._draw(values, best)
        where = f'ema={best.ema or "ema1"} guidance={best.settings.guidance}'
        where += f' t_eps={best.settings.t_eps:g} sampler={best.settings.sampler}'
        where += f' steps={best.settings.steps}'
        self.say(f'Best: {self.score} {values[best]:.4f} with {where}; heat map in {path}')
        return best

    def _words(self, cell: Cell) -> str:
        """'ema=ema1 steps=20'."""
        values = {'ema': cell.ema, **dataclasses.asdict(cell.settings)}
        return ' '.join(f'{name}={values[name]}' for name in self.axes)

    def _draw(self, values: dict[Cell, float], best: Cell) -> str:
        names = list(self.axes)
        rows, columns = ([''], *self.axes.values()) if len(names) == 1 else self.axes.values()
        table = np.reshape(list(values.values()), (len(rows), len(columns)))
        place = np.unravel_index(list(values).index(best), table.shape)
        title = f'{self.score} of {self.measure.num} images'
        file = f'sweep-{"-".join(names)}-{self.score}.png'
        path = os.path.join(self.measure.run.workdir, 'evaluation', file)
        labels = [str(row) for row in rows], [str(column) for column in columns]
        if jax.process_index() == 0:
            axes = {'row_name': '' if len(names) == 1 else names[0], 'column_name': names[-1]}
            keep(path, save_png, charts.heat_map(table, *labels, title, place, **axes))
        return path


def _remove(folder: str) -> None:
    """Removes the images of a cell that is not the best; the first process does."""
    if jax.process_index() == 0:
        with contextlib.suppress(OSError):
            epath.Path(folder).rmtree(missing_ok=True)
