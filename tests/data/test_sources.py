"""The data room, on real files: sources, odd and broken images, and batches that depend on the step number alone."""

import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from jit_jax import data
from jit_jax.data import digits, preprocess

GOLDENS = Path(__file__).parents[1] / 'goldens'
RGB = (
    np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8).repeat(5, 0).repeat(5, 1)
)  # [30, 40, 3] of blocks


def encode(image, format='PNG', **options):
    """The bytes of an image file."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        file, format, **options
    )
    return file.getvalue()


def pixels(encoded):
    return np.asarray(data.decode(encoded))


def write(folder, files):
    """Writes files by relative path: bytes, or a gray level for an 8 × 8 PNG."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            encode(np.full((8, 8), content, np.uint8)) if isinstance(content, int) else content
        )
    return folder


def open_gray(kind, path, split='train', **options):
    """A source of 8 × 8 one-channel images."""
    return data.open_source(kind, path=path, split=split, image_size=8, channels=1, **options)


def levels(source):
    """The gray level of every example."""
    return [int(source[i]['image'][0, 0, 0]) for i in range(len(source))]


def refused(match, kind, **options):
    """Opening says why not, in one sentence that matches."""
    options = {'split': 'train', 'image_size': 8} | options
    with pytest.raises(data.DataError, match=match) as error:
        data.open_source(kind, **options)
    assert '\n' not in str(error.value)


# What a person sees


def test_center_crop_equals_the_published_one():
    golden = np.load(GOLDENS / 'center_crop.npz')
    cases = [key[3:] for key in golden if key.startswith('in_')]
    assert cases
    for case in cases:
        crop = data.center_crop(Image.fromarray(golden[f'in_{case}']), int(golden[f'size_{case}']))
        np.testing.assert_array_equal(crop, golden[f'out_{case}'])


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(0, 255))
@settings(max_examples=50, deadline=None)
def test_center_crop_is_square_and_keeps_a_flat_color(width, height, size, level):
    crop = data.center_crop(Image.new('RGB', (width, height), (level, 7, 9)), size)
    np.testing.assert_array_equal(crop, np.full((size, size, 3), (level, 7, 9)))


@pytest.mark.parametrize('format', ['PNG', 'BMP', 'TIFF', 'GIF', 'WEBP', 'JPEG'])
def test_formats_and_paths(tmp_path, format):
    image = Image.fromarray(RGB).quantize(64) if format == 'GIF' else Image.fromarray(RGB)
    encoded = encode(image, format, **({'lossless': True} if format == 'WEBP' else {}))
    (tmp_path / 'image').write_bytes(encoded)
    np.testing.assert_array_equal(pixels(encoded), pixels(tmp_path / 'image'))
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert('RGB'))
    np.testing.assert_array_equal(pixels(encoded), expected)
    assert format in ('GIF', 'JPEG') or (expected == RGB).all()


@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'TIFF', 'WEBP'])
@pytest.mark.parametrize(
    ('orientation', 'upright'),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].swapaxes(0, 1)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_rotated_by_exif(format, orientation, upright):
    plain, exif = encode(RGB, format), Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(pixels(encode(RGB, format, exif=exif)), upright(pixels(plain)))


def test_palettes():
    palette = Image.fromarray(RGB).quantize(16)
    expected = np.asarray(palette.convert('RGB')).copy()
    np.testing.assert_array_equal(pixels(encode(palette)), expected)
    clear = palette.getpixel((0, 0))
    expected[np.asarray(palette) == clear] = 255
    for format in ('PNG', 'GIF'):
        np.testing.assert_array_equal(pixels(encode(palette, format, transparency=clear)), expected)
    half = bytes(128 if i == clear else 255 for i in range(16))
    expected[np.asarray(palette) == clear] = np.round(
        (127 * 255 + 128 * np.array(palette.getpalette()[:48]).reshape(16, 3)[clear]) / 255
    )
    np.testing.assert_allclose(
        pixels(encode(palette, transparency=half)).astype(int), expected, atol=1
    )


