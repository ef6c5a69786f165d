"""Where images come from: prepared TFDS data sets, a folder, paired folders, scikit-learn's digits.

Each is a `Source`: random access by index to decoded, cropped examples. Broken files are skipped in a way that depends
on the files alone, so that position i holds the same example on every machine and after every restart.
"""

import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import logging

from jit_jax.data import preprocess
from jit_jax.errors import UserError

_ENDINGS = {'.png', '.jpg', '.jpeg', '.webp', '.bmp', '.gif', '.tif', '.tiff'}
_SPLIT_FOLDERS = {'train': ('train',), 'test': ('test', 'val', 'validation')}
_HELD_OUT = 20  # without split folders, every 20th file is for testing
_TFDS_NEEDS = (
    'pip install tensorflow apache-beam mlcroissant'  # to write; reading needs none of them
)


class DataError(UserError):
    """A data set that cannot be used as asked; the message names the fix."""


def open_source(
    kind, *, split, image_size, path=None, name=None, channels=3, max_broken=0.01
) -> 'Source':
    """Opens a source of examples.

    Args:
      kind: where the images are:
        'digits': scikit-learn's digits, written once under the TFDS directory `path`.
        'tfds': a TFDS data set in array_record format: by `name` ('imagenet2012', 'name/config') in the TFDS directory
          `path`, or without a name at `path` itself, the data set's folder or one version's.
        'folder': images in `path`, in one sub-folder per class (nested: 'parent/child' is the class) or none at all.
        'pairs': `path`/target/… and `path`/cond/…, images of equal name up to the ending.
        A TFDS directory defaults to $TFDS_DATA_DIR, or ~/tensorflow_datasets.
      split: 'train' or 'test'; for 'tfds' any split expression, such as 'train[:90%]'. If all sub-folders of a folder
        (or of pairs) are named train, test, val or validation, they are the splits; else, or if there is only train,
        'test' is every 20th file in sorted order (at least one), and 'train' the others.
      image_size: S, the side of the square that each image is cropped and scaled to.
      channels: C, 3 for RGB or 1 for grayscale.
      max_broken: the share of the examples that may turn out broken before reading raises. One always may, unless 0.

    Raises:
      DataError: when there is nothing to read, or nothing that fits the description.
    """
    if channels not in (1, 3) or image_size < 1:
        raise DataError(
            f'Images need 1 or 3 channels and a positive size, not {channels} and {image_size}.'
        )
    if name is not None and kind != 'tfds':
        raise DataError(f"Only 'tfds' data sets have a name; leave {name!r} out and give the path.")
    match kind:
        case 'digits':
            records = _open_digits(path, split)
        case 'tfds':
            records = _open_tfds(path, name, split)
        case 'folder':
            records = _open_folder(_existing_folder(path), split)
        case 'pairs':
            records = _open_pairs(_existing_folder(path), split)
        case _:
            raise DataError(
                f"The kind of data must be 'digits', 'tfds', 'folder' or 'pairs', not {kind!r}."
            )
    return Source(records, image_size=image_size, channels=channels, max_broken=max_broken)


