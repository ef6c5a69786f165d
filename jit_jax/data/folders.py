"""A folder of images, with or without classes: one sub-folder a class, or a metadata.jsonl."""

import os
import sys
from functools import partial
from pathlib import Path

from jit_jax.data import metadata
from jit_jax.data.listing import ENDINGS, Example, Listing, divide, existing_folder, images_in
from jit_jax.data.records import Records
from jit_jax.errors import UserError


def open_folder(root: Path, split: str, holdout: str) -> Records:
    """Opens the images below `root`.

    The class of an image is the path of its folder ('parent/child'), or what a metadata.jsonl in
    the folder says; images in `root` itself have none. A label means the same in every split.
    Captions are what metadata.jsonl says, or the lines of name.txt beside name.png.

    Raises:
      UserError: without images, for images beside folders, or a class that training lacks.
    """
    found = divide(root, split, holdout, partial(_list_folder, root))
    folder = found.folder(split)
    if not found.part(split):
        raise UserError(f'{folder} holds no images: add some that end in {", ".join(ENDINGS)}.')
    classes = _classes(folder, found.whole(split))
    if classes:
        training = found.folder('train')
        known = _classes(training, found.whole('train'))
        _check_known(folder, classes, training, known)
        classes = known
    return found.records(split, ('image',), classes, noun='images')


def count_classes(path: str | None, split: str, holdout: str) -> int:
    """How many classes the images in a folder have. Raises UserError as `open_folder` does."""
    return len(open_folder(existing_folder(path), split, holdout).classes)


def _list_folder(root: Path, folder: Path) -> Listing:
    described = metadata.find(folder, root)
    if described is not None:
        return metadata.list_folder(described, folder)
    files, ignored = images_in(folder)
    has_text = 'ending in .txt' in ignored
    examples = []
    for file in files:
        path, captions = os.path.join(folder, file), ()
        beside = os.path.splitext(path)[0] + '.txt'
        if has_text and os.path.isfile(beside):
            captions = beside
            ignored['ending in .txt'] -= 1
        examples.append(Example((path,), sys.intern(os.path.dirname(file)), captions))
    return Listing(examples, ignored)


def _classes(folder: Path, examples: list[Example]) -> tuple:
    """The names of the classes in order, () for none. Raises UserError where only some have one."""
    names = {example.label for example in examples}
    if names == {''}:
        return ()
    if '' in names:
        loose = min(example.paths[0] for example in examples if example.label == '')
        raise UserError(
            f'{folder} holds both folders of images and images ({os.path.basename(loose)}): move '
            'these into a folder.'
        )
    return tuple(sorted(names))


def _check_known(folder: Path, classes: tuple, training: Path, known: tuple) -> None:
    """Refuses classes that training lacks."""
    unknown = sorted(str(name) for name in set(classes) - set(known))
    if unknown:
        raise UserError(
            f'{folder} has a class that {training} lacks: remove or rename {unknown[0]}.'
        )
