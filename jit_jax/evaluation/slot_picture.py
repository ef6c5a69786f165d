"""The attention mask of the 512 slots as a picture."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from jit_jax.diffusion import references
from jit_jax.model import sequence
from jit_jax.output.charts import BLUE, INK, ORANGE
from jit_jax.output.images import TEXT, cut
from jit_jax.output.letters import font

DEAD = '#d9dce1'
CAPTION = (
    'Above, a strip for each row of a batch: its 256 condition slots and its 256 target slots. '
    'Below, for the first two rows, which slot (down) attends to which (across). Dead slots hold '
    'zeros, are masked and are not computed.'
)
LEGEND = ((BLUE, 'live condition'), (ORANGE, 'target'), (DEAD, 'dead'))
STRIP_HIGH, GAP, LINE = 12, 4, 22  # pixels; a slot of a strip is one wide
LEFT = 110  # of the strips and squares, beside their names
SQUARE = sequence.SLOTS // 2  # pixels of a square, two slots each
WIDTH = LEFT + 2 * SQUARE + 4 * GAP + GAP


def slots(conditioning: dict, model, rows: int = 4, names: Sequence[str] = ()) -> np.ndarray:
    """The mask of a model (JiT) for a batch as a labelled picture, uint8 [·, ·, 3]; CAPTION
    explains it.

    conditioning: keywords of `JiT.__call__` with `rows` rows. names: of the rows, such as their
    kinds of condition.
    """
    valid = np.asarray(mask(conditioning, model, rows))
    squares_top = LINE + rows * (STRIP_HIGH + GAP) + LINE
    sheet = Image.new('RGB', (WIDTH, squares_top + SQUARE + GAP), 'white')
    draw = ImageDraw.Draw(sheet)
    _write_legend(draw)
    for row, live in enumerate(valid):
        top = LINE + row * (STRIP_HIGH + GAP)
        name = names[row] if names else f'row {row + 1}'
        name, face = cut(name, TEXT, LEFT - 2 * GAP)
        draw.text((GAP, top + STRIP_HIGH / 2), name, INK, face, 'lm')
        sheet.paste(Image.fromarray(_strip(live)), (LEFT, top))
    for row, live in enumerate(valid[:2]):
        left = LEFT + row * (SQUARE + 4 * GAP)
        sheet.paste(Image.fromarray(_square(live)), (left, squares_top))
        name = names[row] if names else f'row {row + 1}'
        draw.text((left, squares_top - LINE / 2), f'{name}: attention', INK, font(TEXT), 'lm')
    return np.array(sheet)


def _write_legend(draw: ImageDraw.ImageDraw) -> None:
    left = LEFT
    for color, word in LEGEND:
        draw.rectangle((left, 4, left + 12, 16), color)
        draw.text((left + 18, LINE / 2 - 1), word, INK, font(TEXT), 'lm')
        left += 18 + round(font(TEXT).getlength(word)) + 24


def tiles(conditioning: dict, model, rows: int, side: int) -> np.ndarray:
    """The slots of each row as a square: the condition's on the left, the target's on the right, 16
    in a line. uint8 [rows, side, side, 3].
    """
    valid = _painted(np.asarray(mask(conditioning, model, rows)))
    halves = valid.reshape(rows, 2, sequence.GRID, sequence.GRID, 3)
    squares = np.concatenate([halves[:, 0], halves[:, 1]], 2)  # [rows, 16, 32, 3]
    at = np.arange(side)
    down, across = at * sequence.GRID // side, at * 2 * sequence.GRID // side
    return squares[:, down][:, :, across]


def mask(conditioning: dict, model, rows: int) -> np.ndarray:
    """`valid`, bool [rows, 512], of a batch as the model makes it from its conditioning."""
    parts, label_valid = [], None
    if 'cond' in conditioning:
        n = math.prod(sequence.condition_grid(conditioning['cond'].shape, model.patch))
        parts.append(conditioning.get('cond_valid', np.ones((rows, n), bool)))
    if 'references' in conditioning:
        parts.append(references.flags(conditioning, model.image_size))
    if 'cond_tokens' in conditioning:
        m = conditioning['cond_tokens'].shape[1]
        parts.append(conditioning.get('cond_tokens_valid', np.ones((rows, m), bool)))
    if 'label' in conditioning:
        label_valid = conditioning.get('label_valid', np.ones(rows, bool))
    cond_valid = np.concatenate(parts, 1) if parts else None
    return sequence.slot_mask(rows, cond_valid, label_valid, model.class_tokens)


def _strip(live: np.ndarray) -> np.ndarray:
    return np.tile(_painted(live), (STRIP_HIGH, 1, 1))


def _square(live: np.ndarray) -> np.ndarray:
    """Who attends to whom, every second slot: uint8 [SQUARE, SQUARE, 3]."""
    return _painted(live[:, None] & live[None, :])[::2, ::2]


def _painted(live: np.ndarray) -> np.ndarray:
    """bool [..., 512] → uint8 [..., 512, 3]."""
    colors = np.empty((sequence.SLOTS, 3), np.uint8)
    colors[sequence.COND] = rgb(BLUE)
    colors[sequence.TARGET] = rgb(ORANGE)
    return np.where(live[..., None], colors, rgb(DEAD))


def rgb(color: str) -> np.ndarray:
    """`#3566a8` → uint8 [3]."""
    return np.frombuffer(bytes.fromhex(color[1:]), np.uint8)
