"""From a source to batches. Global batch number k is a pure function of (source, batch size, seed, k).

Process p of P holds rows p·B/P … (p+1)·B/P − 1 of every global batch of B rows, so laying the processes' rows end to
end gives the same batch for any P.
"""

from collections.abc import Iterator

import numpy as np

from jit_jax.data.sources import DataError


def train_batches(
    source,
    *,
    batch_size,
    seed,
    start_step,
    flip,
    threads,
    prefetch,
    process_index=0,
    process_count=1,
) -> Iterator[dict[str, np.ndarray]]:
    """Iterates over shuffled batches without end, beginning with global batch `start_step`, in O(1).

    Every epoch is a fresh permutation of the source, and batches run across the border between two epochs.

    Args:
      source: a `Source`.
      batch_size: rows of the global batch, over all processes.
      seed: in [0, 2³²); together with the position in the stream it decides order and flips.
      start_step: the number of the first batch; resuming needs no other state.
      flip: whether each example is mirrored with probability one half (a pair always together).
      threads: how many batches are made at a time in the background; 0 makes each when it is asked for.
      prefetch: how many batches are kept ready, at least `threads`.

    Returns:
      An iterator over dicts of arrays with b = batch_size / process_count rows: 'image' uint8 [b, S, S, C], 'label'
      int32 [b], and for pairs 'cond' uint8 [b, S, S, C]. Its `close()` ends the threads.

    Raises:
      DataError: when the numbers do not fit together; the iterator, when too many examples are broken.
    """
    import grain

    rows = _rows(batch_size, process_index, process_count)
    if not 0 <= seed < 2**32:
        raise DataError(f'The seed must be from 0 to 2**32 - 1, not {seed}.')
    stream = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    if flip:
        stream = stream.random_map(_flip)  # keyed by the position in the stream
    return _read(
        stream.batch(rows, drop_remainder=True)[process_index::process_count][start_step:],
        threads,
        prefetch,
    )


def eval_batches(
    source, *, batch_size, process_index=0, process_count=1, threads=0, prefetch=2
) -> Iterator[dict[str, np.ndarray]]:
    """Iterates once over the source, in order, in batches of one size.

    Returns:
      An iterator over batches as in `train_batches`, plus 'weight' float32 [b]: 1 for an example, 0 for what fills the
      last batch or stands in for a broken example. So weights sum to the number of intact examples, for any batch
      size and number of processes.

    Raises:
      DataError: as in `train_batches`.
    """
    import grain

    rows = _rows(batch_size, process_index, process_count)
    padded = grain.MapDataset.range(-(-len(source) // batch_size) * batch_size).map(
        lambda i: _weighted(source, i)
    )
    return _read(
        padded.batch(rows, drop_remainder=True)[process_index::process_count], threads, prefetch
    )


def _rows(batch_size, process_index, process_count):
    if not 0 <= process_index < process_count or batch_size < 1 or batch_size % process_count:
        raise DataError(
            f'The batch size must be a positive multiple of the number of processes, not {batch_size} for process '
            f'{process_index} of {process_count}.'
        )
    return batch_size // process_count


def _read(batches, threads, prefetch):
    import grain

    # Each thread makes whole batches: stacking stays off the caller's thread. Without threads there is no buffer.
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=threads and max(threads, prefetch)
    )
    return iter(batches.to_iter_dataset(options))


def _flip(example, rng):
    if rng.random() < 0.5:
        return example
    return {key: value[:, ::-1] if np.ndim(value) else value for key, value in example.items()}


def _weighted(source, index):
    """Example `index` with its weight; past the end, and for a broken one, an intact example that weighs nothing."""
    example = source.load(index) if index < len(source) else None
    weight = np.float32(example is not None)
    return (example or source[min(index, len(source) - 1)]) | {'weight': weight}
