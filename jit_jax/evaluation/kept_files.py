"""What an evaluation leaves on the disk for the next one: to lose it costs time, never a number.

The first process writes. A file counts only where every process reads it whole.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable

import jax
import numpy as np
from absl import logging
from etils import epath

from jit_jax.errors import UserError
from jit_jax.evaluation.moments import load_stats
from jit_jax.evaluation.reference import Statistics
from jit_jax.model.array_files import open_npz
from jit_jax.output.files import save_npz
from jit_jax.training.processes import in_every_process


def keep(path: str, save: Callable, *content) -> None:
    """save(path, *content) in the first process; where it fails, a line in the log, once."""
    if jax.process_index():
        return
    try:
        save(path, *content)
    except OSError as error:
        reason = error.strerror or error
        message = '%s is not kept (%s); another evaluation computes it and its like again.'
        logging.log_first_n(logging.WARNING, message, 1, path, reason)


def keep_images(path: str, images: np.ndarray) -> None:
    keep(path, _save_images, images)


def _save_images(path: str, images: np.ndarray) -> None:
    save_npz(path, arr_0=images)


def kept_images(path: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Images uint8 of this shape; None where a process finds others or none. Collective."""
    images = _read_images(path)
    fits = images is not None and images.shape == shape and images.dtype == np.uint8
    return images if in_every_process(fits) else None


def _read_images(path: str) -> np.ndarray | None:
    try:
        content = io.BytesIO(epath.Path(path).read_bytes())
        with open_npz(content) as file:
            return file['arr_0']
    except (OSError, UserError, KeyError):
        return None


def kept_statistics(path: str, width: int) -> Statistics | None:
    """Statistics of so many features; None where a process finds others or none. Collective."""
    try:
        kept = Statistics(*load_stats(path))
    except UserError:
        kept = None
    return kept if in_every_process(kept is not None and len(kept.mean) == width) else None


def tag(what: dict) -> str:
    """A short name of what JSON can say."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def file_hash(path: str) -> str:
    """The SHA-256 of a file's content."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def weights_hash(params) -> str:
    """The SHA-256 of a tree of arrays, in whatever file they lie."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        leaf = np.asarray(leaf)
        digest.update(f'{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}'.encode())
        digest.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    return digest.hexdigest()


def statistics_file(folder: str, reference: str, sources: list, config: dict, network: str) -> str:
    """Where statistics of a reference are kept; network: the file of Inception's weights."""
    about = {
        'reference': reference,
        'images': [len(source) for source in sources],
        'data': config.get('data'),
        'image_size': config['model']['image_size'],
        'network': file_hash(network),
    }
    return os.path.join(folder, f'reference-{tag(about)}.npz')