class Source:
    """Random access to examples: {'image': uint8 [S, S, C], 'label': int32, −1 for none}, and 'cond' for pairs.

    `classes` holds the names of the labels in order, and is empty without labels.
    """

    def __init__(self, records, *, image_size, channels, max_broken):
        self.classes = records.classes
        self._records = records
        self._image_size = image_size
        self._channels = channels
        self._broken = {}
        self._allowed = max(1, int(max_broken * records.count)) if max_broken else 0
        self._lock = threading.Lock()

    def __len__(self):
        return self._records.count

    def __getitem__(self, index):
        """Returns example `index`, or when it is broken the next intact one (the first follows the last).

        Raises:
          DataError: when more examples are broken than allowed.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        for i in range(index, index + len(self)):
            example = self.load(i % len(self))
            if example is not None:
                return example
        raise DataError(
            f'None of the {len(self)} images can be read; the first is {self.broken[0]}.'
        )

    def load(self, index) -> dict[str, np.ndarray] | None:
        """Returns example `index`, or None when it is broken."""
        if index in self._broken:
            return None
        try:
            encoded, label = self._records.read(index)
            arrays = {
                key: preprocess.to_array(image, self._image_size, self._channels)
                for key, image in encoded.items()
            }
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - a damaged file makes decoders raise almost anything
            self._report(index, error)
            return None
        return arrays | {'label': np.int32(label)}

    @property
    def broken(self) -> tuple[str, ...]:
        """The names of the broken examples that were found so far."""
        return tuple(self._broken.values())

    def _report(self, index, error):
        with self._lock:
            if index in self._broken:
                return
            name = self._broken[index] = self._records.name(index)
            count = len(self._broken)
        logging.warning('Skipping %s, which is broken: %s', name, error)
        if count > self._allowed:
            raise DataError(
                f'{count} of {len(self)} examples are broken, more than allowed: repair or remove them or raise '
                f'max_broken; the latest is {name} ({error}).'
            ) from error


@dataclass(frozen=True)
class _Records:
    """Encoded examples: `read(i)` → ({'image': bytes or path, …}, label), `name(i)` for messages."""

    count: int
    read: Callable
    name: Callable
    classes: tuple


def _files(paths, labels, classes):
    """Records in files: lists of paths by key, and as many labels."""
    return _Records(
        count=len(labels),
        read=lambda i: ({key: files[i] for key, files in paths.items()}, labels[i]),
        name=lambda i: ' + '.join(files[i] for files in paths.values()),
        classes=classes,
    )


def _existing_folder(path):
    if path is None:
        raise DataError('The path of the folder of images is missing: give it.')
    folder = Path(path).expanduser()
    if not folder.is_dir():
        problem = 'is a file' if folder.exists() else 'does not exist'
        raise DataError(f'{folder} {problem}: give the path of a folder of images.')
    return folder


def _walk(folder):
    """os.walk without hidden folders, with links, and with an error where that leaves a folder out in silence."""

    def fail(error):
        raise DataError(
            f'{error.filename} cannot be listed ({error.strerror}): repair or remove it.'
        )

    for parent, children, files in os.walk(folder, followlinks=True, onerror=fail):
        children[:] = [child for child in children if not child.startswith('.')]
        yield parent, children, files


def _images_in(folder):
    """Paths of the images anywhere below a folder, relative to it, in an order that is the same everywhere."""
    found = []
    for parent, children, files in _walk(folder):
        files = [
            f for f in files if not f.startswith('.') and os.path.splitext(f)[1].lower() in _ENDINGS
        ]
        found += [os.path.relpath(os.path.join(parent, f), folder) for f in files]
    return sorted(found)


def _split_folder(root, split):
    """Returns the folder with a split's files, and whether every 20th of them is held out for testing."""
    if split not in _SPLIT_FOLDERS:
        raise DataError(f"The split of a folder must be 'train' or 'test', not {split!r}.")
    present = set(next(_walk(root))[1])
    if not present or not present <= {name for names in _SPLIT_FOLDERS.values() for name in names}:
        return root, True  # not splits: a class may well be called train
    if 'train' not in present:
        raise DataError(f'{root} has a folder {min(present)} but none named train: add it.')
    for name in _SPLIT_FOLDERS[split]:
        if name in present:
            return root / name, present == {'train'}
    return root / 'train', True


def _chosen(files, split, held_out, root):
    """Returns a split's part of sorted files."""
    if not held_out:
        return files
    test = files[_HELD_OUT - 1 :: _HELD_OUT] or files[-1:]
    chosen = test if split == 'test' else sorted(set(files) - set(test))
    if not chosen:
        raise DataError(
            f'{root} holds one image, and that is held out for testing: add more, or a folder named test.'
        )
    return chosen


def _open_folder(root, split):
    folder, held_out = _split_folder(root, split)
    files = _images_in(folder)
    if not files:
        raise DataError(
            f'{folder} holds no images: add some that end in {", ".join(sorted(_ENDINGS))}.'
        )
    classes = _classes(folder, files)
    train = root / 'train'
    if classes and folder != root and folder != train:  # a label means the same in every split
        known = _classes(train, _images_in(train))
        if unknown := set(classes) - set(known):
            raise DataError(
                f'{folder} has a class that {train} lacks: remove or rename {min(unknown)}.'
            )
        classes = known
    number = {name: i for i, name in enumerate(classes)} if classes else {'': -1}
    files = _chosen(files, split, held_out, root)
    labels = [number[os.path.dirname(file)] for file in files]
    return _files({'image': [os.path.join(folder, file) for file in files]}, labels, classes)


def _classes(folder, files):
    names = sorted({os.path.dirname(file) for file in files})
    if names == ['']:
        return ()
    if '' in names:
        loose = next(file for file in files if not os.path.dirname(file))
        raise DataError(
            f'{folder} holds both folders of images and images ({loose}): move these into a folder.'
        )
    return tuple(names)


def _open_pairs(root, split):
    folder, held_out = _split_folder(root, split)
    sides = {'image': _by_stem(folder / 'target'), 'cond': _by_stem(folder / 'cond')}
    unmatched = sorted(sides['image'].keys() ^ sides['cond'].keys())
    if unmatched:
        shown = [(sides['image'] | sides['cond'])[stem] for stem in unmatched[:5]]
        raise DataError(
            f'{len(unmatched)} images in {folder} have no partner of the same name in target or cond; add it or remove '
            f'them: {", ".join(shown)}{", …" if len(unmatched) > 5 else ""}'
        )
    if not sides['image']:
        raise DataError(
            f'{folder} holds no pairs: put images of equal names into its folders target and cond.'
        )
    stems = _chosen(sorted(sides['image']), split, held_out, root)
    return _files(
        {key: [files[stem] for stem in stems] for key, files in sides.items()},
        [-1] * len(stems),
        (),
    )


