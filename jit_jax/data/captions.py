"""Captions as bytes: as many an image as there are, of which training is given one at a time.

A caption is UTF-8, one byte a token, so that any language and spelling fits and nothing needs to be
downloaded. An example holds all its captions as 'tokens' uint8 [C, m] and how many of each count,
'token_count' int32 [C]; `with_caption` leaves one of them.
"""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jit_jax.errors import UserError

VOCABULARY = 256  # bytes
STEP = 8  # programs compute whole steps of tokens


@dataclass(frozen=True)
class Captions:
    """What is said about the examples of a data set.

    Attributes:
      read: i → the captions of example i, perhaps none.
      listed: whether reading them all takes no decoding of images.
    """

    read: Callable[[int], Sequence[str]]
    listed: bool = True


def clean(caption: str) -> str:
    """A caption in one spelling: composed characters, single spaces, one line."""
    return ' '.join(unicodedata.normalize('NFC', caption).split())


def encode_caption(caption: str) -> bytes:
    """A caption in one spelling as UTF-8."""
    return clean(caption).encode()


def decode_caption(tokens: np.ndarray) -> str:
    """Live tokens, whole numbers [n] below 256 → the caption."""
    return bytes(tokens.tolist()).decode(errors='replace')


def cut(encoded: bytes, most: int) -> bytes:
    """At most so many bytes of a caption, without half a character at its end."""
    return encoded[:most].decode(errors='ignore').encode()


def to_tokens(captions: Sequence[str], slots: int) -> dict[str, np.ndarray]:
    """C captions → 'tokens' uint8 [C, slots], zeros after their end, and 'token_count' int32 [C].

    Longer ones are cut. Without any, one that says nothing.
    """
    encoded = [cut(encode_caption(caption), slots) for caption in captions] or [b'']
    return padded([np.frombuffer(one, np.uint8) for one in encoded], slots)


def padded(rows: Sequence[np.ndarray], slots: int) -> dict[str, np.ndarray]:
    """C rows of at most `slots` tokens, [n] or [n, E] → 'tokens' [C, slots] or [C, slots, E] of
    their dtype, zeros after their end, and 'token_count' int32 [C].
    """
    tokens = np.zeros((len(rows), slots, *rows[0].shape[1:]), rows[0].dtype)
    for whole, row in zip(tokens, rows, strict=True):
        whole[: len(row)] = row
    return {'tokens': tokens, 'token_count': np.array([len(row) for row in rows], np.int32)}


def with_caption(example: dict[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    """An example with caption `number` alone, counted round; one without captions as it is."""
    if 'tokens' not in example:
        return example
    number = number % len(example['tokens'])
    return example | {name: example[name][number] for name in ('tokens', 'token_count')}


def rounded_up(tokens: int) -> int:
    """So many tokens, in whole steps."""
    return -(-tokens // STEP) * STEP


def check_there(captions: Captions | None) -> None:
    """Raises UserError for a data set without captions."""
    if captions is None:
        raise UserError(
            'config.condition.kind with text needs captions: a "text" in each line of '
            'metadata.jsonl, a name.txt beside each name.png, a TFDS data set with a text, or '
            'jit_jax.train(…, captions=…).'
        )


def slots_for(captions: Captions, count: int, most: int) -> int:
    """The tokens of a program for a data set of `count` examples, at most `most`.

    The longest caption's bytes, rounded up; `most` where that is not known.
    """
    if not captions.listed:
        return most
    longest = 0
    for i in range(count):
        for caption in captions.read(i):
            longest = max(longest, len(encode_caption(caption)))
    if not longest:
        raise UserError('None of the captions says anything: write some, or condition on others.')
    return min(rounded_up(longest), most)
