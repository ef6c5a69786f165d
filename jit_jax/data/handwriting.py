"""scikit-learn's digits by the hands that wrote them: a reference of a hand, and another digit.

The data set does not name its writers, but it is in their order: each begins with 0123456789,
three times. So there are 14 runs of about 130 digits, one a hand.
"""

import functools

import numpy as np
from PIL import Image

from jit_jax.data.listing import check_split
from jit_jax.data.records import Records

STARTS = (0, 130, 256, 386, 516, 646, 776, 906, 1029, 1157, 1287, 1415, 1545, 1667)  # of hands
HELD_OUT = (6, 13)  # hands for testing
WAYS = 9  # references of one digit, each of another class
SIDE = 32  # pixels


@functools.cache
def written() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every digit in its order: levels float [1797, 8, 8] in 0 … 16, its class and its hand, int
    [1797].
    """
    from sklearn.datasets import load_digits

    levels, classes = load_digits(return_X_y=True)
    hands = np.searchsorted(STARTS, np.arange(len(classes)), side='right') - 1
    return levels.reshape(-1, 8, 8), classes, hands


def enlarged(levels: np.ndarray) -> Image.Image:
    """float [8, 8] in 0 … 16 → a grayscale picture of 32 × 32."""
    large = Image.fromarray(levels.astype(np.float32) * (255 / 16))
    pixels = np.asarray(large.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


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
        pictures = {'image': enlarged(levels[number]), 'cond': enlarged(levels[reference])}
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
