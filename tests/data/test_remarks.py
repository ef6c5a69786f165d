"""What is said about images before training on them."""

import numpy as np
import pytest
from pictures import encode, write

from jit_jax import data


def opened(folder, kind, **options):
    """Both splits of 16 × 16 images, and what is said about them."""
    train, test = (
        data.open_source(kind, path=folder, split=split, image_size=16, **options)
        for split in ('train', 'test')
    )
    return data.remarks(train, test)


def pairs(folder, highest):
    """120 pairs whose conditions are from 0 to `highest`."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (120, 16, 16, 3), np.uint8)
    files = {f'target/{i:03}.png': encode(image) for i, image in enumerate(noise)}
    cond = np.clip(noise[..., 0], 0, highest)
    files |= {f'cond/{i:03}.png': encode(image) for i, image in enumerate(cond)}
    return write(folder, files)


def test_class_numbers_look_black_and_are_offered_colours(tmp_path):
    pairs(tmp_path, 11)
    assert opened(tmp_path, 'pairs') == [
        'Condition images are from 0 to 11 of 255, which is almost black: if these are numbers of '
        'classes, --config.data.palette=voc gives each a colour.'
    ]
    assert opened(tmp_path, 'pairs', palette='voc') == [
        "Condition images are numbers of classes, in the colours 'voc'."
    ]


def test_ordinary_pairs_need_no_remark_and_unequal_sizes_do(tmp_path):
    pairs(tmp_path, 200)
    assert opened(tmp_path, 'pairs') == []
    write(tmp_path, {'cond/000.png': encode(np.full((20, 30), 200, np.uint8))})
    (said,) = opened(tmp_path, 'pairs')
    assert said.startswith('Condition images are 30×20 where their targets are 16×16: the middle')


def film(rng, frames):
    """Pictures that change a little from one to the next, and entirely in the end."""
    rows = np.cumsum(rng.normal(0, 8, (frames, 4, 4, 3)), 0)
    rows = 127 + rows - rows.mean(0)
    return rows.clip(0, 255).astype(np.uint8).repeat(4, 1).repeat(4, 2)


@pytest.mark.parametrize('kind', ['frames', 'photographs'])
def test_frames_held_out_beside_their_neighbours(tmp_path, kind):
    rng = np.random.default_rng(0)
    images = film(rng, 200)
    if kind == 'photographs':
        images = rng.permutation(images)
    write(tmp_path, {f'{i:05}.png': encode(image) for i, image in enumerate(images)})
    said = opened(tmp_path, 'folder')
    if kind == 'photographs':
        assert said == []
    else:
        assert len(said) == 1 and '--config.data.holdout=tail holds out the last ones' in said[0]
    assert opened(tmp_path, 'folder', holdout='tail') == []


def test_images_in_folders_of_their_own_have_no_neighbours(tmp_path):
    images = film(np.random.default_rng(0), 60)
    files = {f'train/{i:05}.png': encode(image) for i, image in enumerate(images)}
    write(tmp_path, files | {f'test/{i}.png': encode(images[i]) for i in range(5)})
    assert opened(tmp_path, 'folder') == []