def test_alpha_lies_on_white():
    alpha = np.linspace(0, 255, RGB.shape[1]).astype(np.uint8)[None].repeat(RGB.shape[0], 0)
    blend = 255 + (RGB.astype(float) - 255) * alpha[..., None] / 255
    np.testing.assert_allclose(pixels(encode(np.dstack([RGB, alpha]))), blend, atol=1)
    gray = Image.merge('LA', [Image.fromarray(RGB[..., 0]), Image.fromarray(alpha)])
    np.testing.assert_allclose(pixels(encode(gray)), blend[..., :1].repeat(3, -1), atol=1)
    color = tuple(int(c) for c in RGB[0, 0])  # one color declared transparent
    expected = np.where((RGB == color).all(-1, keepdims=True), 255, RGB)
    np.testing.assert_array_equal(pixels(encode(RGB, transparency=color)), expected)
    level = int(RGB[0, 0, 0])
    expected = np.where(RGB[..., :1] == level, 255, RGB[..., :1]).repeat(3, -1)
    np.testing.assert_array_equal(pixels(encode(RGB[..., 0], transparency=level)), expected)


def test_cmyk_inverted_or_not():
    cmyk = Image.new('CMYK', (16, 16), (255, 0, 0, 0))  # cyan
    for format in ('JPEG', 'TIFF'):
        encoded = encode(cmyk, format)
        assert format == 'TIFF' or b'Adobe' in encoded  # so its samples are stored inverted
        np.testing.assert_allclose(pixels(encoded)[8, 8], (0, 255, 255), atol=3)


@pytest.mark.parametrize('format', ['PNG', 'TIFF'])
def test_sixteen_bits_are_scaled(format):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.round(ramp.astype(float) / 65535 * 255)
    np.testing.assert_array_equal(pixels(encode(ramp, format)), expected[..., None].repeat(3, -1))


def test_gray_and_black_and_white():
    gray = RGB[..., 0]
    np.testing.assert_array_equal(pixels(encode(gray)), gray[..., None].repeat(3, -1))
    np.testing.assert_array_equal(
        pixels(encode(Image.fromarray(gray > 127))), ((gray > 127) * 255)[..., None].repeat(3, -1)
    )


def test_the_first_frame_of_an_animation():
    frames = [Image.new('L', (8, 8), level) for level in (10, 200)]
    for format in ('GIF', 'PNG', 'WEBP'):
        encoded = encode(frames[0], format, save_all=True, append_images=frames[1:])
        np.testing.assert_allclose(pixels(encoded), 10, atol=2)


def test_float_pixels_have_no_range():
    with pytest.raises(ValueError, match='8 or 16 bits'):
        data.decode(encode(np.ones((8, 8), np.float32), 'TIFF'))


FULL = [encode(RGB, f) for f in ('PNG', 'BMP', 'TIFF', 'GIF', 'WEBP', 'JPEG')] + [
    encode(RGB, 'JPEG', progressive=True)
]


@pytest.mark.filterwarnings('ignore::UserWarning')
@given(st.sampled_from(FULL), st.floats(0, 1, exclude_max=True))
@settings(max_examples=150, deadline=None)
def test_a_truncated_file_is_an_error_or_whole(encoded, share):
    """Never a picture with a gray lower half."""
    try:
        partial = pixels(encoded[: int(share * len(encoded))])
    except (OSError, SyntaxError, ValueError, EOFError):
        return
    np.testing.assert_array_equal(partial, pixels(encoded))


# Folders


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
    refused('path .* missing', 'folder')
    refused('holds no images: add', 'folder', path=tmp_path)
    write(tmp_path, {'flat/1.png': 1, 'mixed/1.png': 1, 'mixed/a/2.png': 2})
    refused('1.png is a file', 'folder', path=tmp_path / 'flat' / '1.png')
    refused('one image', 'folder', path=tmp_path / 'flat')
    refused('both folders of images and images .1.png', 'folder', path=tmp_path / 'mixed')
    refused("'train' or 'test', not 'train...0%.'", 'folder', path=tmp_path, split='train[:10%]')
    refused("'digits', 'tfds', 'folder' or 'pairs'", 'zip', path=tmp_path)
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


# Pairs


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


# TFDS


@pytest.fixture(scope='module')
def digits_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp('tfds')
    digits.prepare(directory)
    return directory


