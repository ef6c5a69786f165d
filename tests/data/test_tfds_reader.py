"""Prepared TFDS data sets, by name and by folder."""

import io
import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from pictures import RGB, encode, refused, write
from PIL import Image

from jit_jax import data

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
                'captions': tfds.features.Sequence(tfds.features.Text()),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {'train': self._generate_examples(40), 'test': self._generate_examples(4)}

        def _generate_examples(self, count):
            for i in range(count):
                picture = io.BytesIO(encode(PALETTE))
                captions = [f'cat {i}', 'Kätzchen'][: 1 + i % 2]
                yield i, {'picture': picture, 'kind': i % 2, 'id': str(i), 'captions': captions}

    directory = tmp_path_factory.mktemp('tfds')
    Toy(data_dir=directory, file_format='array_record').download_and_prepare()
    return directory


def edit_info(folder, **changes):
    info = folder / 'dataset_info.json'
    info.write_text(json.dumps(json.loads(info.read_text()) | changes))


def test_tfds_with_captions(tfds_dir):
    source = data.open_source('tfds', path=tfds_dir / 'toy', split='test', image_size=8, tokens=24)
    assert source.tokens == 24  # how long the longest is, is not known without reading all
    said = [[bytes(row).rstrip(b'\0').decode() for row in example['tokens']] for example in source]
    assert sorted(said) == [['cat 0'], ['cat 1', 'Kätzchen'], ['cat 2'], ['cat 3', 'Kätzchen']]


def test_tfds_by_name_and_by_folder(tfds_dir, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tfds_dir))
    places = [{'name': 'toy'}, {'name': 'toy:1.0.0', 'path': tfds_dir}, {'path': tfds_dir / 'toy'}]
    for place in [*places, {'path': tfds_dir / 'toy' / '1.0.0'}]:
        source = data.open_source('tfds', split='train[:90%]', image_size=30, **place)
        assert len(source) == 36 and source.classes == ('cat', 'dog')
        expected = np.asarray(data.center_crop(PALETTE.convert('RGB'), 30))
        # TFDS alone would return the palette's indices.
        np.testing.assert_array_equal(source[7]['image'], expected)
    assert sorted(int(source[i]['label']) for i in range(36))[17:20] != [0, 0, 0]
    assert len(data.open_source('tfds', name='toy', split='test', image_size=8)) == 4
    assert source.summary == (
        'toy/1.0.0: 36 images in split train[:90%], in 2 classes; its splits: train 40, test 4.'
    )


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
    killed_build = {'imagenet2012/incomplete.ABC_5.1.0/dataset_info.json': b'{}'}
    write(tmp_path, killed_build)
    command = (
        'holds no prepared .* tfds build imagenet2012 --file_format=array_record '
        f'--data_dir={tmp_path}$'
    )
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
