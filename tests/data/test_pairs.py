"""Paired folders."""

import numpy as np
from pictures import RGB, encode, open_gray, refused, write
from PIL import Image

from jit_jax import data

SIDES = ('target', 'cond', 'cond2', 'cond3')


def test_more_condition_images_for_each(tmp_path):
    files = {f'{side}/{i}.png': 10 * i + j for j, side in enumerate(SIDES) for i in range(3)}
    source = open_gray('pairs', write(tmp_path, files))
    assert source.images == ('image', 'cond', 'cond2', 'cond3')
    assert '(target/0.png with cond/0.png and cond2/0.png and cond3/0.png)' in source.summary
    for i in range(2):
        found = [int(source[i][name][0, 0, 0]) for name in source.images]
        assert found == [10 * i + j for j in range(4)]
    (tmp_path / 'cond3/1.png').unlink()
    refused('of the same name in target or cond3', 'pairs', path=tmp_path)


def test_pairs(tmp_path):
    files = {f'target/{i}.png': i for i in range(4)} | {
        f'cond/{i}.webp': encode(np.full((20, 30), 100 + i, np.uint8), 'WEBP', lossless=True)
        for i in range(4)
    }
    write(
        tmp_path,
        files
        | {
            'target/deep/a.b.png': 40,
            'cond/deep/a.b.bmp': encode(np.full((9, 8), 140, np.uint8), 'BMP'),
        },
    )
    source = open_gray('pairs', tmp_path)
    examples = [source[i] for i in range(4)] + [open_gray('pairs', tmp_path, 'test')[0]]
    assert [
        (int(e['image'][0, 0, 0]), int(e['cond'][0, 0, 0]), int(e['label'])) for e in examples
    ] == [(level, 100 + level, -1) for level in (0, 1, 2, 3, 40)]
    assert (
        examples[0]['cond'].shape == examples[0]['image'].shape == (8, 8, 1)
        and source.classes == ()
    )


def test_pairs_are_cropped_alike(tmp_path):
    picture = Image.fromarray(RGB).resize((160, 96), Image.Resampling.BICUBIC)
    small = picture.resize((80, 48), Image.Resampling.BOX)
    names = [f'{side}/{i}.png' for side in ('target', 'cond') for i in range(2)]
    write(tmp_path, dict(zip(names, [encode(picture)] * 2 + [encode(small)] * 2, strict=True)))
    example = data.open_source('pairs', path=tmp_path, split='train', image_size=24)[0]
    assert np.abs(example['image'].astype(int) - example['cond']).mean() < 2


def test_refused_pairs(tmp_path):
    refused('target does not exist', 'pairs', path=tmp_path)
    for side in ('target', 'cond'):
        (tmp_path / side).mkdir()
    refused('no pairs', 'pairs', path=tmp_path)
    write(
        tmp_path,
        {f'target/{i}.png': i for i in range(9)}
        | {f'cond/{i}.png': i for i in range(2)}
        | {'cond/x.png': 1},
    )
    refused(r'^8 images .*target/2.png.*target/6.png, …$', 'pairs', path=tmp_path)
    write(tmp_path, {'cond/0.jpg': 0})
    refused('two images named 0: keep', 'pairs', path=tmp_path)


def test_the_summary_says_how_pairs_were_matched_and_that_conditions_are_dark(tmp_path):
    write(tmp_path, {f'target/{i:03}.png': 100 for i in range(110)})
    write(
        tmp_path,
        {f'cond/{i:03}.jpg': encode(np.full((8, 8), 90, np.uint8), 'JPEG') for i in range(110)},
    )
    expected = (
        f'{tmp_path}: 105 pairs for training, 5 held out (every 20th), matched by name '
        '(target/000.png with cond/000.jpg).'
    )
    assert open_gray('pairs', tmp_path).summary == expected