def test_digits(digits_dir, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(digits_dir))
    monkeypatch.delattr(digits.SklearnDigits, '_generate_examples')  # they are there already
    sources = [
        data.open_source('digits', split=s, image_size=32, channels=1) for s in ('train', 'test')
    ]
    assert [len(source) for source in sources] == [1500, 297]
    assert sources[0].classes == tuple('0123456789')
    counts = [
        np.bincount([int(source[i]['label']) for i in range(len(source))]) for source in sources
    ]
    images, labels = load_digits(return_X_y=True)
    assert (counts[0] + counts[1] == np.bincount(labels)).all()
    assert np.abs(counts[1] - np.bincount(labels) * 297 / 1797).max() <= 1
    expected = []
    for image, label in zip(images.reshape(-1, 8, 8), labels, strict=True):
        large = Image.fromarray((image * 255 / 16).astype(np.float32)).resize(
            (32, 32), Image.Resampling.BICUBIC
        )
        expected.append((int(label), np.rint(np.clip(large, 0, 255)).astype(np.uint8).tobytes()))
    found = [
        (int(e['label']), e['image'].tobytes())
        for s in sources
        for e in map(s.__getitem__, range(len(s)))
    ]
    assert sorted(found) == sorted(expected)
    assert sources[0][0]['image'].shape == (32, 32, 1)
    small = data.open_source('digits', path=digits_dir, split='train[:10]', image_size=16)
    assert len(small) == 10 and small[3]['image'].shape == (16, 16, 3)


def test_two_builders_at_once(tmp_path, monkeypatch):
    """A second builder starts and finishes while the first is half way, and even removes its folder."""
    generate = digits.SklearnDigits._generate_examples

    def interrupted(self, images, labels):
        for i, example in enumerate(generate(self, images, labels)):
            if i == 100 and not seen:
                seen.append(len(list((tmp_path / 'sklearn_digits').glob('incomplete.*'))))
                digits.prepare(tmp_path)
            yield example

    seen = []
    monkeypatch.setattr(digits.SklearnDigits, '_generate_examples', interrupted)
    assert digits.prepare(tmp_path) == tmp_path / 'sklearn_digits' / '1.0.0'
    assert seen == [1]
    assert [path.name for path in (tmp_path / 'sklearn_digits').iterdir()] == ['1.0.0']
    assert [path.name for path in tmp_path.iterdir()] == ['sklearn_digits']
    assert len(data.open_source('digits', path=tmp_path, split='test', image_size=32)) == 297


def test_a_killed_builder_leaves_nothing_half_made(tmp_path):
    program = (
        'import io, numpy, os, signal, sys; from jit_jax.data import digits\n'
        'def killed():\n'
        '    yield 0, {"image": io.BytesIO(digits._png(numpy.zeros((8, 8)))), "label": 0}\n'
        '    os.kill(os.getpid(), signal.SIGKILL)\n'
        'digits.SklearnDigits._split_generators = lambda *_: {"train": killed()}; digits.prepare(sys.argv[1])'
    )
    process = subprocess.run([sys.executable, '-c', program, tmp_path], check=False)
    assert process.returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / 'sklearn_digits').iterdir()] != ['1.0.0']
    assert len(data.open_source('digits', path=tmp_path, split='train', image_size=32)) == 1500
    assert [path.name for path in (tmp_path / 'sklearn_digits').iterdir()] == ['1.0.0']


def test_digits_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').touch()
    refused('cannot be written to .*: give another path', 'digits', path=tmp_path / 'file')
    (tmp_path / 'sklearn_digits' / '1.0.0').mkdir(parents=True)
    refused('holds something else; remove it', 'digits', path=tmp_path)


PALETTE = Image.fromarray(RGB).quantize(16)


@pytest.fixture(scope='module')
def tfds_dir(tmp_path_factory):
    """toy/1.0.0, 40 palette images with labels, train and test, in array_record."""

    class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version('1.0.0')

        def _info(self):
            features = {
                'picture': tfds.features.Image(shape=(None, None, 3), encoding_format='png'),
                'kind': tfds.features.ClassLabel(names=['cat', 'dog']),
                'id': tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {'train': self._generate_examples(40), 'test': self._generate_examples(4)}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {'picture': io.BytesIO(encode(PALETTE)), 'kind': i % 2, 'id': str(i)}

    directory = tmp_path_factory.mktemp('tfds')
    Toy(data_dir=directory, file_format='array_record').download_and_prepare()
    return directory


def edit_info(folder, **changes):
    info = folder / 'dataset_info.json'
    info.write_text(json.dumps(json.loads(info.read_text()) | changes))


def test_tfds_by_name_and_by_folder(tfds_dir, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tfds_dir))
    places = [{'name': 'toy'}, {'name': 'toy:1.0.0', 'path': tfds_dir}, {'path': tfds_dir / 'toy'}]
    for place in [*places, {'path': tfds_dir / 'toy' / '1.0.0'}]:
        source = data.open_source('tfds', split='train[:90%]', image_size=30, **place)
        assert len(source) == 36 and source.classes == ('cat', 'dog')
        expected = np.asarray(data.center_crop(PALETTE.convert('RGB'), 30))
        np.testing.assert_array_equal(
            source[7]['image'], expected
        )  # TFDS alone would return the palette's indices
    assert sorted(int(source[i]['label']) for i in range(36))[17:20] != [0, 0, 0]
    assert len(data.open_source('tfds', name='toy', split='test', image_size=8)) == 4


