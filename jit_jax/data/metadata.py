"""metadata.jsonl beside images: the layout that Hugging Face calls imagefolder.

Each line is a JSON object with `file_name`, relative to the file itself, and perhaps `label`, a
name or a number, and `text`, a caption or a list of them. Other columns are ignored.
"""

import json
import os
from collections import Counter
from pathlib import Path

from jit_jax.data.listing import Example, Listing, images_in
from jit_jax.errors import UserError

NAME = 'metadata.jsonl'


def find(folder: Path, root: Path) -> Path | None:
    """The metadata.jsonl of a folder, or that of the data set's root; None without one."""
    for place in (folder, root):
        if (place / NAME).is_file():
            return place / NAME
    return None


def captions_in(path: Path) -> list[str]:
    """All captions of a metadata.jsonl, whose images need not be there.

    Raises UserError for a line that is no JSON object with `file_name`, or a `text` that is none.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
        if line.strip():
            found += _captions(path, number, _row(path, number, line))
    return found


def list_folder(path: Path, folder: Path) -> Listing:
    """The images below `folder` that the metadata.jsonl at `path` lists, sorted by their names.

    Raises:
      UserError: for a line that is no JSON object with `file_name`, names an image that is not
        there or was named before, for labels of which some are names and some numbers, or a `text`
        that is no text.
    """
    present, ignored = images_in(folder)
    if path.parent == folder:
        ignored[f'ending in {path.suffix}'] -= 1
    images = {os.path.normpath(os.path.join(folder, file)) for file in present}
    labels, captions, columns = {}, {}, Counter()
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
        if not line.strip():
            continue
        row = _row(path, number, line)
        file = os.path.normpath(os.path.join(path.parent, row['file_name']))
        if not _is_below(file, folder):
            continue
        if file not in images or file in labels:
            problem = 'named twice' if file in labels else 'not there, or not an image'
            raise UserError(f'{path}, line {number}: {file} is {problem}: remove or mend the line.')
        labels[file] = row['label'] if 'label' in row else ''
        captions[file] = _captions(path, number, row)
        columns.update(row.keys() - {'file_name', 'label', 'text'})
    _check_labels(path, labels)
    ignored['that metadata.jsonl does not list'] += len(images) - len(labels)
    for column in columns:
        ignored[f'values of {column!r} in metadata.jsonl'] += columns[column]
    examples = [Example((file,), labels[file], captions[file]) for file in sorted(labels)]
    return Listing(examples, ignored)


def _row(path: Path, number: int, line: str) -> dict:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f'{path}, line {number} is not JSON ({error}): mend it.') from error
    if not isinstance(row, dict) or not isinstance(row.get('file_name'), str):
        raise UserError(f'{path}, line {number} has no "file_name": add it.')
    return row


def _captions(path: Path, number: int, row: dict) -> tuple[str, ...]:
    """Raises UserError for a `text` that is neither a caption nor a list of them."""
    text = row['text'] if 'text' in row else []
    captions = [text] if isinstance(text, str) else text
    if not isinstance(captions, list) or not all(isinstance(one, str) for one in captions):
        raise UserError(
            f'{path}, line {number}: "text" is a caption or a list of captions: mend it.'
        )
    return tuple(captions)


def _is_below(file: str, folder: Path) -> bool:
    return file.startswith(os.path.normpath(folder) + os.sep)


def _check_labels(path: Path, labels: dict) -> None:
    kinds = {type(label) for label in labels.values()}
    all_alike = kinds <= {str} or kinds <= {int}
    if not all_alike or ('' in labels.values() and set(labels.values()) != {''}):
        raise UserError(
            f'{path}: "label" must be a name in every line, or a whole number in every line, or '
            'nowhere.'
        )
