"""Arrays in files that a user brings: `.npz` and PyTorch's `.pth`. No pickled code is ever run."""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jit_jax.errors import UserError

_UNREADABLE = (
    ValueError,
    OSError,
    EOFError,
    TypeError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


@contextlib.contextmanager
def open_npz(path) -> Iterator[np.lib.npyio.NpzFile]:
    """An open `.npz`. Raises UserError where it, or an array read within `with`, is unreadable."""
    try:
        with np.load(path, allow_pickle=False) as file:
            yield file
    except UserError:
        raise
    except _UNREADABLE:
        raise UserError(f'{path} is not a readable .npz of plain arrays.') from None


def read_state_dict(path, what: str, hint: str) -> dict[str, np.ndarray]:
    """The arrays of a `.pth` state dict or of an `.npz`, by name.

    what and hint are words for messages: what should be there, and how to get it. Raises UserError
    where there is no file, where it is damaged, and for a `.pth` without PyTorch.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'There are no {what} at {path}; {hint}.')
    if path.suffix == '.pth':
        return _read_pth(path)
    if path.suffix == '.npz':
        with open_npz(path) as file:
            return dict(file)
    raise UserError(f'{what} are a .pth or an .npz file, not {path}.')


def _read_pth(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise UserError(f'Reading {path} needs PyTorch: pip install torch.') from None
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
        return {name: tensor.numpy() for name, tensor in state.items()}
    except Exception as error:  # noqa: BLE001 a damaged file makes torch.load raise almost anything
        kind = type(error).__name__
        raise UserError(f'{path} is not a readable PyTorch state dict: {kind}.') from None
