"""Images in memory as a source."""

import numpy as np
import pytest
from pictures import RGB, batches, encode, write
from PIL import Image

from jit_jax import data
from jit_jax.errors import UserError

SQUARES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)


def test_arrays_of_the_right_size_come_out_as_they_are():
    source = data.from_arrays(SQUARES)
    assert len(source) == 5 and source.classes == ()
    np.testing.assert_array_equal([source[i]['image'] for i in range(5)], SQUARES)
    assert {int(source[i]['label']) for i in range(5)} == {-1}
    assert source.summary == (
        '5 images in memory; fewer than 100 images are soon learned by heart.'
    )
    for gray in (SQUARES[..., 0], SQUARES[..., :1]):
        np.testing.assert_array_equal(data.from_arrays(gray)[2]['image'], SQUARES[2, ..., :1])
    assert data.from_arrays(SQUARES[..., 0], channels=3)[0]['image'].shape == (8, 8, 3)


def test_what_is_in_memory_equals_what_is_in_files(tmp_path):
    """PIL images, arrays and files of every shape go through one decoder and one crop."""
    clear = Image.fromarray(RGB).quantize(16)
    clear.info['transparency'] = 3
    images = [RGB, RGB[..., 0], Image.fromarray(RGB).convert('RGBA'), clear]
    write(tmp_path, {f'train/{i}.png': encode(image) for i, image in enumerate(images)})
    write(tmp_path, {'test/0.png': 0})
    files = data.open_source('folder', path=tmp_path, split='train', image_size=16)
    memory = data.from_arrays(images, image_size=16, channels=3)
    for i in range(len(images)):
        np.testing.assert_array_equal(memory[i]['image'], files[i]['image'])
    for first, channels in ((0, 3), (1, 1), (2, 3), (3, 3)):  # by default those of the first image
        assert data.from_arrays(images[first:])[0]['image'].shape == (30, 30, channels)


def test_labels_pairs_and_batches():
    cond = SQUARES[::-1]
    source = data.from_arrays(SQUARES, [0, 2, 1, 0, 0], cond)
    assert source.classes == ('0', '1', '2')
    np.testing.assert_array_equal(source[1]['cond'], cond[1])
    batch = next(batches(source, batch_size=5, flip=False))
    order = [np.flatnonzero((SQUARES == image).all((1, 2, 3)))[0] for image in batch['image']]
    assert sorted(order) == list(range(5))
    assert batch['label'].tolist() == [[0, 2, 1, 0, 0][i] for i in order]
    np.testing.assert_array_equal(batch['cond'], cond[order])
    named = data.from_arrays(SQUARES, [0, 1, 1, 0, 0], classes=['cat', 'dog'])
    assert named.classes == ('cat', 'dog') and 'in 2 classes' in named.summary


def test_images_are_read_when_they_are_needed():
    class Column:
        """A sequence as a column of a data set is: a length, and items by number."""

        def __len__(self):
            return 1000

        def __getitem__(self, index):
            read.append(index)
            return Image.new('L', (8, 8), index % 256)

    read = []
    source = data.from_arrays(Column())
    assert int(source[77]['image'][0, 0, 0]) == 77 and read == [0, 0, 77]


def test_refused_arrays():
    def refused(match, *args, **options):
        with pytest.raises(UserError, match=match):
            data.from_arrays(*args, **options)

    refused('no images in memory', [])
    refused('uint8 .* not float32 .8, 8, 3.: convert', SQUARES.astype(np.float32))
    refused('uint8 .* not uint8 .8, 8, 2.', SQUARES[..., :2])
    refused('5 images and 4 labels', SQUARES, [0] * 4)
    refused('5 images and 4 condition images', SQUARES, cond=SQUARES[:4])
    refused('class numbers from 0', SQUARES, [0, 1, 2, 3, -1])
    refused('The labels are a sequence, one for each image; got 3', SQUARES, 3)
    refused('The condition images are a sequence, .* got 3', SQUARES, cond=3)
    refused("The labels are a sequence, one for each image; got 'abcde'", SQUARES, 'abcde')
    refused('images is one image, .8, 8, 3.; give several', SQUARES[0])
    refused('for the folder photos leave them out and set config.data.kind', 'photos')
    refused('images holds paths, such as a.png; open them with PIL.Image.open', ['a.png', 'b.png'])
    refused('class numbers from 0', SQUARES, [0.5] * 5)
    refused('1 names of classes, but a label is 1', SQUARES, [0, 1, 0, 1, 0], classes=['cat'])
    refused('1 or 3 channels', SQUARES, channels=4)
    refused('positive size', SQUARES, image_size=0)


def test_splits_are_those_of_a_folder(tmp_path):
    """The same images in memory and in files: the same ones are held out, in the same order."""
    images = np.random.default_rng(0).integers(0, 256, (45, 8, 8, 3), np.uint8)
    write(tmp_path, {f'{i:02}.png': encode(image) for i, image in enumerate(images)})
    memory = data.in_memory(images)
    options = {'image_size': 8, 'channels': 3, 'max_broken': 0.0}
    for holdout in data.HOLDOUTS:
        for split in ('train', 'test'):
            files = data.open_source(
                'folder', path=tmp_path, split=split, image_size=8, holdout=holdout
            )
            source = memory.source(split, holdout, **options)
            assert len(source) == len(files)
            for i in range(len(files)):
                np.testing.assert_array_equal(source[i]['image'], files[i]['image'])
    assert 'In memory: 43 images for training, 2 held out (every 20th); fewer' in (
        memory.source('train', 'spread', **options).summary
    )


def test_the_content_is_of_all_that_is_given():
    pictures = [Image.fromarray(image) for image in SQUARES]
    one = data.in_memory(SQUARES)
    changed = SQUARES.copy()
    changed[-1, -1, -1, -1] ^= 1
    other = [
        data.in_memory(changed),
        data.in_memory(SQUARES[:4]),
        data.in_memory(SQUARES, [0, 1, 0, 1, 0]),
        data.in_memory(SQUARES, [0, 1, 0, 1, 1]),
        data.in_memory(SQUARES, cond=SQUARES),
        data.in_memory(pictures),
        data.in_memory(pictures[::-1]),
    ]
    assert len({memory.content for memory in [one, *other]}) == len(other) + 1
    assert data.in_memory(SQUARES.copy()).content == one.content
    assert data.in_memory(list(pictures)).content == data.in_memory(pictures).content


def test_what_is_no_sequence_of_images():
    for match, images in (
        ('is a sequence, such as an array .* got generator', (image for image in SQUARES)),
        (
            "is a dict of train, test: give one of them, as in images=data.'train'.",
            {'train': 1, 'test': 2},
        ),
        ('no images in memory', np.zeros((0, 8, 8, 3), np.uint8)),
    ):
        with pytest.raises(UserError, match=match):
            data.in_memory(images)
