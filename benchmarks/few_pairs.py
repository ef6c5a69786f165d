"""The images of `unification.py`: all of them without a condition, some of them with one.

A task is a data set and a condition: `inpaint` and `super_resolution` on scikit-learn's digits, and
`glyphs`: Omniglot's drawings, each to be made from another person's drawing of the character.
"""

import functools
from dataclasses import dataclass

import jax
import numpy as np
from PIL import Image

from jit_jax import data
from jit_jax.data import omniglot
from jit_jax.data.arrays import from_arrays
from jit_jax.diffusion import conditions

SIDE = 32  # pixels
PEOPLE = 16  # of Omniglot's 20 whose drawings are for training; the others' are held out
GLYPH_FACTOR = 2  # the drawing that a glyph is made from is this many times smaller

TASKS = {  # what decides a task beside its images
    'inpaint': {'images': 'digits', 'kind': 'inpaint', 'factor': 1, 'slots': 256},
    'super_resolution': {'images': 'digits', 'kind': 'super_resolution', 'factor': 4, 'slots': 16},
    'glyphs': {'images': 'omniglot', 'kind': 'smaller_pair', 'factor': 2, 'slots': 64},
}


def smaller_pair(x, batch, key) -> conditions.Conditioning:
    """The image that the data set pairs with x, half as large: a quarter of the condition slots."""
    cond = conditions.from_uint8(batch['cond'])
    B, H, W, C = cond.shape
    small = (B, H // GLYPH_FACTOR, W // GLYPH_FACTOR, C)
    return {'cond': jax.image.resize(cond, small, 'cubic', antialias=True)}


@dataclass(frozen=True)
class Images:
    """Training and held-out examples of a data set, as `data.Source`s in memory.

    The first held-out ones, of which images are made, are spread over all classes.
    """

    train: data.Source
    test: data.Source


@functools.cache
def images(name: str) -> Images:
    """The data set of this name, 'digits' or 'omniglot'."""
    return {'digits': _digits, 'omniglot': _omniglot}[name]()


def _digits() -> Images:
    def in_memory(split):
        source = data.open_source('digits', split=split, image_size=SIDE, channels=1)
        order = spread(len(source)) if split == 'test' else range(len(source))
        rows = [source[i] for i in order]
        pictures = [row['image'] for row in rows]
        labels = np.array([row['label'] for row in rows])
        return from_arrays(pictures, labels, classes=source.classes)

    return Images(in_memory('train'), in_memory('test'))


def _omniglot() -> Images:
    """A drawing's partner, its condition, is another person's drawing of the character."""
    every, names = omniglot.drawings()
    drawings = np.stack([_smaller(drawing) for drawing in every.reshape(-1, *every.shape[2:])])
    drawings = drawings.reshape(*every.shape[:2], SIDE, SIDE, 1)  # [characters, people, H, W, 1]

    def in_memory(by_people, *, mixed_up: bool):
        characters, people = by_people.shape[:2]
        partners = np.roll(by_people, 1, axis=1)
        labels = np.repeat(np.arange(characters), people)
        flat = (characters * people, SIDE, SIDE, 1)
        order = spread(len(labels)) if mixed_up else np.arange(len(labels))
        pictures, cond = by_people.reshape(flat)[order], partners.reshape(flat)[order]
        return from_arrays(pictures, labels[order], cond, classes=names)

    train = in_memory(drawings[:, :PEOPLE], mixed_up=False)
    return Images(train, in_memory(drawings[:, PEOPLE:], mixed_up=True))


def spread(count: int) -> np.ndarray:
    """An order of `count` examples whose first ones come from all over: int [count]."""
    stride = next(n for n in range(count * 5 // 13, count) if np.gcd(n, count) == 1)
    return np.arange(count) * stride % count


def _smaller(drawing) -> np.ndarray:
    """uint8 [105, 105] → [SIDE, SIDE]."""
    return np.asarray(Image.fromarray(drawing).resize((SIDE, SIDE), Image.Resampling.BOX))


class SomeWithCondition:
    """Training examples with 'drop', the probability to lose the condition. For `train_batches`.

    Without `mixed`, `pairs` examples alone, taken at random. With it as many rows again come from
    all images and have no condition.
    """

    def __init__(self, source: data.Source, pairs: int, drop: float, seed: int, *, mixed: bool):
        self._rows = [source[i] for i in range(len(source))]
        order = np.random.default_rng(seed).permutation(len(self._rows))
        self._paired, self._drop, self._mixed = order[:pairs], drop, mixed

    def __len__(self):
        return 2 * len(self._rows) if self._mixed else len(self._paired)

    def __getitem__(self, index):
        alone = self._mixed and index >= len(self._rows)
        if alone:
            row, drop = self._rows[index - len(self._rows)], 1.0
        else:
            row, drop = self._rows[self._paired[index % len(self._paired)]], self._drop
        return {**row, 'drop': np.float32(drop)}


@functools.cache
def condition(kind: str, factor: int, patch: int):
    """A condition of the package that each row loses with the probability in its 'drop'.

    So one program serves all numbers of pairs and all rates.
    """
    make = conditions.make(kind, factor=factor)

    def with_drop(x, batch, key):
        made_key, drop_key = jax.random.split(key)
        conditioning = make(x, batch, made_key)
        return conditions.drop(conditioning, drop_key, batch['drop'], p=patch, null_class=0)

    return with_drop


conditions.KINDS['smaller_pair'] = smaller_pair