def test_tfds_versions_configs_and_formats(tfds_dir, tmp_path):
    for version in ('1.9.0', '1.10.0'):
        shutil.copytree(tfds_dir / 'toy' / '1.0.0', tmp_path / 'toy' / version)
    (tmp_path / 'toy' / '1.9.0' / 'dataset_info.json').write_text('{')
    source = data.open_source(
        'tfds', path=tmp_path, name='toy', split='test', image_size=8
    )  # 1.10.0 is the newest
    assert len(source) == 4
    edit_info(
        tmp_path / 'toy' / '1.10.0', fileFormat='tfrecord', alternativeFileFormats=['array_record']
    )
    assert len(data.open_source('tfds', path=tmp_path, name='toy', split='test', image_size=8)) == 4
    refused('1.9.0 is not readable.*remove it', 'tfds', path=tmp_path / 'toy' / '1.9.0')
    for config in ('small', 'large'):
        shutil.copytree(tfds_dir / 'toy' / '1.0.0', tmp_path / 'other' / config / '1.0.0')
    refused('name one of large, small', 'tfds', path=tmp_path, name='other')
    assert (
        len(data.open_source('tfds', path=tmp_path, name='other/small', split='test', image_size=8))
        == 4
    )


def test_refused_tfds(tfds_dir, tmp_path):
    write(
        tmp_path, {'imagenet2012/incomplete.ABC_5.1.0/dataset_info.json': b'{}'}
    )  # a killed build
    command = f'holds no prepared .* tfds build imagenet2012 --file_format=array_record --data_dir={tmp_path}$'
    refused(command, 'tfds', path=tmp_path, name='imagenet2012')
    refused(command, 'tfds', path=tmp_path / 'imagenet2012')
    refused(command, 'tfds', path=tmp_path / 'imagenet2012' / '5.1.0')
    refused('neither name nor path', 'tfds')
    refused(
        "no split 'tset': its splits are .*train", 'tfds', path=tfds_dir, name='toy', split='tset'
    )
    refused("no split 'train.:x.'", 'tfds', path=tfds_dir, name='toy', split='train[:x]')
    refused('empty', 'tfds', path=tfds_dir, name='toy', split='train[:0]')
    folder = tmp_path / 'toy' / '1.0.0'
    shutil.copytree(tfds_dir / 'toy' / '1.0.0', folder)
    (folder / 'toy-test.array_record-00000-of-00001').unlink()
    refused('toy-test.*is missing', 'tfds', path=folder, split='test')
    edit_info(folder, fileFormat='tfrecord')
    refused(
        f'tfds convert_format --out_file_format=array_record --dataset_version_dir={folder}$',
        'tfds',
        path=folder,
    )


# Broken files


BROKEN = {
    'empty': b'',
    'text': b'<html>404</html>',
    'png cut': encode(RGB)[:200],
    'jpeg cut': encode(RGB, 'JPEG')[:-200],
    'float': encode(np.ones((8, 8), np.float32), 'TIFF'),
}


