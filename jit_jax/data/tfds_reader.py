"""Prepared TFDS data sets in array_record format, read without TensorFlow."""

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from jit_jax.data import digit_captions
from jit_jax.data.captions import Captions
from jit_jax.data.records import Records, in_classes
from jit_jax.errors import UserError

_TO_WRITE = 'pip install tensorflow apache-beam mlcroissant'  # reading needs none of them


def open_tfds(path, name: str | None, split: str) -> Records:
    """Opens the newest version of a data set, unless the path or the name says which.

    Raises:
      UserError: when it is not there, in another format, or has no such split or no single image.
    """
    if name is None and path is None:
        raise UserError(
            "A 'tfds' data set has neither name nor path: give --config.data.name=NAME, "
            '--config.data.path=FOLDER, or both.'
        )
    if name is None:
        folder = Path(path).expanduser()
        data_set = folder.parent if _version(folder) else folder
        name, directory = data_set.name, data_set.parent
    else:
        directory = tfds_directory(path)
        folder = directory / name.replace(':', '/')  # as in 'name/config:1.0.0'
    build = (
        f'run: {_TO_WRITE} && tfds build {name} --file_format=array_record --data_dir={directory}'
    )
    return read_version(_newest_version(folder, build), split, again=build)


def open_digits(path, split: str) -> Records:
    """Opens scikit-learn's digits, and writes them before under the TFDS directory `path`.

    Raises:
      UserError: when the directory cannot be written.
    """
    from jit_jax.data import digits

    directory = tfds_directory(path)
    try:
        folder = digits.prepare(directory)
    except OSError as error:
        raise UserError(
            f'The digits cannot be written to {directory} ({error}): give another path as '
            '--config.data.path=FOLDER.'
        ) from error
    records = read_version(folder, split, again='start again')

    def read(i):
        _, digit = records.read(i)
        return digit_captions.captions(int(digit), i)

    return replace(records, captions=Captions(read))


def tfds_directory(path) -> Path:
    """`path`, or where TFDS keeps its data sets."""
    return Path(path or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets').expanduser()


def read_version(folder: Path, split: str, *, again: str) -> Records:
    """Opens a split of a data set's version; `again` is how a message proposes to write it anew."""
    builder = _builder(folder, again)
    info = builder.info
    count = _count(info, folder, split)
    image, label = _columns(info, folder)
    examples = _examples(builder, split)
    for shard in info.splits[split].file_instructions:
        if not os.path.exists(shard.filename):
            raise UserError(
                f'{shard.filename} is missing: copy it there, or remove its folder, then {again}'
            )
    classes = () if label is None else tuple(info.features[label].names)
    sizes = ', '.join(f'{name} {part.num_examples:,}' for name, part in info.splits.items())
    summary = (
        f'{info.full_name}: {count:,} images in split {split}{in_classes(classes)}; '
        f'its splits: {sizes}.'
    )

    def read(i):
        example = examples[i]
        return {'image': example[image]}, -1 if label is None else example[label]

    def name(i):
        return f'example {i} of split {split!r} in {folder}'

    captions = _captions(info, examples)
    return Records(count, ('image',), read, name, classes, summary, captions=captions)


def _newest_version(folder: Path, build: str) -> Path:
    """The folder of the newest version of the only data set in `folder`."""
    levels = ('', '*/', '*/*/')  # the folder of a version, a data set, or one with configurations
    found = [info.parent for level in levels for info in folder.glob(f'{level}dataset_info.json')]
    # A build that was killed leaves other folders behind.
    versions = [version for version in found if version == folder or _version(version)]
    if not versions:
        raise UserError(f'{folder} holds no prepared TFDS data set; to prepare it, {build}')
    configs = sorted({version.parent for version in versions})
    if len(configs) > 1:
        names = ', '.join(config.name for config in configs)
        raise UserError(f'{folder} holds several data sets: name one of {names}.')
    return max(versions, key=_version)


def _version(folder: Path) -> list[int]:
    """[1, 10, 0] for a folder named 1.10.0, [] for others."""
    if not re.fullmatch(r'\d+\.\d+\.\d+', folder.name):
        return []
    return [int(number) for number in folder.name.split('.')]


def _builder(folder: Path, again: str):
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # whatever its JSON and protobuf readers raise
        raise UserError(f'{folder} is not readable ({error}): remove it, then {again}') from error
    if tfds.core.FileFormat.ARRAY_RECORD not in builder.info.available_file_formats():
        raise UserError(
            f'{folder} is in {builder.info.file_format.value} format, which has no random access; '
            f'to add array_record beside it, run: {_TO_WRITE} && tfds convert_format '
            f'--out_file_format=array_record --dataset_version_dir={folder}'
        )
    return builder


def _count(info, folder: Path, split: str) -> int:
    """How many examples a split expression has."""
    try:
        count = info.splits[split].num_examples
    except (KeyError, ValueError):
        raise UserError(
            f'{folder} has no split {split!r}: its splits are {", ".join(info.splits)}.'
        ) from None
    if not count:
        raise UserError(f'The split {split!r} of {folder} is empty: choose another.')
    return count


def _columns(info, folder: Path) -> tuple[str, str | None]:
    """The names of the image and of the label, None for none."""
    import tensorflow_datasets as tfds

    image = _only(info, tfds.features.Image, 'image')
    if image is None:
        raise UserError(
            f'{folder} has no single image per example: its features are '
            f'{", ".join(info.features)}.'
        )
    return image, _only(info, tfds.features.ClassLabel, 'label')


def _captions(info, examples) -> Captions | None:
    """What the feature of text says: one caption, or a sequence of them; None without one."""
    import tensorflow_datasets as tfds

    def says(feature):
        within = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
        return isinstance(within, tfds.features.Text)

    found = [key for key, feature in info.features.items() if says(feature)]
    named = [key for key in ('text', 'caption', 'captions') if key in found]
    keys = named[:1] or found
    if len(keys) != 1:
        return None

    def read(i):
        said = np.ravel(np.asarray(examples[i][keys[0]], object))
        return [one.decode() if isinstance(one, bytes) else one for one in said]

    return Captions(read, listed=False)


def _only(info, kind: type, name: str) -> str | None:
    """The feature of a kind: the one called `name`, else the only one."""
    keys = [key for key, feature in info.features.items() if isinstance(feature, kind)]
    if name in keys:
        return name
    return keys[0] if len(keys) == 1 else None


def _examples(builder, split: str):
    """Random access to a split, with images as they are in the file."""
    import tensorflow_datasets as tfds

    images = [k for k, f in builder.info.features.items() if isinstance(f, tfds.features.Image)]
    # Without OpenCV, TFDS decodes palette images to their indices.
    undecoded = dict.fromkeys(images, tfds.decode.SkipDecoding())
    return builder.as_data_source(split=split, decoders=undecoded, file_format='array_record')
