"""FID, KID, Inception score, precision and recall of generated images, computed over a mesh."""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from jit_jax import data
from jit_jax.errors import UserError
from jit_jax.evaluation import distances, inception
from jit_jax.evaluation.image_scores import as_rgb
from jit_jax.evaluation.kept_files import keep, kept_statistics
from jit_jax.evaluation.moments import Moments, save_stats
from jit_jax.evaluation.reference import Statistics
from jit_jax.model.sharding import replicated, spread, to_device
from jit_jax.training.processes import every_process

SCORES = ('fid', 'is', 'kid', 'precision_recall')
WITH_REFERENCE = ('fid', 'kid', 'precision_recall')
WITH_IMAGES = ('kid', 'precision_recall')  # of the reference: these need every row of both sides
WIDTH = 2048  # of the features that are compared
KID_SUBSET = 1000  # rows, at most


def open_network(path: str, mesh) -> Callable:
    """The FID Inception on a mesh: global images uint8 [B, H, W, 1 or 3] → features by name."""
    weights = every_process(partial(inception.load_weights, path))
    weights = jax.device_put(weights, replicated(mesh))
    run = jax.jit(inception.features)

    def features(images) -> dict[str, jax.Array]:
        return run(weights, as_rgb(images))

    return features


class InceptionMetric:
    """Some of SCORES. Inception runs on rows split over the mesh, and each process adds up its own.

    Args:
      names: which of SCORES.
      network: as `open_network` returns it.
      reference: Statistics or sources of images, as `open_reference` returns them; `is` needs none.
      mesh: where the network's weights lie.
      rows: how many images the network takes at a time, a number that the mesh divides.
      threads: that read the images of the reference.
      cache: a file in which statistics of a reference with images are kept, '' for none.

    Raises UserError for statistics of another network.
    """

    def __init__(self, names, network, reference, mesh, *, rows, threads=0, cache=''):
        if isinstance(reference, Statistics) and len(reference.mean) != WIDTH:
            raise UserError(
                f'--reference holds statistics of {len(reference.mean)} features, and Inception '
                f'has {WIDTH}; take statistics of its last pooled layer.'
            )
        self.names, self.network, self.reference = set(names), network, reference
        self.mesh, self.rows, self.threads, self.cache = mesh, rows, threads, cache
        self._with_images = bool(self.names & set(WITH_IMAGES))
        self._real = None  # (Statistics, features or None), learnt once
        self.reset()

    def reset(self) -> None:
        kept = [str(WIDTH)] if self._with_images else []
        if 'is' in self.names:
            kept.append('logits_unbiased')
        self._generated = Features(kept)

    def update(self, images, conditioning: dict, truth) -> None:
        """images: uint8 [n, H, W, C], the same in every process; the rest plays no part."""
        for start in range(0, len(images), self.rows):
            part = images[start : start + self.rows]
            index = np.arange(self.rows)
            padded = {'image': part[index % len(part)], 'weight': index < len(part)}
            self._add(self._generated, spread(padded, self.mesh))

    def compute(self) -> dict[str, float]:
        """Collective."""
        found = {}
        if 'is' in self.names:
            logits = self._generated.rows('logits_unbiased')
            found['is'], found['is_std'] = distances.inception_score(logits)
        if self.names & set(WITH_REFERENCE):
            found |= self._compared(*self.real())
        return found

    def _compared(self, real: Statistics, real_rows) -> dict[str, float]:
        found = {}
        if 'fid' in self.names:
            found['fid'] = distances.frechet(*real, *self._generated.statistics())
        if 'kid' in self.names:
            rows = self._generated.rows(str(WIDTH))
            size = min(KID_SUBSET, len(rows), len(real_rows))
            found['kid'], found['kid_std'] = distances.kid(real_rows, rows, subset_size=size)
        if 'precision_recall' in self.names:
            rows = self._generated.rows(str(WIDTH))
            found['precision'], found['recall'] = distances.precision_recall(real_rows, rows)
        return found

    def real(self) -> tuple[Statistics, np.ndarray | None]:
        """Statistics of the reference, and its features [N, 2048] or None. Collective."""
        if self._real is None:
            self._real = self._learn()
        return self._real

    def _learn(self) -> tuple[Statistics, np.ndarray | None]:
        if isinstance(self.reference, Statistics):
            return self.reference, None
        if self.cache and not self._with_images:
            kept = kept_statistics(self.cache, WIDTH)
            if kept:
                return kept, None
        features = Features([str(WIDTH)] if self._with_images else [])
        for source in self.reference:
            self._add_source(features, source)
        statistics = features.statistics()
        if self.cache:
            keep(self.cache, save_stats, *statistics)
        return statistics, features.rows(str(WIDTH)) if self._with_images else None

    def _add_source(self, features: 'Features', source) -> None:
        batches = data.eval_batches(
            source,
            batch_size=self.rows,
            threads=self.threads,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        while True:
            # There may be images that one process cannot read.
            batch = every_process(partial(next, batches, None))
            if batch is None:
                return
            batch = {'image': batch['image'], 'weight': batch['weight'] > 0}
            self._add(features, to_device(batch, self.mesh))

    def _add(self, features: 'Features', batch: dict) -> None:
        features.add(self.network(batch['image']), batch['weight'])


class Features:
    """Moments of the rows of all processes, and every row of the features that are kept by name."""

    def __init__(self, kept):
        self._moments = Moments(WIDTH)  # of this process's rows
        self._kept = {name: [] for name in kept}

    def add(self, found: dict, weight) -> None:
        """Features [B, D] by name, and bool [B], False for a row that pads: global. Collective."""
        self._moments.update(own_rows(found[str(WIDTH)]), own_rows(weight))
        if self._kept:
            counts = process_allgather(weight, tiled=True)
        for name, parts in self._kept.items():
            parts.append(process_allgather(found[name], tiled=True)[counts])

    def rows(self, name: str) -> np.ndarray:
        """[N, D], of all processes, in order."""
        return np.concatenate(self._kept[name])

    def statistics(self) -> Statistics:
        """Of the rows of all processes. Collective."""
        total = self._moments.across_hosts()
        return Statistics(total.mean, total.covariance)


def own_rows(array) -> np.ndarray:
    """The rows of a global array that lie with this process, each once."""
    parts = [np.asarray(shard.data) for shard in array.addressable_shards if shard.replica_id == 0]
    return np.concatenate(parts or [np.zeros((0, *array.shape[1:]))])
