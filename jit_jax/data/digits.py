"""scikit-learn's handwritten digits as a TFDS dataset: no download, no TensorFlow."""

import contextlib
import io
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from jit_jax.data.handwriting import SIDE, enlarged

_TEST = 297


class SklearnDigits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The 1,797 digits of 8 × 8 pixels, enlarged to 32 × 32: 1,500 to train on and 297 to test."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
        features = {
            'image': tfds.features.Image(shape=(SIDE, SIDE, 1), encoding_format='png'),
            'label': tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        images = images.reshape(-1, 8, 8)
        by_class = np.argsort(labels, kind='stable')
        evenly = np.arange(_TEST) * len(labels) // _TEST  # so that every class gives its share
        test = by_class[evenly]
        train = np.setdiff1d(by_class, test)
        return {
            'train': self._generate_examples(images[train], labels[train]),
            'test': self._generate_examples(images[test], labels[test]),
        }

    def _generate_examples(self, images, labels):
        for key, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield key, {'image': io.BytesIO(_png(image)), 'label': int(label)}


def prepare(data_dir) -> Path:
    """Writes the dataset under `data_dir` unless it is there; returns the folder of its version.

    Safe to call from several processes at once: each builds in a folder of its own, the first to
    finish renames it into place, and the others drop theirs. What a killed builder left behind is
    removed by the next one.

    Raises:
      OSError: when `data_dir` cannot be written.
    """
    builder = SklearnDigits(data_dir=os.fspath(data_dir), file_format='array_record')
    folder = Path(builder.data_dir)
    finished = folder / 'dataset_info.json'
    if finished.is_file():
        return folder
    tfds.disable_progress_bar()  # nothing is downloaded, and it takes a third of a second
    try:
        with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_dir=downloads)
    except Exception:
        if not finished.is_file():  # else another process was faster
            raise
    finally:
        tfds.enable_progress_bar()
    if not finished.is_file():
        raise OSError(f'{folder} holds something else; remove it')
    for leftover in folder.parent.glob('incomplete.*'):
        shutil.rmtree(leftover, ignore_errors=True)
    return folder


def _png(digit):
    """float [8, 8] in 0…16 → the bytes of a 32 × 32 grayscale PNG."""
    encoded = io.BytesIO()
    enlarged(digit).save(encoded, 'PNG')
    return encoded.getvalue()
