"""From encoded bytes to the square uint8 array that a model sees."""

import io

import numpy as np
from PIL import Image, ImageOps


def decode(encoded) -> Image.Image:
    """Returns an encoded image as the RGB picture that a viewer shows.

    EXIF rotation is applied, the transparent lies on white, 16-bit grayscale is scaled to 8 bits, and of an animation
    the first frame is taken. JPEG CMYK is read as inverted, as Adobe writes it and browsers expect it. Colour profiles
    are not applied. Draft-mode JPEG decoding would be faster, but changes pixels.

    Args:
      encoded: the file's bytes, or its path.

    Raises:
      Whatever Pillow raises for a damaged file, most often OSError; ValueError for pixels without a fixed range.
    """
    with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
        ImageOps.exif_transpose(image, in_place=True)  # loads the pixels, too
        if image.mode == 'RGB' and 'transparency' not in image.info:
            return image
        if image.mode.startswith('I;16'):  # Pillow's own conversion would clip at 255
            return Image.fromarray(
                ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
            ).convert('RGB')
        if image.mode in ('I', 'F'):
            raise ValueError(
                f'pixels of mode {image.mode} have no fixed range; convert the file to 8 or 16 bits'
            )
        if image.has_transparency_data:
            white = Image.new('RGBA', image.size, 'white')
            return Image.alpha_composite(white, image.convert('RGBA')).convert('RGB')
        return image.convert('RGB')


def center_crop(image, size) -> np.ndarray:
    """Returns the centre size × size square of a PIL image, scaled so that its short side fits (ADM's crop).

    Halving by averages first keeps the bicubic filter from skipping pixels. Every published ImageNet number was
    trained and scored on exactly these pixels.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize(
        (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
    )
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def to_array(encoded, size, channels) -> np.ndarray:
    """Decodes and crops: bytes or path → uint8 [size, size, channels] with 1 (luma) or 3 channels."""
    image = decode(encoded)
    image = center_crop(image if channels == 3 else image.convert('L'), size)
    return np.asarray(image).reshape(size, size, channels)
