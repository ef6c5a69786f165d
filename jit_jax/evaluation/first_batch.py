"""What a model is about to train on, as a picture: images, conditions, noise and live slots."""

import jax
import numpy as np

from jit_jax.diffusion import conditions
from jit_jax.evaluation.preview import captions
from jit_jax.evaluation.slot_picture import tiles
from jit_jax.output.images import enlarged, grid, to_uint8
from jit_jax.recipe import build
from jit_jax.training.step import draw, keys_at, keys_of_draw


def picture(run: build.Run, batch: dict[str, np.ndarray], num: int) -> np.ndarray:
    """The first rows of a batch as the first step of a run draws it, uint8 [·, ·, 3].

    For each row: the image, its condition image, the image with noise, and which of the 512 slots
    are live; below it the kind of its condition, its class and its t.

    Args:
      batch: as the loop gets it, with enough rows for each kind of a mixed condition.
      num: how many rows are shown; of each kind equally many, and one at least.
    """
    draw_key, _ = keys_at(jax.random.key(run.config.seed), 0)
    drawn = jax.jit(draw, static_argnums=2)(batch, draw_key, run.recipe)
    kinds = kinds_of(run, draw_key, len(batch['image']))
    chosen = rows_of_each(kinds, num) if kinds else np.arange(min(num, len(batch['image'])))
    drawn = jax.tree.map(lambda rows: np.asarray(rows)[chosen], drawn)
    kinds = [kinds[i] for i in chosen] if kinds else []
    conditioning, side = drawn['conditioning'], run.model.image_size
    parts = {'image': to_uint8(drawn['x'])}
    shown = conditions.picture(conditioning, side)
    if shown is not None:
        parts['condition'] = to_uint8(shown)
    parts['noisy'] = to_uint8(drawn['z'])
    parts = {name: enlarged(images) for name, images in parts.items()}
    parts = {name: np.broadcast_to(i, (*i.shape[:-1], 3)) for name, i in parts.items()}
    wide = parts['image'].shape[2]
    parts['live slots'] = tiles(conditioning, run.model, len(chosen), wide)
    said = captions(len(chosen), conditioning, run.train.classes, kinds) or [''] * len(chosen)
    lines = [f'{words} · ' if words else '' for words in said]
    lines = [f'{line}t = {t:.2f}' for line, t in zip(lines, drawn['t'], strict=True)]
    return grid(np.stack(list(parts.values()), 1), 2, heads=tuple(parts), captions=lines)


def kinds_of(run: build.Run, draw_key, rows: int) -> list[str]:
    """The kind of condition of each row, where config.condition.kind joins several by |; else
    none.
    """
    options = run.config.condition.kind.split('|')
    if len(options) == 1:
        return []
    _, _, condition_key, _ = keys_of_draw(draw_key)
    return [options[i] for i in np.asarray(conditions.choose(len(options), condition_key, rows))]


def rows_of_each(kinds: list[str], num: int) -> list[int]:
    """The numbers of the first rows of each kind, kind by kind."""
    names = sorted(set(kinds), key=kinds.index)
    each = max(1, num // len(names))
    return [i for name in names for i in [i for i, k in enumerate(kinds) if k == name][:each]]