@pytest.mark.parametrize('content', BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_skipped_named_once_and_counted(tmp_path, content, caplog):
    source = open_gray(
        'folder', write(tmp_path, {f'{i}.png': content if i == 2 else i for i in range(6)})
    )
    assert levels(source) == [0, 1, 3, 3, 4] == levels(source)
    assert source.broken == (str(tmp_path / '2.png'),)
    assert [
        r.getMessage().count('2.png, which is broken')
        for r in caplog.records
        if 'broken' in r.getMessage()
    ] == [1]


def test_two_threads_name_a_broken_file_once(tmp_path, monkeypatch, caplog):
    def to_array(*_):
        both.wait(timeout=30)
        raise OSError('cut')

    both = threading.Barrier(2)
    monkeypatch.setattr(preprocess, 'to_array', to_array)
    source = open_gray('folder', write(tmp_path, {f'{i}.png': i for i in range(4)}))
    threads = [threading.Thread(target=source.load, args=(0,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(source.broken) == 1 and caplog.text.count('0.png, which is broken: cut') == 1


def test_after_the_last_comes_the_first(tmp_path):
    source = open_gray(
        'folder', write(tmp_path, {'0.png': 7, '1.png': 8, '2.png': b'', '3.png': 9})
    )
    assert levels(source) == [7, 8, 7]


def test_a_vanished_file_and_a_broken_partner(tmp_path):
    write(tmp_path, {f'{side}/{i}.png': i for side in ('target', 'cond') for i in range(4)})
    source = open_gray('pairs', tmp_path)
    (tmp_path / 'cond' / '1.png').unlink()
    assert [int(source[i]['cond'][0, 0, 0]) for i in range(3)] == levels(source) == [0, 2, 2]
    assert len(source.broken) == 1 and 'cond/1.png' in source.broken[0]


@pytest.mark.parametrize(
    ('max_broken', 'broken', 'stops'),
    [(0.1, 2, False), (0.1, 3, True), (0, 1, True), (0.01, 1, False)],
)
def test_too_many_broken_files_stop_the_run(tmp_path, max_broken, broken, stops):
    write(
        tmp_path,
        {f'train/{i:02}.png': b'' if i < broken else i for i in range(20)} | {'test/0.png': 0},
    )
    source = open_gray('folder', tmp_path, max_broken=max_broken)
    two_epochs = itertools.islice(batches(source, threads=2), 10)
    if stops:
        with pytest.raises(
            data.DataError, match=f'{broken} of 20 examples are broken.*repair or remove'
        ):
            list(two_epochs)
    else:
        list(two_epochs)
    assert len(source.broken) == broken


def test_nothing_intact(tmp_path):
    write(tmp_path, {f'{i}.png': b'' for i in range(3)})
    with pytest.raises(data.DataError, match='None of the 2'):
        open_gray('folder', tmp_path, max_broken=1.0)[0]


def test_resume_does_not_depend_on_what_was_found_broken(tmp_path):
    write(tmp_path, {f'{i:02}.png': b'' if i % 5 == 0 else i for i in range(30)})
    sources = [open_gray('folder', tmp_path, max_broken=1.0) for _ in range(2)]
    straight = list(itertools.islice(batches(sources[0]), 12))
    for step in (7, 11, 3):
        same(next(batches(sources[1], start_step=step)), straight[step])


def test_eval_does_not_count_broken_ones(tmp_path):
    write(tmp_path, {f'train/{i}.png': b'' if i == 3 else i for i in range(10)} | {'test/0.png': 0})
    found = list(data.eval_batches(open_gray('folder', tmp_path), batch_size=4))
    weight = np.concatenate([batch['weight'] for batch in found])
    level = np.concatenate([batch['image'][:, 0, 0, 0] for batch in found])
    assert (
        list(level[weight > 0]) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
        and weight.sum() == 9
        and len(weight) == 12
    )


# Batches


class Numbers:
    """A source of `count` pairs whose pixels say which example it is and whether it is flipped."""

    def __init__(self, count):
        self.count, self.reads = count, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.reads += 1
        image = np.array([[[index % 256, index // 256, 0], [255, 255, 255]]], np.uint8)
        return {'image': image, 'label': np.int32(index), 'cond': image + np.uint8(0)}

    load = __getitem__


def batches(source, **options):
    defaults = {
        'batch_size': 4,
        'seed': 0,
        'start_step': 0,
        'flip': True,
        'threads': 0,
        'prefetch': 0,
    }
    return data.train_batches(source, **defaults | options)


def same(left, right):
    assert left.keys() == right.keys()
    for key in left:
        np.testing.assert_array_equal(left[key], right[key])
        assert left[key].dtype == right[key].dtype


def labels(count, steps, **options):
    return np.concatenate(
        [b['label'] for b in itertools.islice(batches(Numbers(count), **options), steps)]
    )


def test_a_batch():
    batch = next(batches(Numbers(10)))
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        'image': ((4, 1, 2, 3), 'uint8'),
        'label': ((4,), 'int32'),
        'cond': ((4, 1, 2, 3), 'uint8'),
    }


@given(
    count=st.integers(1, 40),
    rows=st.integers(1, 3),
    processes=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
    step=st.integers(0, 9),
    threads=st.integers(0, 2),
)
@settings(max_examples=25, deadline=None)
def test_any_processes_threads_and_start_give_the_same_global_batch(
    count, rows, processes, seed, step, threads
):
    options = {'batch_size': rows * processes, 'seed': seed}
    straight = list(itertools.islice(batches(Numbers(count), **options), step, step + 2))
    for process in range(processes):
        part = batches(
            Numbers(count),
            start_step=step,
            threads=threads,
            prefetch=1,
            process_index=process,
            process_count=processes,
            **options,
        )
        mine = slice(process * rows, (process + 1) * rows)
        for whole, got in zip(straight, part, strict=False):
            same(got, {key: value[mine] for key, value in whole.items()})
        part.close()


@given(st.integers(1, 30), st.integers(1, 7), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_every_epoch_holds_every_example_once(count, batch_size, seed):
    stream = labels(count, -(-3 * count // batch_size), batch_size=batch_size, seed=seed)
    for epoch in range(3):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_every_epoch_and_seed_has_its_own_order():
    epochs = [*labels(64, 48).reshape(3, 64), *labels(64, 48, seed=1).reshape(3, 64)]
    assert (
        len({tuple(epoch) for epoch in epochs}) == 6
    )  # nor is seed 1 merely one epoch ahead of seed 0
    assert all((epoch != np.arange(64)).mean() > 0.8 for epoch in epochs)
    np.testing.assert_array_equal(epochs[0], labels(64, 16, flip=False))


def test_flips_are_keyed_by_position_and_shared_by_pairs():
    stream = list(itertools.islice(batches(Numbers(16), batch_size=16), 64))
    flipped = np.array([batch['image'][:, 0, 0, 2] == 255 for batch in stream])
    assert 0.45 < flipped.mean() < 0.55
    for batch in stream:
        np.testing.assert_array_equal(batch['image'], batch['cond'])
    by_example = np.array(
        [flips[np.argsort(batch['label'])] for flips, batch in zip(flipped, stream, strict=True)]
    )
    assert (by_example.mean(0) > 0.2).all() and (
        by_example.mean(0) < 0.8
    ).all()  # each example both ways
    for batch in itertools.islice(batches(Numbers(16), flip=False), 16):
        assert (batch['image'][:, 0, 1] == 255).all()


def test_resuming_reads_nothing_twice():
    source = Numbers(1000)
    next(batches(source, start_step=10**7))
    assert source.reads == 4


def test_batches_are_made_ahead_of_need():
    class Watched(Numbers):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            if self.reads == 12:
                third.set()
            return example

    third = threading.Event()
    found = batches(Watched(100), threads=1, prefetch=2)
    next(found)
    assert third.wait(timeout=30)  # though nobody asked for the third batch
    found.close()


@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_eval_reads_once_in_order(count, rows, processes, threads):
    parts = [
        list(
            data.eval_batches(
                Numbers(count),
                batch_size=rows * processes,
                process_index=i,
                process_count=processes,
                threads=threads,
            )
        )
        for i in range(processes)
    ]
    assert {len(part) for part in parts} == {-(-count // (rows * processes))}
    whole = [
        {key: np.concatenate([b[key] for b in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    weight = np.concatenate([batch['weight'] for batch in whole])
    assert weight.dtype == np.float32 and list(weight) == [1] * count + [0] * (len(weight) - count)
    assert list(np.concatenate([batch['label'] for batch in whole])[:count]) == list(range(count))
    assert {len(batch['label']) for part in parts for batch in part} == {rows}


def test_refused_numbers():
    with pytest.raises(
        data.DataError, match='multiple of the number of processes, not 4 for process 0 of 3'
    ):
        batches(Numbers(4), process_count=3)
    with pytest.raises(data.DataError, match='positive'):
        data.eval_batches(Numbers(4), batch_size=0)
    with pytest.raises(data.DataError, match='seed'):
        batches(Numbers(4), seed=-1)
