"""The numbers of a run as curves."""

import math
import re

from etils import epath

from jit_jax.output.charts import GENERATED
from jit_jax.output.jsonl import read_lines

Curve = list[tuple[int, float]]  # (step, value)

# `v_loss_t0.2` or `recall/5`: what ends in a number shares a chart with its like.
MEMBER = re.compile(r'(.+?)[_/](t?[\d.]+(?:_[\d.]+)?)')
# And so do numbers of generated images with what they are held against.
BESIDE = re.compile(r'((?:.*/)?(?:readable|classifier_distance|border_steps))(?:_(.+))?')


def families(path: epath.PathLike) -> dict[str, dict[str, Curve]]:
    """metrics.jsonl → {'loss': {'': [(step, value), …]}, 'v_loss': {'t0.2': …, 't0.5': …}, …}.

    A name is a chart, and what is always zero has none. A torn line counts for nothing.
    """
    found = {'loss': {}, 'learning_rate': {}}  # these come first
    for line in read_lines(path):
        for name, value in line.items():
            if name != 'step' and math.isfinite(value):
                family, member = _parts(name)
                curve = found.setdefault(family, {}).setdefault(member, [])
                curve.append((line['step'], value))
    if len({value for _, value in found.get('broken_images', {}).get('', ())}) < 2:
        found.pop('broken_images', None)  # a flat line says no more than its number
    return {name: curves for name, curves in found.items() if _any_not_zero(curves)}


def _parts(name: str) -> tuple[str, str]:
    beside = BESIDE.fullmatch(name)
    if beside:
        return beside[1], (beside[2] or GENERATED).replace('_', ' ')
    matched = MEMBER.fullmatch(name)
    if not matched:
        return name, ''
    family, member = matched.groups()
    return family, member.replace('_', '–')  # t0.25–0.5, a range


def _any_not_zero(curves: dict[str, Curve]) -> bool:
    return any(value for curve in curves.values() for _, value in curve)
