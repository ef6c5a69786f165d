"""Where `jit-jax embed` finds captions: beside images, in a metadata.jsonl, or in a text file."""

from pathlib import Path

from jit_jax.data import metadata
from jit_jax.data.folders import open_folder
from jit_jax.errors import UserError


def read(path: Path) -> list[str]:
    """All captions at a path, as often as they occur.

    path: a folder of images, as for training; a metadata.jsonl, whose images need not be there; or
    a .txt with a caption in each line. Raises UserError for anything else, and for no captions.
    """
    path = path.expanduser()
    if path.is_dir():
        found = _beside_images(path)
    elif not path.is_file():
        raise UserError(
            f'There is no {path}; --captions names a folder of images, a metadata.jsonl, or a .txt.'
        )
    elif path.suffix == '.jsonl':
        found = metadata.captions_in(path)
    elif path.suffix == '.txt':
        found = _lines(path)
    else:
        raise UserError(
            f'--captions names a folder of images, a metadata.jsonl, or a .txt; got {path}.'
        )
    if not any(map(str.strip, found)):
        raise UserError(f'{path} holds no captions: write some, or name another place.')
    return found


def _beside_images(folder: Path) -> list[str]:
    found = []
    for split in ('train', 'test'):
        records = open_folder(folder, split, 'spread')
        for i in range(records.count if records.captions else 0):
            found += records.captions.read(i)
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding='utf-8').splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f'{path} cannot be read as text ({error}): save it in UTF-8.') from error
