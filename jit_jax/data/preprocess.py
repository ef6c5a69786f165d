"""From encoded bytes to the square uint8 array that a model is shown."""

import io
import os

import numpy as np
from PIL import Image, ImageOps

from jit_jax.data.palette import paint
from jit_jax.errors import UserError

_MOST_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # more, and Pillow takes a file for an attack


def decode(encoded) -> Image.Image:
    """Returns an encoded image as the RGB picture that a viewer shows.

    EXIF rotation is applied, the transparent lies on white, 16-bit grayscale is scaled to 8 bits,
    and of an animation the first frame is taken. JPEG CMYK is read as inverted, as Adobe writes it
    and browsers expect it. Colour profiles are not applied. Draft-mode JPEG decoding would be
    faster, but changes pixels.

    Args:
      encoded: the file's bytes, or its path, or a PIL image.

    Raises:
      Whatever Pillow raises for a damaged file, most often OSError; ValueError for pixels without
      a fixed range, and for more pixels than Pillow opens (179 million).
    """
    return _decode(encoded)[0]


def condition_image(encoded, channels: int, palette: str = '') -> tuple[np.ndarray, np.ndarray]:
    """Decodes a condition image to the pixels that training would see, neither cropped nor scaled.

    Args:
      encoded: as for `decode`.
      channels: C, 3 for RGB or 1 for luma.
      palette: as for `to_array`.

    Returns:
      The image, uint8 [h, w, C], where the transparent lies on white; and bool [h, w]: which of
      its pixels are fully opaque.

    Raises:
      UserError: when it cannot be read; the sentence names the file.
    """
    name = 'the image' if isinstance(encoded, (bytes, Image.Image)) else os.fspath(encoded)
    try:
        image, alpha = (_painted(encoded), None) if palette else _decode(encoded)
    except FileNotFoundError as error:
        raise UserError(f'There is no file {name}: give the path of an image.') from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes decoders raise almost anything
        reason = ' '.join(str(error).split())
        raise UserError(
            f'{name} cannot be read as an image ({reason}): give a whole PNG or JPEG.'
        ) from error
    if alpha is None:
        opaque = np.ones((image.height, image.width), bool)
    else:
        opaque = np.asarray(alpha) == 255
    pixels = np.asarray(_in_channels(image, channels))
    return pixels.reshape(image.height, image.width, channels), opaque


def center_crop(image: Image.Image, size: int, *, nearest: bool = False) -> Image.Image:
    """Returns the centre size × size square of an image, scaled so that its short side fits.

    This is ADM's crop: halving by averages first keeps the bicubic filter from skipping pixels.
    Every published ImageNet number was trained and scored on exactly these pixels. nearest: no
    pixel is mixed of others, in the same places, for colours that stand for classes.
    """
    halving, last = Image.Resampling.BOX, Image.Resampling.BICUBIC
    if nearest:
        halving = last = Image.Resampling.NEAREST
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), halving)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    image = image.resize((width, height), last)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def to_array(encoded, size: int, channels: int, palette: str = '') -> np.ndarray:
    """Decodes and crops: bytes, path or PIL image → uint8 [size, size, channels].

    palette: one of `palette.PALETTES`; where it names colours, the pixels are numbers of classes.

    Raises:
      As `decode`, and ValueError for a picture of which a square of that size shows nothing.
    """
    image = _painted(encoded) if palette else decode(encoded)
    check_shape(image, size)
    image = center_crop(_in_channels(image, channels), size, nearest=bool(palette))
    return np.asarray(image).reshape(size, size, channels)


def _decode(encoded) -> tuple[Image.Image, Image.Image | None]:
    """The RGB picture, and its alpha channel (mode L), None where everything is opaque."""
    with _open(encoded) as image:
        ImageOps.exif_transpose(image, in_place=True)  # loads the pixels, too
        if image.mode == 'RGB' and 'transparency' not in image.info:
            return image, None
        if image.mode.startswith('I;16'):  # Pillow's own conversion would clip at 255
            eight_bits = (np.asarray(image).astype(np.uint32) + 128) // 257
            return Image.fromarray(eight_bits.astype(np.uint8)).convert('RGB'), None
        if image.mode in ('I', 'F'):
            raise ValueError(
                f'pixels of mode {image.mode} have no fixed range; convert the file to 8 or 16 bits'
            )
        if image.has_transparency_data:
            image = image.convert('RGBA')
            white = Image.new('RGBA', image.size, 'white')
            return Image.alpha_composite(white, image).convert('RGB'), image.getchannel('A')
        return image.convert('RGB'), None


def _painted(encoded) -> Image.Image:
    """A map of class numbers in colours."""
    with _open(encoded) as image:
        ImageOps.exif_transpose(image, in_place=True)
        return paint(image)


def _open(encoded) -> Image.Image:
    if isinstance(encoded, Image.Image):
        return encoded.copy()
    try:
        return Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded)
    except Image.DecompressionBombError as error:
        raise ValueError(f'it has more than {_MOST_PIXELS:,} pixels; scale it down') from error


def check_shape(image: Image.Image, size: int) -> None:
    """Refuses what only fills a square by blowing it up: placeholders, and lines of pixels."""
    short, long = sorted(image.size)
    if short == 1:
        raise ValueError(f'a picture of {image.width} × {image.height} pixels shows nothing')
    if long / short * size**2 > _MOST_PIXELS:
        raise ValueError(
            f'a picture of {image.width} × {image.height} pixels is too long for a square'
        )


def _in_channels(image: Image.Image, channels: int) -> Image.Image:
    """An RGB image with as many channels; one is luma."""
    return image if channels == 3 else image.convert('L')
