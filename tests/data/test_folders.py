"""Folders of images: classes, splits, and what is held out."""

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pictures import levels, open_gray, refused, write

from jit_jax import data

GOLDENS = Path(__file__).parents[1] / 'goldens'


def test_omniglot_folder(tmp_path):
    zipfile.ZipFile(GOLDENS / 'omniglot_small.zip').extractall(tmp_path)
    train, test = (
        data.open_source('folder', path=tmp_path, split=s, image_size=32) for s in ('train', 'test')
    )
    assert (
        train.classes
        == test.classes
        == tuple(f'{a}/character0{i}' for a in ('Greek', 'Latin') for i in (1, 2, 3))
    )
    assert (len(train), len(test)) == (114, 6)
    assert [int(test[i]['label']) for i in range(6)] == [0, 1, 2, 3, 4, 5]
    for source in (train, test):
        for i in range(len(source)):
            image, label = source[i]['image'], source[i]['label']
            assert image.shape == (32, 32, 3) and image.dtype == np.uint8
            assert label.shape == () and label.dtype == np.int32
            assert image.max() > 200 and image.min() < 100  # ink on paper
    assert train.broken == ()


def test_what_a_folder_counts(tmp_path):
    write(
        tmp_path,
        {
            'b/2.PNG': 2,
            'b/x/4.webp': 4,
            'a/1.JPeG': 1,
            'b/notes.txt': b'',
            'b/.hidden.png': 9,
            '.c/5.png': 9,
        },
    )
    write(tmp_path, {'b/none': b'', 'empty/readme.md': b'', 'a/10.png': 0})
    source = open_gray('folder', tmp_path)
    assert source.classes == ('a', 'b', 'b/x')
    found = levels(source) + levels(open_gray('folder', tmp_path, 'test'))
    assert found == [1, 0, 2, 4] or found == [0, 1, 2, 4]  # in sorted order; the last is held out


def test_a_flat_folder_has_no_labels(tmp_path):
    source = open_gray('folder', write(tmp_path, {f'{i}.png': i for i in range(4)}))
    assert source.classes == () and levels(source) == [0, 1, 2]
    assert {int(source[i]['label']) for i in range(3)} == {-1}
    with pytest.raises(IndexError):
        source[3]


