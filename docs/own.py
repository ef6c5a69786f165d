"""Makes docs/own.png: photographs cut into patches, and what the CPU presets learn from them.

    python docs/own.py FOLDER      # about twenty minutes on two CPU cores

The photographs are the two that scikit-learn brings along (a temple and a flower; see its
`load_sample_images`). FOLDER gets `photos/`, the patches; `pairs/`, the same patches as targets
with drawings of their edges as conditions; and a run folder for each preset. The commands are those
that a user types.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageFilter, ImageOps

import jit_jax
from jit_jax.evaluation import held_out
from jit_jax.output.images import grid, save_png, to_uint8

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


def train(folder: Path, config: str, images: str) -> Path:
    """Trains a preset as a user does, or goes on with it, or finds it done; its run folder."""
    workdir = folder / config.replace(':', '-')
    flags = [f'--config={config}', f'--config.data.path={folder / images}', f'--workdir={workdir}']
    subprocess.run([sys.executable, '-m', 'jit_jax', 'train', *flags], check=True)
    return workdir


def picture(photos: Path, pairs: Path) -> np.ndarray:
    """What both runs draw, beside each other: uint8 [·, ·, 3]."""
    model, params = jit_jax.load(str(photos))
    left = grid(jit_jax.sample(model, params, jax.random.key(0), num=20), 5)
    model, params = jit_jax.load(str(pairs))
    conditioning, truth = held_out.examples(model.config, 8, 0)
    results = jit_jax.sample(model, params, jax.random.key(0), num=8, **conditioning)
    triples = np.stack([to_uint8(conditioning['cond']), results, truth], 1)
    right = grid(triples, 2, heads=('condition', 'result', 'truth'))
    return np.concatenate([padded(side, max(len(left), len(right))) for side in (left, right)], 1)


def padded(image: np.ndarray, high: int) -> np.ndarray:
    """An image with white above it, `high` pixels in all."""
    return np.pad(image, ((high - len(image), 0), (0, 0), (0, 0)), constant_values=255)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('folder', type=Path)
    folder = parser.parse_args().folder.absolute()
    write_folders(folder)
    photos = train(folder, 'uncond:folder_cpu', 'photos')
    pairs = train(folder, 'cond:pairs_cpu', 'pairs')
    save_png(str(Path(__file__).with_name('own.png')), picture(photos, pairs))


if __name__ == '__main__':
    main()
