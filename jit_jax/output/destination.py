"""Where a command writes, and how drawn images go there: a picture of them all, an .npz, or a
folder with a .png each.
"""

import contextlib
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from etils import epath

from jit_jax.errors import UserError
from jit_jax.output.files import remote
from jit_jax.output.images import save_png

GRID, ARCHIVE, FOLDER = 'grid', 'archive', 'folder'


def kind(path: str) -> str | None:
    """GRID for a .png, ARCHIVE for an .npz, FOLDER for what ends in / or is one; else None."""
    if path.endswith(('/', os.sep)) or epath.Path(path).is_dir():
        return FOLDER
    return {'.png': GRID, '.npz': ARCHIVE}.get(os.path.splitext(path)[1])


def check_place(path: epath.PathLike, flag: str) -> None:
    """Raises UserError where more than one of the folders that lead to `path` is missing.

    A command makes one folder for what it writes, as `mkdir` does; a tree of new folders is a word
    mistyped. Makes nothing.
    """
    path = os.fspath(path)
    if remote(path):
        return
    missing = [folder for folder in Path(path).parents if not os.path.exists(folder)]
    if len(missing) > 1:
        raise UserError(
            f'{flag}: there is no folder {missing[-1]}; make it, or name another place than {path}.'
        )


def check_writable(path: str, flag: str) -> None:
    """Makes the folder that `path` goes into. Raises UserError where it cannot be written to, and
    as `check_place`.
    """
    check_place(path, flag)
    folder = epath.Path(path) if kind(path) == FOLDER else epath.Path(path).parent
    probe = folder / f'.{os.getpid()}.tmp'
    with writing(folder, flag):
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b'')
        probe.unlink()


@contextlib.contextmanager
def writing(path, flag: str) -> Iterator[None]:
    """Within it, a file that cannot be written is a UserError that names the flag."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f'{flag}: {path} cannot be written ({error.strerror or error}); make room, or name '
            'another place.'
        ) from error


class Grid:
    """One .png, written at the end. picture: uint8 [N, H, W, C] → uint8 [h, w, 3]."""

    def __init__(self, path: str, picture: Callable[[np.ndarray], np.ndarray]):
        self.path, self.picture, self.parts = path, picture, []

    def add(self, images: np.ndarray) -> None:
        self.parts.append(images)

    def close(self) -> None:
        save_png(self.path, self.picture(np.concatenate(self.parts)))


class Folder:
    """A .png each, 000000.png and so on, written as they come."""

    def __init__(self, path: str):
        self.path, self.count = path, 0

    def add(self, images: np.ndarray) -> None:
        for image in images:
            pixels = image[..., 0] if image.shape[-1] == 1 else image
            save_png(os.path.join(self.path, f'{self.count:06d}.png'), pixels)
            self.count += 1

    def close(self) -> None:
        pass


class Archive:
    """An .npz with `arr_0`, uint8 [N, H, W, C], as ADM's evaluator reads it.

    Written as images come, so that memory does not grow; at its name it is whole or not there.
    """

    def __init__(self, path: str, num: int):
        self.path, self.num = epath.Path(path), num
        name = self.path.name if remote(path) else f'{self.path.name}.tmp'
        self.part = self.path.parent / name
        self.zip = self.entry = None

    def add(self, images: np.ndarray) -> None:
        if self.zip is None:
            self._begin(images.shape[1:])
        self.entry.write(np.ascontiguousarray(images))

    def _begin(self, shape: tuple[int, ...]) -> None:
        self.file = self.part.open('wb')
        self.zip = zipfile.ZipFile(self.file, 'w')
        self.entry = self.zip.open('arr_0.npy', 'w', force_zip64=True)
        header = {'descr': '|u1', 'fortran_order': False, 'shape': (self.num, *shape)}
        np.lib.format.write_array_header_1_0(self.entry, header)

    def close(self) -> None:
        self.entry.close()
        self.zip.close()
        self.file.close()
        if self.part != self.path:
            os.replace(self.part, self.path)
