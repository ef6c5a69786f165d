"""Images in memory as a source: arrays, lists of PIL images, data sets of Hugging Face."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from jit_jax.data.captions import Captions
from jit_jax.data.hugging_face import columns_of, is_data_set
from jit_jax.data.listing import check_split, hold_out
from jit_jax.data.records import Records, if_few, in_classes
from jit_jax.data.sources import Source
from jit_jax.errors import UserError, shown

HASHED = 1000  # images of which a content hash is made, evenly spread, where not all are one array


@dataclass(frozen=True)
class InMemory:
    """Images to train on, and what belongs to them; made and checked by `in_memory`."""

    images: Sequence
    labels: np.ndarray | None
    cond: Sequence | None
    classes: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...] | None = None

    @cached_property
    def content(self) -> str:
        """A hash of all images of an array, and of a thousand of any other sequence."""
        found = hashlib.blake2b(digest_size=16)
        for part in (self.images, self.cond, self.labels):
            found.update(b'none' if part is None else _digest(part))
        if self.captions is not None:
            found.update(repr(self.captions).encode())
        return found.hexdigest()

    def source(self, split: str, holdout: str, **options) -> Source:
        """The images to train on, or those held out, as of a folder. options: as `Source` takes."""
        train, test, how = hold_out(range(len(self.images)), holdout)
        check_split(split)
        if not train:
            raise UserError('There is one image in memory, and that is held out: give more.')
        summary = (
            f'In memory: {len(train):,} images for training, {len(test):,} held out ({how})'
            f'{in_classes(self.classes)}{if_few(len(train))}.'
        )
        chosen = test if split == 'test' else train
        return Source(self.records(chosen, summary, how), **options)

    def records(self, chosen: Sequence[int], summary: str, held_out: str = '') -> Records:
        """The images of these numbers as examples."""
        pictures = {'image': self.images}
        if self.cond is not None:
            pictures['cond'] = self.cond

        def read(i):
            number = chosen[i]
            images = {name: picture(column[number]) for name, column in pictures.items()}
            return images, -1 if self.labels is None else int(self.labels[number])

        def name(i):
            return f'image {chosen[i]} in memory'

        def said(i):
            return self.captions[chosen[i]]

        captions = None if self.captions is None else Captions(said)
        names = tuple(pictures)
        return Records(len(chosen), names, read, name, self.classes, summary, held_out, captions)


def in_memory(
    images,
    labels: Sequence[int] | None = None,
    cond: Sequence | None = None,
    classes: Sequence[str] = (),
    captions: Sequence[str | Sequence[str]] | None = None,
) -> InMemory:
    """Checks images in memory and what belongs to them.

    Args:
      images: N images, each uint8 [H, W, C], uint8 [H, W] or a PIL image of any mode: an array
        [N, H, W, C], a list, any sequence; or one split of a Hugging Face data set with a column of
        images, whose column of class labels, if there is one, is taken too. They are read when
        needed.
      labels: N class numbers from 0; None for none, or for those of the data set.
      cond: N condition images, for pairs; cropped and scaled as `images` are.
      classes: the names of the labels in order; by default their numbers.
      captions: for each image a caption, or several.

    Raises:
      UserError: without images, for other numbers of labels, conditions or captions than images,
        for images that are none, labels that are no class numbers, and captions that are no text.
    """
    _check_kind(images)
    if is_data_set(images):
        images, found, names = columns_of(images)
        if labels is None:
            labels, classes = found, classes or names
    if not hasattr(images, '__len__') or not hasattr(images, '__getitem__'):
        raise UserError(
            f'images is a sequence, such as an array [N, H, W, C]; got {type(images).__name__}.'
        )
    if not hasattr(images, 'dtype'):
        images = images if isinstance(images, Sequence) else _Items(images)
    elif not isinstance(images, np.ndarray):
        images = np.asarray(images)
    _check_counts(images, labels, cond, captions)
    classes = tuple(classes)
    if labels is not None:
        labels, classes = _checked_labels(labels, classes)
    _check_first(images)
    said = None if captions is None else tuple(map(_checked_captions, captions))
    return InMemory(images, labels, cond, classes, said)


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
    """Makes a source of all images in memory, none held out.

    Args:
      images, labels, cond, classes: as for `in_memory`.
      image_size: S, the side of the square that each is cropped and scaled to; by default the
        short side of the first image.
      channels: C, 3 or 1; by default those of the first image.
      max_broken: as for `open_source`.

    Raises:
      UserError: as `in_memory`, and when none of a few images can be read.
    """
    memory = in_memory(images, labels, cond, classes)
    count, first = len(memory.images), picture(memory.images[0])
    summary = f'{count:,} images in memory{in_classes(memory.classes)}{if_few(count)}.'
    return Source(
        memory.records(range(count), summary),
        image_size=min(first.size) if image_size is None else image_size,
        channels=_channels(first) if channels is None else channels,
        max_broken=max_broken,
    )


def picture(image) -> Image.Image:
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


class _Items:
    """A sequence by its length and its items alone."""

    def __init__(self, items):
        self._items = items

    def __len__(self):
        return len(self._items)

    def __getitem__(self, index):
        return self._items[index]


def _digest(part) -> bytes:
    """A hash of an array, or of some items of a sequence of images."""
    found = hashlib.blake2b(digest_size=16)
    if isinstance(part, np.ndarray):
        found.update(f'{part.dtype} {part.shape}'.encode())
        for rows in part:
            found.update(np.ascontiguousarray(rows))
        return found.digest()
    found.update(f'{len(part)}'.encode())
    for i in range(0, len(part), -(-len(part) // HASHED)):
        image = picture(part[i])
        found.update(f'{image.mode} {image.size}'.encode())
        found.update(image.tobytes())
    return found.digest()


def _checked_captions(said) -> tuple[str, ...]:
    """The captions of an image. Raises UserError for what is no text."""
    several = (said,) if isinstance(said, str) else tuple(said if _is_listed(said) else (None,))
    if not all(isinstance(one, str) for one in several):
        raise UserError(
            f'captions has for each image a caption or a list of them; got {said!r}: write text.'
        )
    return several


def _is_listed(said) -> bool:
    return isinstance(said, Sequence | np.ndarray)


def _check_kind(images) -> None:
    """Refuses a dict of splits, and a folder."""
    if isinstance(images, dict):
        raise UserError(
            f'images is a dict of {", ".join(map(str, images))}: give one of them, as in '
            f'images=data[{next(iter(images), "train")!r}].'
        )
    if isinstance(images, (str, os.PathLike)):
        raise UserError(
            f'images are in memory; for the folder {images} leave them out and set '
            "config.data.kind = 'folder' and config.data.path."
        )


def _check_first(images) -> None:
    """Refuses an array that is no images, one image, and paths; other items are read when
    needed.
    """
    if isinstance(images, np.ndarray):
        if images.ndim == 3 and images.shape[2] in (1, 3):
            shape = list(images.shape)
            raise UserError(f'images is one image, {shape}; give several, [N, H, W, C].')
        picture(images[0])
    elif isinstance(images, (list, tuple)) and isinstance(images[0], (str, os.PathLike)):
        raise UserError(
            f'images holds paths, such as {images[0]}; open them with PIL.Image.open, or leave '
            "them out and set config.data.kind = 'folder' and config.data.path."
        )


def _check_counts(images, labels, cond, captions) -> None:
    """Refuses no images, and other numbers of labels, conditions or captions than images."""
    if not len(images):
        raise UserError('There are no images in memory: give at least one.')
    given = (('labels', labels), ('condition images', cond), ('captions', captions))
    for what, values in given:
        if values is not None and (isinstance(values, str) or not hasattr(values, '__len__')):
            raise UserError(f'The {what} are a sequence, one for each image; got {shown(values)}.')
        if values is not None and len(values) != len(images):
            raise UserError(
                f'There are {len(images)} images and {len(values)} {what}: give one for each image.'
            )


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
