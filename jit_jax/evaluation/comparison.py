"""Several runs on one page: what they are, where their configs differ, curves, numbers, samples.

jit-jax report runs/a runs/b    # comparison/index.html, one file, and its PNGs
"""

import json
import os

from jit_jax.errors import UserError
from jit_jax.evaluation import run_facts
from jit_jax.evaluation.curves import Curve, families
from jit_jax.evaluation.page import sample_grids
from jit_jax.output.charts import WIDTH, chart
from jit_jax.output.document import Document
from jit_jax.output.warnings_once import reason

NOT_THERE = '–'


def write(workdirs: list[str], configs: list[dict], folder: str) -> str:
    """Writes <folder>/index.html, and PNGs beside it; returns the path.

    configs: the runs' config.json. Raises UserError where it cannot be written.
    """
    page = Document(folder)
    names = run_names(workdirs)
    facts = [run_facts.facts(*run) for run in zip(workdirs, configs, strict=True)]
    page.table(_rows(facts), heads=['', *names])
    try:
        _add_differences(page, names, configs)
        _add_curves(page, names, workdirs)
        _add_evaluation(page, names, workdirs)
        _add_samples(page, names, workdirs)
        return page.save(' · '.join(names))
    except OSError as error:
        raise UserError(
            f'--out: {folder} cannot be written ({reason(error)}); make room, or name another '
            'place.'
        ) from error


def run_names(workdirs: list[str]) -> list[str]:
    """The last part of each path, or all of it where two runs share that."""
    last = [os.path.basename(os.path.abspath(workdir)) for workdir in workdirs]
    return last if len(set(last)) == len(last) else workdirs


def _rows(columns: list[dict[str, str]]) -> list[list[str]]:
    """A row for each name in any of the columns."""
    names = dict.fromkeys(name for column in columns for name in column)
    return [[name, *(column.get(name, NOT_THERE) for column in columns)] for name in names]


def _add_differences(page: Document, names: list[str], configs: list[dict]) -> None:
    flat = [_flat(config) for config in configs]
    rows = [row for row in _rows(flat) if len(set(row[1:])) > 1]
    page.section('Where their configs differ', '' if rows else 'Nowhere.')
    if rows:
        page.table(rows, heads=['', *names])


def _flat(config: dict, prefix: str = '') -> dict[str, str]:
    """A config as {'data.kind': '"digits"', …}."""
    found = {}
    for name, value in config.items():
        if isinstance(value, dict):
            found |= _flat(value, f'{prefix}{name}.')
        else:
            found[prefix + name] = json.dumps(value, ensure_ascii=False)
    return found


def _add_curves(page: Document, names: list[str], workdirs: list[str]) -> None:
    charts = {}
    for name, workdir in zip(names, workdirs, strict=True):
        for metric, curve in _curves(workdir).items():
            charts.setdefault(metric, {})[name] = curve
    if not charts:
        return
    page.section('Curves', 'A chart for each number of metrics.jsonl, with every run that has it.')
    page.begin_row('charts')
    for metric, series in charts.items():
        picture = chart(metric, series, names=names)
        page.picture(f'chart-{metric.replace("/", "-")}', picture, width=WIDTH, kind='chart')
    page.end_row()


def _curves(workdir: str) -> dict[str, Curve]:
    """Every curve of a run by its full name."""
    found = {}
    for family, curves in families(os.path.join(workdir, 'metrics.jsonl')).items():
        for member, curve in curves.items():
            found[f'{family} {member}'.strip()] = curve
    return found


def _add_evaluation(page: Document, names: list[str], workdirs: list[str]) -> None:
    columns = []
    for workdir in workdirs:
        numbers = run_facts.evaluation(workdir)
        columns.append({name: f'{value:.4g}' for name, value in numbers})
    if any(columns):
        page.section('Evaluation', 'What jit-jax evaluate measured last of each.')
        page.table(_rows(columns), heads=['', *names])


def _add_samples(page: Document, names: list[str], workdirs: list[str]) -> None:
    grids = {name: sample_grids(run) for name, run in zip(names, workdirs, strict=True)}
    if not any(grids.values()):
        return
    page.section('The newest samples')
    page.begin_row('pair')
    for i, (name, found) in enumerate(grids.items()):
        if found:
            step = max(found)
            picture = found[step]
            page.picture(f'newest-{i}', picture, f'{name}, step {step}', width=picture.shape[1])
    page.end_row()
