"""scikit-learn's digits by the hands that wrote them: a reference of a hand, and another digit.

The data set does not name its writers, but it is in their order: each begins with 0123456789,
three times. So there are 14 runs of about 130 digits, one a writer. Fourteen are too few to learn
what differs between hands, so a hand is a writer with a style: how far the digits lean, and how
broad the pen is. Both pictures of an example have the same style.
"""

import functools
from typing import NamedTuple

import numpy as np
from PIL import Image

from jit_jax.data.listing import check_split
from jit_jax.data.records import Records

STARTS = (0, 130, 256, 386, 516, 646, 776, 906, 1029, 1157, 1287, 1415, 1545, 1667)  # of writers
HELD_OUT = (6, 13)  # writers for testing
WAYS = 9  # references of one digit, each of another class
SIDE = 32  # pixels
SLANT = 0.35  # pixels to the right for a pixel up, at most; as far to the left
PEN = 2.0  # a broad pen raises ink to the power 1 / PEN, a fine one to PEN


class Style(NamedTuple):
    """slant: pixels to the right for a pixel up. pen: the power that ink in 0 … 1 is raised to."""

    slant: float
    pen: float


PLAIN = Style(0.0, 1.0)


def style(number: int, way: int) -> Style:
    """The style of both pictures of an example, evenly spread."""
    slant, pen = np.random.default_rng((number, way)).uniform(-1, 1, 2)
    return Style(SLANT * slant, PEN**pen)


@functools.cache
def written() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every digit in its order: levels float [1797, 8, 8] in 0 … 16, its class and its hand, int
    [1797].
    """
    from sklearn.datasets import load_digits

    levels, classes = load_digits(return_X_y=True)
    hands = np.searchsorted(STARTS, np.arange(len(classes)), side='right') - 1
    return levels.reshape(-1, 8, 8), classes, hands


def enlarged(levels: np.ndarray, style: Style = PLAIN) -> Image.Image:
    """float [8, 8] in 0 … 16 → a grayscale picture of 32 × 32, in this style."""
    ink = (levels.astype(np.float32) / 16) ** style.pen
    large = Image.fromarray(ink * 255).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    if style.slant:
        middle = (SIDE - 1) / 2
        leaning = (1, style.slant, -style.slant * middle, 0, 1, 0)
        large = large.transform(
            (SIDE, SIDE), Image.Transform.AFFINE, leaning, Image.Resampling.BILINEAR
        )
    return Image.fromarray(np.asarray(large).clip(0, 255).round().astype(np.uint8))


def open_handwriting(split: str) -> Records:
    """Opens the digits: 'image' is one, with its class, and 'cond' another class by the same hand.

    To train on, every digit is there with nine references. For testing there are the digits of
    other hands, these in turn, with one reference each.
    """
    check_split(split)
    levels, classes, hands = written()
    is_held_out = np.isin(hands, HELD_OUT)
    chosen, ways = np.flatnonzero(~is_held_out), WAYS
    if split == 'test':
        chosen, ways = np.flatnonzero(is_held_out), 1
        chosen = chosen[np.argsort(_number_in_its_hand(hands)[chosen], kind='stable')]

    def read(i):
        number = chosen[i % len(chosen)]
        way = i // len(chosen) if ways > 1 else i
        other = (classes[number] + 1 + way % WAYS) % 10
        like = np.flatnonzero((hands == hands[number]) & (classes == other))
        reference = like[number % len(like)]
        own = style(number, way)
        pictures = {
            'image': enlarged(levels[number], own),
            'cond': enlarged(levels[reference], own),
        }
        return pictures, int(classes[number])

    def name(i):
        return f'digit {chosen[i % len(chosen)]} of split {split!r}'

    training = len(STARTS) - len(HELD_OUT)
    summary = (
        f"scikit-learn's digits: {np.sum(~is_held_out):,} by {training} hands for training, "
        f'{np.sum(is_held_out)} by {len(HELD_OUT)} others held out, in 10 classes.'
    )
    names = tuple('0123456789')
    return Records(len(chosen) * ways, ('image', 'cond'), read, name, names, summary)


def _number_in_its_hand(hands: np.ndarray) -> np.ndarray:
    """How many digits of the same hand come before each: int [N]."""
    return np.arange(len(hands)) - np.asarray(STARTS)[hands]
