"""Images in memory as a source."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from jit_jax.data.records import Records, if_few, in_classes
from jit_jax.data.sources import Source
from jit_jax.errors import UserError


def from_arrays(
    images: Sequence,
    labels: Sequence[int] | None = None,
    cond: Sequence | None = None,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    classes: Sequence[str] = (),
    max_broken: float = 0.01,
) -> Source:
    """Makes a source of images in memory, or of any sequence that gives one by number.

    Args:
      images: N images, each uint8 [H, W, C], uint8 [H, W] or a PIL image of any mode: an array
        [N, H, W, C], a list, a column of a Hugging Face data set. They are read when needed.
      labels: N class numbers from 0; None for none.
      cond: N condition images, for pairs; cropped and scaled as `images` are.
      image_size: S, the side of the square that each is cropped and scaled to; by default the
        short side of the first image.
      channels: C, 3 or 1; by default those of the first image.
      classes: the names of the labels in order; by default their numbers.
      max_broken: as for `open_source`.

    Raises:
      UserError: without images, for other numbers of labels or conditions than images, for labels
        that are no class numbers, or when none of a few images can be read.
    """
    _check_counts(images, labels, cond)
    if labels is not None:
        labels, classes = _checked_labels(labels, tuple(classes))
    columns = {'image': images} if cond is None else {'image': images, 'cond': cond}
    first = _picture(images[0])
    return Source(
        _records(columns, labels, tuple(classes)),
        image_size=min(first.size) if image_size is None else image_size,
        channels=_channels(first) if channels is None else channels,
        max_broken=max_broken,
    )


def _records(columns: dict[str, Sequence], labels, classes: tuple[str, ...]) -> Records:
    """Examples whose pictures are in columns, by name."""
    count = len(columns['image'])

    def read(i):
        pictures = {key: _picture(column[i]) for key, column in columns.items()}
        return pictures, -1 if labels is None else int(labels[i])

    def name(i):
        return f'image {i} in memory'

    summary = f'{count:,} images in memory{in_classes(classes)}{if_few(count)}.'
    return Records(count, tuple(columns), read, name, classes, summary)


def _check_counts(images, labels, cond) -> None:
    """Refuses no images, and other numbers of labels or conditions than images."""
    if not len(images):
        raise UserError('There are no images in memory: give at least one.')
    for what, values in (('labels', labels), ('condition images', cond)):
        if values is not None and len(values) != len(images):
            raise UserError(
                f'There are {len(images)} images and {len(values)} {what}: give one for each image.'
            )


def _picture(image) -> Image.Image:
    """An image of any accepted kind as a PIL image. Raises UserError for another kind."""
    if isinstance(image, Image.Image):
        return image
    image = np.asarray(image)
    if (
        image.dtype != np.uint8
        or image.ndim not in (2, 3)
        or image.shape[2:] not in ((), (1,), (3,))
    ):
        raise UserError(
            'An image in memory is uint8 [H, W], [H, W, 1] or [H, W, 3] from 0 to 255, or a PIL '
            f'image, not {image.dtype} {list(image.shape)}: convert it.'
        )
    return Image.fromarray(image.squeeze(2) if image.shape[2:] == (1,) else image)


def _channels(image: Image.Image) -> int:
    return 1 if image.mode in ('1', 'L', 'LA', 'I;16') else 3


def _checked_labels(labels, classes: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    """int labels [N] and the names of their classes."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in 'iu' or labels.min() < 0:
        raise UserError('The labels of images in memory are class numbers from 0, one an image.')
    count = int(labels.max()) + 1
    if not classes:
        return labels, tuple(str(number) for number in range(count))
    if len(classes) < count:
        raise UserError(
            f'There are {len(classes)} names of classes, but a label is {count - 1}: name all.'
        )
    return labels, classes
