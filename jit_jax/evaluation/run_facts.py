"""What a run is and how it went, in words and numbers, from the files in its folder."""

import json
import os
from datetime import UTC, datetime

import jax
from etils import epath

from jit_jax import data
from jit_jax.output.jsonl import read_lines
from jit_jax.output.log import HISTORY
from jit_jax.output.progress import duration
from jit_jax.recipe import build
from jit_jax.training.storage import steps


def facts(
    workdir: str, config: dict, train: data.Source | None = None, test: data.Source | None = None
) -> dict[str, str]:
    """By name, in the order of a page; what a folder does not tell is left out.

    train, test: its images, where they are at hand.
    """
    model = config['model']
    size = f'{model["image_size"]}×{model["image_size"]}'
    count = parameters(config) / 1e6
    found = {
        'model': f'JiT-{model["variant"]} at {size}, {count:,.1f} M parameters',
        'condition': config['condition']['kind'],
    }
    if 'data' in config:
        found['images'] = _images(config['data'], train, test)
    lines = read_lines(_path(workdir, 'metrics.jsonl'))
    broken = [line['broken_images'] for line in lines if 'broken_images' in line]
    if broken and broken[-1]:
        found['images'] += f'; {broken[-1]:.0f} could not be read'
    if lines:
        found |= _progress(lines, config, last_step(workdir, lines))
    sessions = history(workdir)
    for session in sessions:
        name = 'resumed' if session['step'] else 'begun'
        found[_unused(name, found)] = f'{date(session["time"])}: {session["how"]}'
    if lines:
        found['last line'] = date(epath.Path(_path(workdir, 'metrics.jsonl')).stat().mtime)
    return found


def history(workdir: str) -> list[dict]:
    """The starts of a run: `step` that it went on from, `time` in seconds since 1970, `how`."""
    return read_lines(_path(workdir, HISTORY))


def last_step(workdir: str, lines: list[dict]) -> int:
    """The last step that a run saved or wrote a line for: a stop saves between two lines."""
    return max([line['step'] for line in lines] + steps(epath.Path(workdir) / 'checkpoints'))


def resumed_steps(workdir: str) -> list[int]:
    """The steps, without 0, at which a run went on."""
    return sorted({session['step'] for session in history(workdir)} - {0})


def parameters(config: dict) -> int:
    """How many a run's network has."""
    shapes = build.parameter_shapes(build.network(config))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def evaluation(workdir: str) -> list[tuple[str, float]]:
    """The numbers of the latest entry in evaluation.json, by name; [] where there is none."""
    try:
        entries = json.loads(epath.Path(_path(workdir, 'evaluation.json')).read_text())
        newest = list(entries.values())[-1]
        return [(name, value) for name, value in newest.items() if isinstance(value, float)]
    except (OSError, ValueError, AttributeError, IndexError):
        return []


def date(seconds: float) -> str:
    """Of seconds since 1970: `2026-11-25 03:05 UTC`."""
    return datetime.fromtimestamp(seconds, UTC).strftime('%Y-%m-%d %H:%M UTC')


def training_seconds(lines: list[dict], batch: int) -> float:
    """How long the steps took, without compilation and without what came between them."""
    seconds, before = 0.0, 0
    for line in lines:
        if line.get('images_per_second'):
            seconds += (line['step'] - before) * batch / line['images_per_second']
            before = line['step']
    return seconds


def _path(workdir: str, name: str) -> str:
    return os.path.join(workdir, name)


def _images(section: dict, train: data.Source | None, test: data.Source | None) -> str:
    where = os.path.basename(section['path'].rstrip('/')) or section['kind']
    if train is None or test is None:
        return where
    return f'{len(train):,} of {where}, {len(test):,} held out'


def _progress(lines: list[dict], config: dict, step: int) -> dict[str, str]:
    batch = config['batch_size']
    found = {'step': f'{step:,} of {config["steps"]:,}, batch {batch}: {step * batch:,} images'}
    seconds = training_seconds(lines, batch)
    if seconds:
        found['time'] = f'{duration(seconds)} of training steps'
    losses = [line['loss'] for line in lines if 'loss' in line]
    if losses:
        found['loss'] = f'{losses[-1]:.4g}'
    return found


def _unused(name: str, found: dict) -> str:
    """The name, or with a number where it is taken."""
    taken = sum(one == name or one.startswith(f'{name} ') for one in found)
    return f'{name} {taken + 1}' if taken else name
