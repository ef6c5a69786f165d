"""Maps of class numbers as pictures: each class gets a colour of its own, always the same.

A segmentation map holds the number of a class in each pixel. As a picture it is almost black, and
classes of near numbers look alike; in the colours of the PASCAL VOC data sets they do not.
"""

import numpy as np
from PIL import Image

PALETTES = ('', 'voc')  # the values of config.data.palette; '': what is read is a picture already


def voc_colors() -> np.ndarray:
    """uint8 [256, 3]: the bits of a class number, dealt out to red, green and blue from the top."""
    numbers = np.arange(256)
    colors = np.zeros((256, 3), np.uint8)
    for place in range(8):
        for channel in range(3):
            bit = numbers >> (3 * place + channel) & 1
            colors[:, channel] |= (bit << (7 - place)).astype(np.uint8)
    return colors


def paint(image: Image.Image) -> Image.Image:
    """A map of class numbers 0 … 255 as an RGB picture.

    Raises ValueError for what is no such map: other colours than grays, or larger numbers. Of
    a file with a palette of its own, the numbers count, not its colours.
    """
    return Image.fromarray(voc_colors()[class_numbers(image)])


def class_numbers(image: Image.Image) -> np.ndarray:
    """The numbers in a map, uint8 [h, w]. Raises ValueError as `paint` does."""
    numbers = np.asarray(image)
    if numbers.dtype == bool:
        numbers = numbers.astype(np.uint8)
    if numbers.ndim == 3 and (numbers[..., :3] == numbers[..., :1]).all():
        numbers = numbers[..., 0]  # saved as RGB
    if numbers.ndim != 2:
        raise ValueError('it has colours, not numbers of classes; leave --config.data.palette out')
    if numbers.dtype.kind not in 'iu' or numbers.min() < 0 or numbers.max() > 255:
        raise ValueError('its numbers of classes are not from 0 to 255')
    return numbers.astype(np.uint8)
