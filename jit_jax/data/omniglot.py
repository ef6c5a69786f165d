"""Omniglot: characters that 20 people drew. Two drawings of one are references; a third is to make.

omniglot.npz comes with the package: 136 characters of five alphabets, the part that
github.com/brendenlake/omniglot calls images_background_small1 (MIT licence, omniglot_LICENSE.txt).
"""

import functools
from collections.abc import Sequence
from importlib import resources

import numpy as np
from PIL import Image

from jit_jax.data.listing import check_split
from jit_jax.data.records import Records

HELD_OUT = 5  # one character in five is for testing
WAYS = 9  # pairs of references of one drawing, no person twice among them
TURNS = 4  # by quarters: a training character that is turned is another character


@functools.cache
def drawings() -> tuple[np.ndarray, tuple[str, ...]]:
    """All drawings, ink bright on black, and the characters' names, 'Greek/character01'.

    The drawings are uint8 [136 characters, 20 people, 105, 105], 0 and 255.
    """
    with resources.files('jit_jax.data').joinpath('omniglot.npz').open('rb') as file:
        stored = np.load(file)
        names = tuple(str(name) for name in stored['characters'])
        side = stored['drawings'].shape[-2]
        paper = np.unpackbits(stored['drawings'], axis=-1, count=side)
    return (1 - paper) * np.uint8(255), names


def held_out(count: int) -> np.ndarray:
    """Which of so many characters are for testing: bool [count]."""
    return np.arange(count) % HELD_OUT == HELD_OUT - 1


def people_of(person: int, way: int, people: int) -> tuple[int, int, int]:
    """Who drew an example, and its two references."""
    half = people // 2
    return person, (person + 1 + way) % people, (person + half + way) % people


def open_omniglot(split: str) -> Records:
    """Opens the drawings: 'image' by one person, 'cond' and 'cond2' by two others.

    To train on, every drawing is there in four turns, each with nine pairs of references. For
    testing there are the upright drawings of other characters, one of each character in turn.
    """
    check_split(split)
    every, names = drawings()
    is_held_out = held_out(len(names))
    chosen = every[is_held_out if split == 'test' else ~is_held_out]
    characters, people = chosen.shape[:2]
    ways, turns = (1, 1) if split == 'test' else (WAYS, TURNS)
    shape = (ways, turns, people, characters)

    def parts(i) -> tuple[int, ...]:
        return tuple(int(part) for part in np.unravel_index(i, shape))

    def read(i):
        way, turn, person, character = parts(i)
        found = [chosen[character, one] for one in people_of(person, way, people)]
        pictures = (Image.fromarray(np.rot90(drawing, turn)) for drawing in found)
        return dict(zip(('image', 'cond', 'cond2'), pictures, strict=True)), -1

    def name(i):
        return f'drawing {i} of split {split!r} of Omniglot'

    summary = _summary(names, is_held_out, people)
    return Records(int(np.prod(shape)), ('image', 'cond', 'cond2'), read, name, (), summary)


def _summary(names: Sequence[str], is_held_out: np.ndarray, people: int) -> str:
    alphabets = len({name.split('/')[0] for name in names})
    return (
        f'Omniglot: {np.sum(~is_held_out)} characters of {alphabets} alphabets for training, '
        f'turned by quarters, {np.sum(is_held_out)} held out, each drawn by {people} people.'
    )
