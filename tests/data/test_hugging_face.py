"""Data sets of Hugging Face, in memory and as a folder that both read."""

import json

import numpy as np
import pytest
from pictures import encode, write
from PIL import Image

from jit_jax import data
from jit_jax.errors import UserError

SQUARES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)


class Stand_in:
    """What `columns_of` uses of a data set, for where `datasets` is not installed."""

    def __init__(self, features, **columns):
        self.features, self.column_names, self._columns = features, list(columns), columns

    def __len__(self):
        return len(next(iter(self._columns.values())))

    def __getitem__(self, index):
        return {name: values[index] for name, values in self._columns.items()}

    def select_columns(self, name):
        return Stand_in({name: self.features[name]}, **{name: self._columns[name]})

    def with_format(self, kind):
        return self


def feature(kind, **attributes):
    return type(kind, (), attributes)()


PICTURES = [Image.fromarray(image) for image in SQUARES]


def test_images_and_labels_by_the_kinds_of_columns():
    labelled = Stand_in(
        {'photo': feature('Image'), 'kind': feature('ClassLabel', names=['cat', 'dog'])},
        photo=PICTURES,
        kind=[0, 1, 0, 1, 1, 0],
    )
    memory = data.in_memory(labelled)
    assert memory.classes == ('cat', 'dog') and memory.labels.tolist() == [0, 1, 0, 1, 1, 0]
    np.testing.assert_array_equal(np.asarray(memory.images[3]), SQUARES[3])
    plain = data.in_memory(Stand_in({'image': feature('Image')}, image=PICTURES))
    assert plain.labels is None and plain.content != memory.content
    said = Stand_in({'photo': feature('Image'), 'text': None}, photo=PICTURES, text=['a'] * 6)
    assert data.captions_of(said) == ['a'] * 6
    assert data.captions_of(labelled) is None and data.captions_of(PICTURES) is None


def test_refused_data_sets():
    with pytest.raises(UserError, match='without one column of images; its columns are text'):
        data.in_memory(Stand_in({'text': feature('Value')}, text=['a']))
    two = Stand_in({'a': feature('Image'), 'b': feature('Image')}, a=PICTURES, b=PICTURES)
    with pytest.raises(UserError, match='without one column of images; its columns are a, b'):
        data.in_memory(two)


def test_real_data_sets():
    datasets = pytest.importorskip('datasets')
    features = datasets.Features(
        {'image': datasets.Image(), 'label': datasets.ClassLabel(names=['cat', 'dog'])}
    )
    columns = {'image': PICTURES, 'label': [0, 1, 0, 1, 1, 0]}
    real = datasets.Dataset.from_dict(columns, features=features)
    memory = data.in_memory(real)
    assert memory.classes == ('cat', 'dog') and memory.labels.tolist() == columns['label']
    source = memory.source('train', 'spread', image_size=8, channels=3, max_broken=0.0)
    np.testing.assert_array_equal(source[2]['image'], SQUARES[2])
    assert data.in_memory(real).content == memory.content
    np.testing.assert_array_equal(np.asarray(data.in_memory(real['image']).images[1]), SQUARES[1])
    with pytest.raises(UserError, match="images=data.'train'."):
        data.in_memory(datasets.DatasetDict(train=real))
    with pytest.raises(UserError, match='read as a stream'):
        data.in_memory(real.to_iterable_dataset())


def test_an_imagefolder_is_read_as_hugging_face_reads_it(tmp_path):
    datasets = pytest.importorskip('datasets')
    rows = [{'file_name': f'{i}.png', 'label': 'ab'[i % 2]} for i in range(6)]
    files = {f'train/{i}.png': encode(image) for i, image in enumerate(SQUARES)}
    files['train/metadata.jsonl'] = '\n'.join(map(json.dumps, rows)).encode()
    write(tmp_path, files)
    theirs = datasets.load_dataset(
        'imagefolder', data_dir=str(tmp_path), split='train', cache_dir=str(tmp_path / '.cache')
    )
    parts = [
        data.open_source('folder', path=tmp_path, split=split, image_size=8)
        for split in ('train', 'test')
    ]
    ours = [part[i] for part in parts for i in range(len(part))]
    for row, example in zip(theirs, ours, strict=True):
        np.testing.assert_array_equal(np.asarray(row['image']), example['image'])
        assert row['label'] == 'ab'[int(example['label'])]
