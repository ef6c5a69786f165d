"""Seams: whether neighbouring pixels differ more across the borders of patches than inside them.

A transformer writes each patch by itself, so what it has not learned to join shows as a grid.
"""

import math

import numpy as np

from jit_jax.evaluation.classifier import evenly
from jit_jax.model.sequence import patch_size

AT_MOST = 1024  # held-out images that generated ones are held against


class SeamsMetric:
    """`seams`: 1 where generated images step across patch borders as held-out images do.

    `border_steps` is the mean absolute difference of neighbouring pixels across borders over that
    inside patches, of generated images; `border_steps_held_out` the same of held-out ones, which
    have a grain of their own where they were enlarged; `seams` is their quotient. test: a
    `data.Source` of images whose side is a multiple of 16.
    """

    def __init__(self, test):
        images = np.stack([test[i]['image'] for i in evenly(len(test), AT_MOST)])
        self._held_out = quotient(steps(images))
        self.reset()

    def reset(self) -> None:
        self._sums = np.zeros((2, 2))

    def update(self, images, conditioning: dict, truth) -> None:
        """images: uint8 [n, H, H, C]; the rest plays no part."""
        self._sums += steps(images)

    def compute(self) -> dict[str, float]:
        generated = quotient(self._sums)
        return {
            'seams': generated / self._held_out,
            'border_steps': generated,
            'border_steps_held_out': self._held_out,
        }


def steps(images) -> np.ndarray:
    """Of uint8 [N, H, H, C]: [[sum, count] across patch borders, [sum, count] inside patches].

    Of the absolute differences between pixels that are neighbours in a row or in a column.
    """
    patch, totals = patch_size(images.shape[1]), np.zeros((2, 2))
    pixels = images.astype(np.float64)
    for axis in (1, 2):
        differences = np.abs(np.diff(pixels, axis=axis))
        lines = np.moveaxis(differences, axis, 0).reshape(differences.shape[axis], -1)
        at_border = np.arange(1, len(lines) + 1) % patch == 0
        for row, chosen in enumerate((at_border, ~at_border)):
            totals[row] += lines[chosen].sum(), lines[chosen].size
    return totals


def quotient(totals: np.ndarray) -> float:
    """The mean step across borders over that inside; 1 for images without any step."""
    (border, borders), (inside, insides) = totals
    if inside == 0:
        return math.inf if border else 1.0
    return float((border / borders) / (inside / insides))
