"""Encoded examples by number: what every kind of data set is opened as."""

from collections.abc import Callable
from dataclasses import dataclass

from jit_jax.data.captions import Captions

FEW = 100  # with fewer training images, a model soon repeats them


@dataclass(frozen=True)
class Records:
    """Encoded examples.

    Attributes:
      count: how many there are.
      images: the names of the pictures in an example: 'image', and 'cond' for pairs.
      read: i → ({name: bytes, path or PIL image}, class number, −1 for none).
      name: i → what messages call example i.
      classes: the names of the class numbers in order; empty without labels.
      summary: what was found, in one line.
      held_out: how the examples for testing were chosen; '' where that is not known here.
      captions: what is said about them; None for nothing.
    """

    count: int
    images: tuple[str, ...]
    read: Callable[[int], tuple[dict, int]]
    name: Callable[[int], str]
    classes: tuple[str, ...]
    summary: str
    held_out: str = ''
    captions: Captions | None = None


def in_classes(classes: tuple[str, ...]) -> str:
    """', in 3 classes' for a summary; '' without classes."""
    if not classes:
        return ''
    return f', in {len(classes):,} class{"es" if len(classes) > 1 else ""}'


def if_few(count: int) -> str:
    """A remark for a summary about so many training images; '' when they are enough."""
    if count >= FEW:
        return ''
    return f'; fewer than {FEW} images are soon learned by heart'
