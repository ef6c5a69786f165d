"""The attention mask of the 512 slots as a picture."""

import math

import numpy as np

from jit_jax.model import sequence
from jit_jax.output.charts import BLUE, ORANGE

DEAD = '#e9e9e9'
CAPTION = (
    'A strip for each row: live condition slots blue, the target orange, dead slots pale. Below, '
    'for the first two rows, which slot (down) attends to which (across).'
)
SLOT_WIDE, STRIP_HIGH, GAP = 2, 14, 4  # pixels


def slots(conditioning: dict, model, rows: int = 4) -> np.ndarray:
    """The mask of a model (JiT) for a batch as a picture, uint8 [·, 1026, 3]; CAPTION says how to
    read it.

    conditioning: keywords of `JiT.__call__` with `rows` rows.
    """
    valid = np.asarray(mask(conditioning, model, rows))
    parts = [_strip(row) for row in valid]
    squares = np.concatenate([_square(row) for row in valid[:2]], 1)
    width = parts[0].shape[1]
    parts.append(_padded(squares, right=width - squares.shape[1]))
    return np.concatenate(parts)


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
    cond_valid = label_valid = None
    if 'cond' in conditioning:
        n = math.prod(sequence.condition_grid(conditioning['cond'].shape, model.patch))
        cond_valid = conditioning.get('cond_valid', np.ones((rows, n), bool))
    if 'label' in conditioning:
        label_valid = conditioning.get('label_valid', np.ones(rows, bool))
    return sequence.slot_mask(rows, cond_valid, label_valid, model.class_tokens)


def _strip(live: np.ndarray) -> np.ndarray:
    row = _painted(live).repeat(SLOT_WIDE, 0)
    return _padded(np.tile(row, (STRIP_HIGH, 1, 1)), bottom=GAP, right=2)


def _square(live: np.ndarray) -> np.ndarray:
    """Who attends to whom: slots [512, 512]."""
    return _padded(_painted(live[:, None] & live[None, :]), top=2 * GAP, right=1)


def _painted(live: np.ndarray) -> np.ndarray:
    """bool [..., 512] → uint8 [..., 512, 3]."""
    colors = np.empty((sequence.SLOTS, 3), np.uint8)
    colors[sequence.COND] = rgb(BLUE)
    colors[sequence.TARGET] = rgb(ORANGE)
    return np.where(live[..., None], colors, rgb(DEAD))


def _padded(image: np.ndarray, *, top: int = 0, bottom: int = 0, right: int = 0) -> np.ndarray:
    """With a white margin."""
    return np.pad(image, ((top, bottom), (0, right), (0, 0)), constant_values=255)


def rgb(color: str) -> np.ndarray:
    """`#3566a8` → uint8 [3]."""
    return np.frombuffer(bytes.fromhex(color[1:]), np.uint8)
