"""Images as people see them: uint8, labelled grids, PNG."""

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jit_jax.output.charts import INK
from jit_jax.output.files import write_whole
from jit_jax.output.letters import font, font_for

TILE = 96  # pixels along the short side of an image in a grid, at least
MARGIN, GAP, GROUP_GAP = 6, 4, 18  # of white: around a grid, between images, between groups
LANDSCAPE = 4 / 3  # width over height that a grid is near to
TEXT = 13  # pixels, the least size of a label


def to_uint8(images) -> np.ndarray:
    """Images in [−1, 1] → uint8, rounded as a PNG would be."""
    return np.round((np.clip(np.asarray(images, np.float32), -1, 1) + 1) * 127.5).astype(np.uint8)


def enlarged(images: np.ndarray, at_least: int = TILE) -> np.ndarray:
    """[..., h, w, C] with every pixel as a square of whole size, so that min(h, w) ≥ at_least."""
    factor = max(1, -(-at_least // min(images.shape[-3:-1])))
    return images.repeat(factor, -3).repeat(factor, -2)


def grid(
    groups: np.ndarray,
    columns: int,
    *,
    heads: Sequence[str] = (),
    rows: Sequence[str] = (),
    captions: Sequence[str] = (),
) -> np.ndarray:
    """Groups of images, enlarged, in rows on white: one picture, uint8 [·, ·, 3].

    Args:
      groups: uint8 [N, K, h, w, C], N groups of K images side by side, such as condition and
        result; or [N, h, w, C], images one by one. C is 1 or 3.
      columns: groups in a row.
      heads: words above the images of the first row, K of them for every group, or K for each.
      rows: a word to the left of each row.
      captions: a line below each group; what is longer than the group is cut.
    """
    groups = groups[:, None] if groups.ndim == 4 else groups
    groups = enlarged(np.broadcast_to(groups, (*groups.shape[:-1], 3)))
    place = Places(groups.shape, columns, heads, rows, captions)
    sheet = Image.new('RGB', place.size, 'white')
    for i, group in enumerate(groups):
        for k, image in enumerate(group):
            sheet.paste(Image.fromarray(image), place.image(i, k))
    _write_labels(sheet, place, heads, rows, captions)
    return np.array(sheet)


def across(groups: np.ndarray, heads: Sequence[str] = (), captions: Sequence[str] = ()) -> int:
    """Groups in a row with which their grid is nearest to LANDSCAPE, its last row not too empty.

    groups, heads, captions: as `grid` takes them.
    """
    count, images = len(groups), groups.shape[1] if groups.ndim == 5 else 1
    one = enlarged(groups[:1])
    shape = (count, images, *one.shape[-3:])

    def misfit(columns: int) -> float:
        width, height = Places(shape, columns, heads, captions=captions).size
        empty = -count % columns / (count + -count % columns)
        return abs(math.log(width / height / LANDSCAPE)) + 3 * empty

    return min(range(1, count + 1), key=misfit)


class Places:
    """Where the parts of a grid lie, as (left, top) in pixels; the arguments are those of `grid`.

    shape: of the enlarged groups, [N, K, h, w, C].
    """

    def __init__(self, shape: tuple, columns: int, heads=(), rows=(), captions=()):
        self.count, self.images, self.high, self.wide, _ = shape
        self.columns = min(columns, self.count)
        self.rows = -(-self.count // self.columns)
        self.text = max(TEXT, self.wide // 12)
        self.line = self.text + self.text // 2
        self.group_wide = self.images * (self.wide + GAP) - GAP
        between = GROUP_GAP if self.images > 1 else GAP
        self.across = self.group_wide + between
        self.down = self.high + between + (self.line if captions else 0)
        widest = max((font(self.text).getlength(word) for word in rows), default=0)
        self.left = MARGIN + (round(widest) + 2 * GAP if rows else 0)
        self.top = MARGIN + (self.line if heads else 0)
        right = self.left + self.columns * self.across - between
        bottom = self.top + self.rows * self.down - between
        self.size = (right + MARGIN, bottom + MARGIN)

    def group(self, i: int) -> tuple[int, int]:
        return (
            self.left + i % self.columns * self.across,
            self.top + i // self.columns * self.down,
        )

    def image(self, i: int, k: int = 0) -> tuple[int, int]:
        left, top = self.group(i)
        return left + k * (self.wide + GAP), top


def _write_labels(sheet: Image.Image, place: Places, heads, rows, captions) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.fontmode = 'L'
    for j in range(place.columns * place.images if heads else 0):
        left, _ = place.image(j // place.images, j % place.images)
        word, face = cut(heads[j % len(heads)], place.text, place.wide)
        middle = left + place.wide / 2
        draw.text((middle, place.top - place.text // 3), word, INK, face, 'md')
    for row, word in enumerate(rows):
        _, top = place.group(row * place.columns)
        draw.text((MARGIN, top + place.high / 2), word, INK, font(place.text), 'lm')
    for i, text in enumerate(captions):
        left, top = place.group(i)
        middle = top + place.high + place.line / 2
        text, face = cut(text, place.text, place.group_wide)
        draw.text((left, middle), text, INK, face, 'lm')


def cut(text: str, size: int, width: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """As much of a text as fits into `width` pixels, with … where something is left out; and the
    font to draw it with.

    What no font can draw, such as a line break, becomes a space.
    """
    text = ''.join(letter if letter.isprintable() else ' ' for letter in text)
    text, face = font_for(text, size)
    if face.getlength(text) <= width:
        return text, face
    while text and face.getlength(f'{text}…') > width:
        text = text[:-1].rstrip()
    return f'{text}…', face


def save_png(path: str, image: np.ndarray) -> None:
    content = io.BytesIO()
    Image.fromarray(image).save(content, 'PNG')
    write_whole(path, content.getvalue())