@pytest.mark.parametrize('count', [2, 3, 19, 20, 21, 40, 61])
def test_hold_out(tmp_path, count):
    write(tmp_path, {f'{i:03}.png': i for i in range(count)})
    train, test = (levels(open_gray('folder', tmp_path, split)) for split in ('train', 'test'))
    assert sorted(train + test) == list(range(count))
    assert len(test) == max(1, count // 20)


@pytest.mark.parametrize('test', ['test', 'val', 'validation'])
def test_split_folders_share_their_classes(tmp_path, test):
    write(
        tmp_path,
        {
            'train/a/1.png': 1,
            'train/b/2.png': 2,
            'train/c/3.png': 3,
            f'{test}/c/4.png': 4,
            f'{test}/b/5.png': 5,
        },
    )
    assert levels(open_gray('folder', tmp_path)) == [1, 2, 3]
    source = open_gray('folder', tmp_path, 'test')
    assert source.classes == ('a', 'b', 'c')
    assert [(level, int(source[i]['label'])) for i, level in enumerate(levels(source))] == [
        (5, 1),
        (4, 2),
    ]
    write(tmp_path, {f'{test}/z/6.png': 6})
    refused('train lacks.* z', 'folder', path=tmp_path, split='test')
    shutil.rmtree(tmp_path / 'train')
    refused(f'{test} but none named train', 'folder', path=tmp_path)


def test_a_train_folder_alone_is_split(tmp_path):
    write(tmp_path, {f'train/{i}.png': i for i in range(5)})
    assert levels(open_gray('folder', tmp_path)) == [0, 1, 2, 3]
    assert levels(open_gray('folder', tmp_path, 'test')) == [4]


def test_a_class_may_be_called_train(tmp_path):
    write(tmp_path, {'bus/1.png': 1, 'train/2.png': 2, 'zebra/3.png': 3})
    source = open_gray('folder', tmp_path)
    assert source.classes == ('bus', 'train', 'zebra') and levels(source) == [1, 2]


def test_refused_folders(tmp_path):
    refused('nowhere does not exist', 'folder', path=tmp_path / 'nowhere')
    refused('path .* missing: give it as --config.data.path=FOLDER', 'folder')
    refused('holds no images: add', 'folder', path=tmp_path)
    write(tmp_path, {'flat/1.png': 1, 'mixed/1.png': 1, 'mixed/a/2.png': 2})
    refused('1.png is a file', 'folder', path=tmp_path / 'flat' / '1.png')
    refused('one image', 'folder', path=tmp_path / 'flat')
    refused('both folders of images and images .1.png', 'folder', path=tmp_path / 'mixed')
    refused("'train' or 'test', not 'train...0%.'", 'folder', path=tmp_path, split='train[:10%]')
    refused('digits, handwriting, omniglot, tfds, folder, pairs, memory', 'zip', path=tmp_path)
    refused('1 or 3 channels', 'folder', path=tmp_path, channels=4)
    refused('name', 'folder', path=tmp_path, name='imagenet2012')


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    write(tmp_path, {'a/1.png': 1, 'b/2.png': 2})
    scandir = os.scandir

    def forbidden(path):
        if str(path).endswith('b'):
            raise PermissionError(13, 'Permission denied', path)
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', forbidden)
    refused('/b cannot be listed .Permission denied.: repair', 'folder', path=tmp_path)


def test_linked_class_folders(tmp_path):
    write(tmp_path, {'here/a/1.png': 1, 'there/2.png': 2, 'there/3.png': 3})
    (tmp_path / 'here' / 'b').symlink_to(tmp_path / 'there')
    source = open_gray('folder', tmp_path / 'here')
    assert source.classes == ('a', 'b') and levels(source) == [1, 2]


# What was found


def summary(kind, folder, **options):
    return open_gray(kind, folder, **options).summary.removeprefix(str(folder))


def test_the_summary_says_how_many_images_and_what_is_held_out(tmp_path):
    write(tmp_path / 'many', {f'{i:03}.png': i for i in range(210)})
    assert summary('folder', tmp_path / 'many') == (
        ': 200 images for training, 10 held out (every 20th).'
    )
    assert summary('folder', tmp_path / 'many', split='test') == summary(
        'folder', tmp_path / 'many'
    )
    write(tmp_path / 'few', {f'{label}/{i}.png': i for label in 'ab' for i in range(3)})
    write(tmp_path / 'few', {'a/x.heic': b'', 'b/y.HEIC': b'', 'readme': b'', '.hidden': b''})
    assert summary('folder', tmp_path / 'few') == (
        ': 5 images for training, 1 held out (the last one), in 2 classes; ignored: 2 ending in '
        '.heic, 1 without an ending; fewer than 100 images are soon learned by heart.'
    )


def test_the_summary_says_what_split_folders_hold(tmp_path):
    write(tmp_path, {f'train/{i:03}.png': i for i in range(120)})
    write(tmp_path, {f'{split}/{i}.png': i for split in ('test', 'val') for i in range(3)})
    write(tmp_path, {'0.png': 0, '1.png': 1})
    assert summary('folder', tmp_path) == (
        ': 120 images for training, 3 held out (in test/); ignored: 3 in val/, 2 beside train/ and '
        'test/.'
    )


def test_the_tail_is_held_out(tmp_path):
    write(tmp_path, {f'{i:03}.png': i for i in range(61)})
    train, test = (open_gray('folder', tmp_path, s, holdout='tail') for s in ('train', 'test'))
    assert levels(train) == list(range(58)) and levels(test) == [58, 59, 60]
    assert '58 images for training, 3 held out (the last 3)' in train.summary
    refused('holdout must be spread or tail', 'folder', path=tmp_path, holdout='head')
