"""What one should know about images before training on them, and finds out too late otherwise."""

import numpy as np

from jit_jax.data.listing import EVERY, HELD_OUT
from jit_jax.data.sources import Source

TRIED = 8  # examples for one remark, evenly spread
DARK = 32  # condition images without a brighter pixel are likely numbers of classes
ALIKE = 0.5  # a neighbour is a frame of the same video where so much nearer than any other image
THUMBNAIL = 8  # pixels a side, at which images are compared


def remarks(train: Source, test: Source) -> list[str]:
    """Sentences about the images to train on; each says what to change, if anything."""
    found = [condition_range(train), unequal_sizes(train), held_out_neighbours(train, test)]
    return [sentence for sentence in found if sentence]


def condition_range(train: Source) -> str:
    """What the condition images of pairs are where they are no plain pictures; '' elsewhere."""
    if 'cond' not in train.images:
        return ''
    if train.palette:
        return f'Condition images are numbers of classes, in the colours {train.palette!r}.'
    examples = _some(train, _spread(len(train)))
    if not examples:
        return ''
    low = min(int(example['cond'].min()) for example in examples)
    high = max(int(example['cond'].max()) for example in examples)
    if high >= DARK:
        return ''
    return (
        f'Condition images are from {low} to {high} of 255, which is almost black: if these are '
        'numbers of classes, --config.data.palette=voc gives each a colour.'
    )


def unequal_sizes(train: Source) -> str:
    """Whether the images of a pair, as they are in their files, differ in size; '' where not."""
    if 'cond' not in train.images:
        return ''
    for i in _spread(len(train)):
        sizes = train.sizes(i)
        if len(set(sizes.values())) > 1:
            target, *others = sizes.values()
            other = next(size for size in others if size != target)
            return (
                f'Condition images are {other[0]}×{other[1]} where their targets are '
                f'{target[0]}×{target[1]}: the middle square of each is scaled to one size, and '
                'jit-jax preview shows whether they still fit.'
            )
    return ''


def held_out_neighbours(train: Source, test: Source) -> str:
    """Whether held-out images are frames of a video beside frames to train on; '' where not."""
    if train.held_out != EVERY or len(test) < 3:
        return ''
    chosen = np.array(_spread(len(test)))
    before = (HELD_OUT - 1) * (chosen + 1) - 1  # of example 20k + 19, the training image 20k + 18
    held_out, neighbours = _some(test, chosen), _some(train, before)
    if min(len(held_out), len(neighbours)) < len(chosen):
        return ''
    near = [_distance(a, b) for a, b in zip(held_out, neighbours, strict=True)]
    others = neighbours[1:] + neighbours[:1]
    far = [_distance(a, b) for a, b in zip(held_out, others, strict=True)]
    if np.median(near) > ALIKE * np.median(far):
        return ''
    return (
        'Held-out images look like those before them in training, as frames of a video do, so that '
        'scores would flatter: --config.data.holdout=tail holds out the last ones instead; for '
        'images that are no video it is fine.'
    )


def _spread(count: int) -> list[int]:
    """TRIED numbers below `count`, or all, evenly spread."""
    return [int(i) for i in np.unique(np.linspace(0, count - 1, TRIED).astype(int))]


def _some(source: Source, numbers) -> list[dict]:
    """Those of these examples that can be read, each once."""
    found = [source.load(i) for i in np.unique(np.asarray(numbers).astype(int))]
    return [example for example in found if example is not None]


def _distance(a: dict, b: dict) -> float:
    """How far two images are, as thumbnails."""
    return float(np.abs(_thumbnail(a['image']) - _thumbnail(b['image'])).mean())


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """uint8 [S, S, C], S a multiple of 16 → float [8, 8, C] of means."""
    side = image.shape[0] // THUMBNAIL
    blocks = image.reshape(THUMBNAIL, side, THUMBNAIL, side, -1)
    return blocks.astype(np.float32).mean((1, 3))
