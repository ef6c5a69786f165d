"""What generated images are compared with: statistics, images in a file or a folder, or a split."""

import os
from typing import NamedTuple

import numpy as np

from jit_jax import data
from jit_jax.errors import UserError
from jit_jax.evaluation.moments import load_stats
from jit_jax.model.array_files import open_npz
from jit_jax.recipe import build


class Statistics(NamedTuple):
    """Moments of features, float64 [D] and [D, D]."""

    mean: np.ndarray
    covariance: np.ndarray


def open_reference(name: str, config: dict, *, with_images: bool) -> Statistics | list:
    """What --reference names: Statistics, or a list of sources of images.

    Args:
      name: an `.npz` with `mu` and `sigma` or with images as `arr_0` (ADM's reference batches have
        both), a folder of images, or a split of the run's own data.
      config: the run's; it may have no data.
      with_images: whether statistics will not do.

    Raises UserError for a name that is none of these, and for files that cannot be read or hold
    something else.
    """
    if name.endswith('.npz') and os.path.exists(name):
        return _open_file(name, with_images=with_images)
    if os.path.isdir(name):
        model = config['model']
        shape = {'image_size': model['image_size'], 'channels': model['channels']}
        return [
            data.open_source('folder', path=name, split=split, **shape)
            for split in ('train', 'test')
        ]
    if os.sep in name or name.endswith('.npz') or 'data' not in config:
        raise UserError(
            f'--reference: there is no {name}; name an .npz, a folder of images, or a split of '
            'the data set.'
        )
    return [build.source(config, split=name)]


def _open_file(path: str, *, with_images: bool) -> Statistics | list:
    with open_npz(path) as file:
        has_images, has_statistics = 'arr_0' in file.files, 'mu' in file.files
        if has_images and (with_images or not has_statistics):
            return [data.from_arrays(_checked_images(file['arr_0'], path))]
    if with_images:
        raise UserError(
            f'--reference: {path} holds statistics; kid and precision_recall need images.'
        )
    return Statistics(*load_stats(path))


def _checked_images(images: np.ndarray, path: str) -> np.ndarray:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(
            f'--reference: images in {path} must be uint8 [N, H, W, 3], not {images.dtype} '
            f'{list(images.shape)}.'
        )
    return images
