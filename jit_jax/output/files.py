"""Files that are whole or not there, on a disk or in an object store."""

import io
import os

import numpy as np
from etils import epath


def remote(path: epath.PathLike) -> bool:
    """Whether a path is in an object store, gs:// and the like, where nothing is appended or
    renamed.
    """
    return '://' in os.fspath(path)


def write_whole(path: epath.PathLike, content: bytes) -> None:
    """Writes a file, and its folder, whole or not at all.

    Raises OSError, for example on a full disk; a file that was there before is then still there,
    and nothing beside it.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if remote(path):
        path.write_bytes(content)
        return
    part = path.parent / f'{path.name}.tmp'
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def save_npz(path: epath.PathLike, **arrays) -> None:
    """Writes arrays by name, whole or not at all."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_whole(path, content.getvalue())


def append(path: epath.PathLike, text: str) -> None:
    """Appends text to a file, all of it or nothing. Raises OSError, for example on a full disk."""
    path = epath.Path(path)
    if remote(path):
        before = path.read_text() if path.exists() else ''
        path.write_text(before + text)
        return
    with open(path, 'ab', buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            _write_all(file, text.encode())
        except OSError:
            file.truncate(end)
            raise


def _write_all(file: io.RawIOBase, content: bytes) -> None:
    """An unbuffered write may take only a part, on a disk that is nearly full; the next one then
    raises OSError.
    """
    while content:
        content = content[file.write(content) :]
