"""Makes docs/own.png: photographs cut into patches, and what the CPU presets learn from them.

    python docs/own.py FOLDER      # about twenty minutes on two CPU cores

The photographs are the two that scikit-learn brings along (a temple and a flower; see its
`load_sample_images`). FOLDER gets `photos/`, the patches; `pairs/`, the same patches as targets
with drawings of their edges as conditions; and a run folder for each preset. The commands are those
that a user types.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

SIDE = 40  # pixels of a patch: 10 × 16 of each photograph, which do not overlap
COUNT = 200  # of them, those with the most detail


def patches() -> list[tuple[Image.Image, Image.Image]]:
    """(patch, drawing of it): the most detailed squares of both photographs, in their order."""
    from sklearn.datasets import load_sample_images

    found = []
    for photograph in load_sample_images().images:
        lines = np.asarray(drawing(Image.fromarray(photograph)))
        rows, columns = (length // SIDE for length in photograph.shape[:2])
        for top, left in np.ndindex(rows, columns):
            place = np.s_[top * SIDE : (top + 1) * SIDE, left * SIDE : (left + 1) * SIDE]
            found.append((photograph[place], lines[place]))
    ink = [lines.mean() for _, lines in found]
    chosen = sorted(np.argsort(ink)[:COUNT])  # the darkest drawings
    return [tuple(map(Image.fromarray, found[i])) for i in chosen]


def drawing(photograph: Image.Image) -> Image.Image:
    """The edges of a photograph, dark lines on white."""
    smooth = photograph.convert('L').filter(ImageFilter.GaussianBlur(1))
    lines = smooth.filter(ImageFilter.FIND_EDGES).point([min(255, 4 * i) for i in range(256)])
    return ImageOps.expand(ImageOps.crop(ImageOps.invert(lines), 1), 1, 'white')  # no frame


def write_folders(folder: Path) -> None:
    """Writes photos/, and pairs/ with target/ and cond/ inside."""
    for name in ('photos', 'pairs/target', 'pairs/cond'):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i, (patch, lines) in enumerate(patches()):
        patch.save(folder / f'photos/{i:03d}.png')
        patch.save(folder / f'pairs/target/{i:03d}.png')
        lines.save(folder / f'pairs/cond/{i:03d}.png')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('folder', type=Path)
    folder = parser.parse_args().folder
    write_folders(folder)


if __name__ == '__main__':
    main()
