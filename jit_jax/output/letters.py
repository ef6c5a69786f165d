"""Fonts that can draw a text: never an empty box in the place of a letter."""

import importlib.util
from functools import cache, lru_cache
from pathlib import Path

from PIL import ImageFont

NO_LETTERS = 'LastResort'  # a font whose letters are boxes that name an alphabet


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows most alphabets."""
    return ImageFont.truetype(_dejavu(), size)


def font_for(text: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """A text and a font that has all its letters.

    DejaVu Sans where it has them, else the first such font of this machine. Where there is none,
    the letters that DejaVu Sans lacks are spelled as Unicode numbers them: '七' as 'U+4E03'.
    """
    known = _letters(_dejavu())
    if known.issuperset(map(ord, text)):
        return text, font(size)
    path = _font_with(frozenset(map(ord, text)))
    if path:
        return text, _truetype(path, size)
    spelled = ' '.join(''.join(_spelled(letter, known) for letter in text).split())
    return spelled, font(size)


@lru_cache
def _truetype(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def _spelled(letter: str, known: frozenset[int]) -> str:
    return letter if ord(letter) in known else f' U+{ord(letter):04X} '


@cache
def _font_with(letters: frozenset[int]) -> str:
    """The file of the first font that has all these letters; '' for none."""
    for path in system_fonts():
        if letters <= _letters(path):
            return path
    return ''


def system_fonts() -> list[str]:
    """The files of upright fonts of normal weight that matplotlib finds, by their names."""
    from matplotlib import font_manager  # a second, for letters that are rare here

    found = {}
    for entry in font_manager.fontManager.ttflist:
        if entry.style == 'normal' and entry.weight == 400 and NO_LETTERS not in entry.fname:
            found[entry.fname] = (entry.name, entry.fname)
    return sorted(found, key=found.get)


@cache
def _letters(path: str) -> frozenset[int]:
    """The letters of a font as Unicode numbers; none where it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


@cache
def _dejavu() -> str:
    (package,) = importlib.util.find_spec('matplotlib').submodule_search_locations
    return str(Path(package) / 'mpl-data/fonts/ttf/DejaVuSans.ttf')
