"""scikit-learn's digits, written once by whoever comes first."""

import signal
import subprocess
import sys

import numpy as np
import pytest
from pictures import refused
from PIL import Image
from sklearn.datasets import load_digits

from jit_jax import data
from jit_jax.data import digits


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
    """A second one starts and ends while the first is half way, and even removes its folder."""
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
        'digits.SklearnDigits._split_generators = lambda *_: {"train": killed()}\n'
        'digits.prepare(sys.argv[1])'
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