def _by_stem(folder):
    files = {}
    for file in _images_in(_existing_folder(folder)):
        stem = os.path.splitext(file)[0]
        if stem in files:
            raise DataError(f'{folder} holds two images named {stem}: keep one of them.')
        files[stem] = os.path.join(folder, file)
    return files


def _tfds_directory(path):
    return Path(path or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets').expanduser()


def _open_digits(path, split):
    from jit_jax.data import digits

    directory = _tfds_directory(path)
    try:
        folder = digits.prepare(directory)
    except OSError as error:
        raise DataError(
            f'The digits cannot be written to {directory} ({error}): give another path.'
        ) from error
    return _read_tfds(folder, split, again='start again')


def _open_tfds(path, name, split):
    """Finds the folder of a data set's version (the newest, unless the path or name says which) and opens it."""
    if name is None:
        if path is None:
            raise DataError("A 'tfds' data set has neither name nor path: give one, or both.")
        folder = Path(path).expanduser()
        data_set = folder.parent if _version(folder) else folder
        name, directory = data_set.name, data_set.parent
    else:
        directory = _tfds_directory(path)
        folder = directory / name.replace(':', '/')  # as in 'name/config:1.0.0'
    build = (
        f'run: {_TFDS_NEEDS} && tfds build {name} --file_format=array_record --data_dir={directory}'
    )
    levels = ('', '*/', '*/*/')  # the folder of a version, a data set, or one with configurations
    found = [info.parent for level in levels for info in folder.glob(f'{level}dataset_info.json')]
    found = [
        version for version in found if version == folder or _version(version)
    ]  # else left by a killed build
    if not found:
        raise DataError(f'{folder} holds no prepared TFDS data set; to prepare it, {build}')
    configs = {version.parent for version in found}
    if len(configs) > 1:
        raise DataError(
            f'{folder} holds several data sets: name one of {", ".join(sorted(c.name for c in configs))}.'
        )
    return _read_tfds(max(found, key=_version), split, again=build)


def _version(folder):
    return (
        [int(number) for number in folder.name.split('.')]
        if re.fullmatch(r'\d+\.\d+\.\d+', folder.name)
        else []
    )


def _read_tfds(folder, split, *, again):
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # whatever its JSON and protobuf readers raise
        raise DataError(f'{folder} is not readable ({error}): remove it, then {again}') from error
    info = builder.info
    if tfds.core.FileFormat.ARRAY_RECORD not in info.available_file_formats():
        raise DataError(
            f'{folder} is in {info.file_format.value} format, which has no random access; to add array_record beside '
            f'it, run: {_TFDS_NEEDS} && tfds convert_format --out_file_format=array_record '
            f'--dataset_version_dir={folder}'
        )
    try:
        count = info.splits[split].num_examples
    except (KeyError, ValueError):
        raise DataError(
            f'{folder} has no split {split!r}: its splits are {", ".join(info.splits)}.'
        ) from None
    if not count:
        raise DataError(f'The split {split!r} of {folder} is empty: choose another.')
    images = [
        key for key, feature in info.features.items() if isinstance(feature, tfds.features.Image)
    ]
    labels = [
        key
        for key, feature in info.features.items()
        if isinstance(feature, tfds.features.ClassLabel)
    ]
    image, label = (
        _one_of(keys, wanted) for keys, wanted in ((images, 'image'), (labels, 'label'))
    )
    if image is None:
        raise DataError(
            f'{folder} has no single image per example: its features are {", ".join(info.features)}.'
        )
    undecoded = dict.fromkeys(
        images, tfds.decode.SkipDecoding()
    )  # without OpenCV, TFDS gets palette images wrong
    examples = builder.as_data_source(split=split, decoders=undecoded, file_format='array_record')
    for shard in info.splits[split].file_instructions:
        if not os.path.exists(shard.filename):
            raise DataError(
                f'{shard.filename} is missing: copy it there, or remove its folder, then {again}'
            )
    classes = () if label is None else tuple(info.features[label].names)

    def read(i):
        example = examples[i]
        return {'image': example[image]}, -1 if label is None else example[label]

    return _Records(count, read, lambda i: f'example {i} of split {split!r} in {folder}', classes)


def _one_of(keys, wanted):
    return wanted if wanted in keys else keys[0] if len(keys) == 1 else None
