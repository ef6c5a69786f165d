"""Images as people see them: uint8, grids, captions, PNG."""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jit_jax.output.files import write_whole


def captioned(images: np.ndarray, texts: list[str]) -> np.ndarray:
    """uint8 [N, h, w, C] with a line of text below each, cut at the image's width: [N, h + ·, w,
    3].
    """
    size = max(10, images.shape[2] // 12)
    out = []
    for image, text in zip(np.broadcast_to(images, (*images.shape[:-1], 3)), texts, strict=True):
        sheet = Image.new('RGB', (image.shape[1], image.shape[0] + size + 4), 'white')
        sheet.paste(Image.fromarray(np.ascontiguousarray(image)))
        ImageDraw.Draw(sheet).text(
            (1, image.shape[0] + 1), text, 'black', ImageFont.load_default(size)
        )
        out.append(np.asarray(sheet))
    return np.stack(out)


def to_uint8(images) -> np.ndarray:
    """Images in [−1, 1] → uint8, rounded as a PNG would be."""
    return np.round((np.clip(np.asarray(images, np.float32), -1, 1) + 1) * 127.5).astype(np.uint8)


def grid(images: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """uint8 [N, h, w, C] → one picture, uint8 [·, ·, 3], rows of `columns` images on white."""
    images = np.repeat(images, 3, -1) if images.shape[-1] == 1 else images
    N, h, w, C = images.shape
    rows = -(-N // columns)
    sheet = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, C), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        sheet[top : top + h, left : left + w] = image
    return sheet


def save_png(path: str, image: np.ndarray) -> None:
    content = io.BytesIO()
    Image.fromarray(image).save(content, 'PNG')
    write_whole(path, content.getvalue())
