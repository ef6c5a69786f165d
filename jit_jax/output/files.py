"""Files that are whole or not there, on a disk or in an object store."""

import io
import os

import numpy as np
from etils import epath


def remote(path) -> bool:
    """Whether a path is in an object store, gs:// and the like, where nothing is appended or renamed."""
    return '://' in os.fspath(path)


def write_whole(path, content: bytes) -> None:
    """Writes a file, and its folder, whole or not at all."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path if remote(path) else path.parent / f'{path.name}.tmp'
    part.write_bytes(content)
    if part != path:
        os.replace(part, path)


def save_npz(path, **arrays) -> None:
    """Writes arrays by name, whole or not at all."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_whole(path, content.getvalue())


def append(path, line: str) -> None:
    """Appends a line to a file."""
    path = epath.Path(path)
    if remote(path):
        path.write_text((path.read_text() if path.exists() else '') + line)
    else:
        with path.open('a') as file:
            file.write(line)
