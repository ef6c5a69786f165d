"""Whether samples are copies: their distance to the nearest training images."""

import numpy as np

from jit_jax.output.images import grid

SIDE = 16  # pixels along each side of the images that are compared
SHOWN = 12  # samples in the picture
NEAREST = 3  # training images beside each
ENOUGH = 50  # held-out images; the nearest of fewer is much a matter of chance


def images_of(source, count: int) -> np.ndarray:
    """At most `count` images of a data.Source, the same ones each time, uint8 [·, S, S, 3].

    Raises UserError where they cannot be read.
    """
    order = np.random.default_rng(0).permutation(len(source))[:count]
    images = np.stack([source[int(i)]['image'] for i in order])
    return images.repeat(3, -1) if images.shape[-1] == 1 else images


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Root mean square differences [len(a), len(b)] of uint8 images, averaged to 16×16 pixels.

    In levels of 255.
    """
    a, b = _small(a), _small(b)
    square = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.sqrt(np.maximum(square, 0) / a.shape[1])


def _small(images: np.ndarray) -> np.ndarray:
    """[N, S, S, C] → float64 [N, 16 · 16 · C], each the mean of a square of pixels."""
    N, S, _, C = images.shape
    p = S // SIDE
    squares = np.asarray(images, np.float64).reshape(N, SIDE, p, SIDE, p, C)
    return squares.mean((2, 4)).reshape(N, -1)


def nearest(
    samples: np.ndarray, train: np.ndarray, held_out: np.ndarray | None
) -> tuple[str, np.ndarray]:
    """Compares samples with training images; all uint8 [·, S, S, C].

    Held-out images show how near an image comes that nobody copied; None where there are none.
    Returns sentences with numbers, and a picture: a row for each of the closest samples, the
    closest first: sample | its three nearest training images.
    """
    found = distances(samples, train)
    least = found.min(1)
    order = np.argsort(least)[:SHOWN]
    columns = [samples[order]]
    for k in range(min(NEAREST, len(train))):
        columns.append(train[np.argsort(found[order], 1)[:, k]])
    heads = ('sample', 'nearest', 'second', 'third')[: len(columns)]
    picture = grid(np.stack(columns, 1), 3, heads=heads)
    return _sentences(least, held_out, train, len(order)), picture


def _sentences(
    least: np.ndarray, held_out: np.ndarray | None, train: np.ndarray, shown: int
) -> str:
    numbers = f'samples {_summary(least)}'
    verdict = ''
    if held_out is not None:
        usual = distances(held_out, train).min(1)
        numbers += f', held-out images {_summary(usual)}'
        verdict = _verdict(int((least < usual.min()).sum()), len(least), len(held_out))
    return (
        f'{verdict}Distance to the nearest of {len(train)} training images, median (least): '
        f'{numbers}; root mean square of 255 levels at {SIDE}×{SIDE} pixels. '
        f'Sample | its three nearest, for the {shown} closest.'
    )


def _verdict(close: int, samples: int, held_out: int) -> str:
    """By how many samples are closer than all held-out images: by chance, one in so many + 1 is.
    Nothing is said to be a copy, or none, by few held-out images.
    """
    by_chance = samples / (held_out + 1)
    if held_out < ENOUGH:
        return (
            f'Too few images are held out ({held_out}, fewer than {ENOUGH}) to tell copies by: '
            f'{close} of {samples} samples are closer to a training image than any of these, by '
            f'chance it would be {by_chance:.2g}. Look at the closest. '
        )
    word = 'No copies' if close <= by_chance else 'Perhaps copies'
    return (
        f'{word}: {close} of {samples} samples are closer to a training image than any of '
        f'{held_out} held-out images is; by chance it would be {by_chance:.2g}. '
    )


def _summary(values: np.ndarray) -> str:
    return f'{np.median(values):.1f} ({values.min():.1f})'
