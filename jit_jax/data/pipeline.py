"""From a source to batches. Global batch k is a pure function of (source, batch size, seed, k).

Process p of P holds rows p·B/P … (p+1)·B/P − 1 of every global batch of B rows, so laying the
processes' rows end to end gives the same batch for any P.
"""

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
from absl import logging

from jit_jax.errors import UserError


def train_batches(
    source,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    flip: bool,
    threads: int,
    prefetch: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Iterates over shuffled batches without end from global batch `start_step` on, in O(1).

    Every epoch is a fresh permutation of the source, and batches run across the border between two
    epochs. A batch larger than the source repeats images, which is said once.

    Args:
      source: a `Source`, or anything with its length and items.
      batch_size: rows of the global batch, over all processes.
      seed: in [0, 2³²); together with the position in the stream it decides order and flips.
      start_step: the number of the first batch; resuming needs no other state.
      flip: whether each example is mirrored with probability one half (a pair always together).
      threads: how many batches are made at a time in the background; 0 makes each when asked for.
      prefetch: how many batches are kept ready, at least `threads`.
      process_index: p, whose rows are returned.
      process_count: P.

    Returns:
      An iterator over dicts of arrays with b = batch_size / process_count rows: 'image' uint8
      [b, S, S, C], 'label' int32 [b], for pairs 'cond' uint8 [b, S, S, C], and where the source has
      captions one of each row's, 'tokens' uint8 [b, m] or float16 [b, m, E] and 'token_count' int32
      [b]. Its `close()`
      ends the threads.

    Raises:
      UserError: when the numbers do not fit; the iterator, when too many examples are broken.
    """
    import grain

    rows = _rows(batch_size, process_index, process_count)
    if not 0 <= seed < 2**32:
        raise UserError(f'--config.seed must be from 0 to 2**32 - 1, not {seed}.')
    if batch_size > len(source) and process_index == 0:
        _warn_of_repeats(len(source), batch_size)
    stream = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    if flip:
        stream = stream.random_map(_flip)  # keyed by the position in the stream
    if getattr(source, 'tokens', 0):
        stream = stream.random_map(partial(_any_caption, source))  # as is this
    batches = stream.batch(rows, drop_remainder=True)
    return _read(batches[process_index::process_count][start_step:], threads, prefetch)


def eval_batches(
    source,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 0,
    prefetch: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
    """Iterates once over the source, in order, in batches of one size.

    Args:
      source: a `Source`, or anything with its length, `load` and `intact_or_blank`.
      batch_size, process_index, process_count, threads, prefetch: as in `train_batches`.

    Returns:
      An iterator over batches as in `train_batches`, plus 'weight' float32 [b]: 1 for an example,
      0 for what fills the last batch or stands in for a broken example. So weights sum to the
      number of intact examples, for any batch size and number of processes. Of several captions
      example i shows number i.

    Raises:
      UserError: as in `train_batches`.
    """
    import grain

    rows = _rows(batch_size, process_index, process_count)
    whole_batches = math.ceil(len(source) / batch_size)
    indices = grain.MapDataset.range(whole_batches * batch_size)
    batches = indices.map(partial(_weighted, source)).batch(rows, drop_remainder=True)
    return _read(batches[process_index::process_count], threads, prefetch)


def _warn_of_repeats(images: int, batch_size: int) -> None:
    logging.warning(
        'A batch of %d shows each of the %d training images about %.3g times: lower '
        '--config.batch_size, or add images.',
        batch_size,
        images,
        batch_size / images,
    )


def _rows(batch_size, process_index, process_count):
    """The rows of one process."""
    if not 0 <= process_index < process_count or batch_size < 1 or batch_size % process_count:
        raise UserError(
            'The batch size must be a positive multiple of the number of processes, not '
            f'{batch_size} for process {process_index} of {process_count}.'
        )
    return batch_size // process_count


def _read(batches, threads, prefetch):
    """Iterates over batches that `threads` threads make ahead of need."""
    import grain

    # Each thread makes whole batches, so stacking stays off the caller's thread.
    ahead = max(threads, prefetch) if threads else 0
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    return iter(batches.to_iter_dataset(options))


def _flip(example, rng):
    """Mirrors all images of an example, or none."""
    if rng.random() < 0.5:
        return example
    is_image = {key: np.ndim(value) == 3 for key, value in example.items()}
    return {key: value[:, ::-1] if is_image[key] else value for key, value in example.items()}


def _any_caption(source, example, rng):
    """One of the captions of an example, each as often."""
    count = len(example['captions' if 'captions' in example else 'tokens'])
    return source.with_caption(example, rng.integers(count))


def _weighted(source, index):
    """Example `index`, weighing 1; past the end and for a broken one, another that weighs 0."""
    example, weight = source.load(index) if index < len(source) else None, 1
    if example is None:
        example, weight = source.intact_or_blank(min(index, len(source) - 1)), 0
    if getattr(source, 'tokens', 0):
        example = source.with_caption(example, index)
    return example | {'weight': np.float32(weight)}
