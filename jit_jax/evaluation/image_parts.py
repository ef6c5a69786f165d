"""Generated images, part by part, with their conditioning; kept in a folder for the next time."""

import dataclasses
import os
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from jit_jax import trained
from jit_jax.diffusion.generate import Settings, compiled_sampler, noise
from jit_jax.evaluation import held_out
from jit_jax.evaluation.kept_files import keep_images, kept_images, tag
from jit_jax.model.sharding import spread, whole_rows
from jit_jax.output.images import to_uint8

# Of the code that turns weights, settings and a seed into images; raised when it draws others.
VERSION = 1


class Part(NamedTuple):
    """Some of the images, with a row for each in every array."""

    images: np.ndarray  # uint8 [n, H, W, C], rounded as a PNG would be
    conditioning: dict  # keywords of `JiT.__call__`
    truth: np.ndarray | None  # uint8 [n, H, W, C], what condition images were made from


class ImageParts:
    """`num` images, `batch` at a time. Image i depends on (weights, settings, seed, i) alone.

    Labels go round the classes, so any multiple of their number is balanced. Conditions are those
    of held-out images, and when these are used up they come again, with other noise. test: the
    held-out `data.Source`, or None for a run without a condition.
    """

    def __init__(self, model: trained.Model, mesh, *, num: int, batch: int, seed: int, test):
        self.model, self.mesh, self.num, self.batch, self.seed = model, mesh, num, batch, seed
        self.test = test
        self._drawn = whole_rows(min(batch, num), mesh)  # all devices draw; the rest is dropped

    def starts(self) -> range:
        return range(0, self.num, self.batch)

    def part(self, params, settings: Settings, start: int, folder: str = '') -> Part:
        """Images from number `start` on, with weights that lie on the mesh. Collective.

        folder: where parts are kept, of these weights and settings and no others; '' for nowhere.
        """
        conditioning, truth = self._conditioning(start)
        images = self._images(params, settings, conditioning, start, folder)
        count = min(self.batch, self.num - start)
        return Part(*jax.tree.map(lambda rows: rows[:count], (images, conditioning, truth)))

    def _conditioning(self, start: int) -> tuple[dict, np.ndarray | None]:
        if self.model.config['condition']['kind'] == 'class':
            index = start + np.arange(self._drawn, dtype=np.int32)
            return {'label': index % self.model.net.num_classes}, None
        return held_out.examples(self.model.config, self._drawn, self.seed, self.test, start)

    def _images(self, params, settings, conditioning, start: int, folder: str) -> np.ndarray:
        if not folder:
            return self._draw(params, settings, conditioning, start)
        net, count = self.model.net, min(self.batch, self._drawn)
        path = os.path.join(folder, f'{start:06d}-{count}.npz')
        images = kept_images(path, (count, net.image_size, net.image_size, net.channels))
        if images is None:
            images = self._draw(params, settings, conditioning, start)[:count]
            keep_images(path, images)
        return images

    def _draw(self, params, settings, conditioning, start: int) -> np.ndarray:
        net, d = self.model.net, self.model.diffusion
        how = settings.sampler, settings.steps, settings.t_eps
        draw = compiled_sampler(net, d, *how, self.mesh, settings.skip)
        z = noise(jax.random.key(self.seed), start, self._drawn, net)
        z, conditioning = spread((z, conditioning), self.mesh)
        images = draw(params, z, conditioning, settings.guidance, settings.interval)
        return to_uint8(process_allgather(images, tiled=True))

    def folder(self, root: str, weights: str, settings: Settings) -> str:
        """The folder in `root` for images of weights (a hash), named by all that decides them."""
        config = self.model.config
        decides = {
            'version': VERSION,
            'weights': weights,
            'settings': dataclasses.asdict(settings),
            'seed': self.seed,
            'dtype': str(self.model.net.dtype),
            'held_out': 0 if self.test is None else len(self.test),
        }
        for section in ('model', 'diffusion', 'condition', 'data'):
            decides[section] = config.get(section)
        return os.path.join(root, tag(decides))
