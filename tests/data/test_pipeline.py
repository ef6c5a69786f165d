"""Batches that depend on the step number alone."""

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import batches, same

from jit_jax import data
from jit_jax.errors import UserError


class Numbers:
    """A source of `count` pairs whose pixels say which example it is and whether it is flipped."""

    def __init__(self, count):
        self.count, self.reads = count, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.reads += 1
        image = np.array([[[index % 256, index // 256, 0], [255, 255, 255]]], np.uint8)
        return {'image': image, 'label': np.int32(index), 'cond': image + np.uint8(0)}

    load = __getitem__
    intact_or_blank = __getitem__


def labels(count, steps, **options):
    return np.concatenate(
        [b['label'] for b in itertools.islice(batches(Numbers(count), **options), steps)]
    )


def test_a_batch():
    batch = next(batches(Numbers(10)))
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        'image': ((4, 1, 2, 3), 'uint8'),
        'label': ((4,), 'int32'),
        'cond': ((4, 1, 2, 3), 'uint8'),
    }


@given(
    count=st.integers(1, 40),
    rows=st.integers(1, 3),
    processes=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
    step=st.integers(0, 9),
    threads=st.integers(0, 2),
)
@settings(max_examples=25, deadline=None)
def test_any_processes_threads_and_start_give_the_same_global_batch(
    count, rows, processes, seed, step, threads
):
    options = {'batch_size': rows * processes, 'seed': seed}
    straight = list(itertools.islice(batches(Numbers(count), **options), step, step + 2))
    for process in range(processes):
        part = batches(
            Numbers(count),
            start_step=step,
            threads=threads,
            prefetch=1,
            process_index=process,
            process_count=processes,
            **options,
        )
        mine = slice(process * rows, (process + 1) * rows)
        for whole, got in zip(straight, part, strict=False):
            same(got, {key: value[mine] for key, value in whole.items()})
        part.close()


@given(st.integers(1, 30), st.integers(1, 7), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_every_epoch_holds_every_example_once(count, batch_size, seed):
    stream = labels(count, -(-3 * count // batch_size), batch_size=batch_size, seed=seed)
    for epoch in range(3):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_every_epoch_and_seed_has_its_own_order():
    epochs = [*labels(64, 48).reshape(3, 64), *labels(64, 48, seed=1).reshape(3, 64)]
    assert (
        len({tuple(epoch) for epoch in epochs}) == 6
    )  # nor is seed 1 merely one epoch ahead of seed 0
    assert all((epoch != np.arange(64)).mean() > 0.8 for epoch in epochs)
    np.testing.assert_array_equal(epochs[0], labels(64, 16, flip=False))


def test_flips_are_keyed_by_position_and_shared_by_pairs():
    stream = list(itertools.islice(batches(Numbers(16), batch_size=16), 64))
    flipped = np.array([batch['image'][:, 0, 0, 2] == 255 for batch in stream])
    assert 0.45 < flipped.mean() < 0.55
    for batch in stream:
        np.testing.assert_array_equal(batch['image'], batch['cond'])
    by_example = np.array(
        [flips[np.argsort(batch['label'])] for flips, batch in zip(flipped, stream, strict=True)]
    )
    assert (by_example.mean(0) > 0.2).all() and (
        by_example.mean(0) < 0.8
    ).all()  # each example both ways
    for batch in itertools.islice(batches(Numbers(16), flip=False), 16):
        assert (batch['image'][:, 0, 1] == 255).all()


def test_resuming_reads_nothing_twice():
    source = Numbers(1000)
    next(batches(source, start_step=10**7))
    assert source.reads == 4


def test_batches_are_made_ahead_of_need():
    class Watched(Numbers):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            if self.reads == 12:
                third.set()
            return example

    third = threading.Event()
    found = batches(Watched(100), threads=1, prefetch=2)
    next(found)
    assert third.wait(timeout=30)  # though nobody asked for the third batch
    found.close()


@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_eval_reads_once_in_order(count, rows, processes, threads):
    parts = [
        list(
            data.eval_batches(
                Numbers(count),
                batch_size=rows * processes,
                process_index=i,
                process_count=processes,
                threads=threads,
            )
        )
        for i in range(processes)
    ]
    assert {len(part) for part in parts} == {-(-count // (rows * processes))}
    whole = [
        {key: np.concatenate([b[key] for b in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    weight = np.concatenate([batch['weight'] for batch in whole])
    assert weight.dtype == np.float32 and list(weight) == [1] * count + [0] * (len(weight) - count)
    assert list(np.concatenate([batch['label'] for batch in whole])[:count]) == list(range(count))
    assert {len(batch['label']) for part in parts for batch in part} == {rows}


def test_refused_numbers():
    with pytest.raises(
        UserError, match='multiple of the number of processes, not 4 for process 0 of 3'
    ):
        batches(Numbers(4), process_count=3)
    with pytest.raises(UserError, match='positive'):
        data.eval_batches(Numbers(4), batch_size=0)
    with pytest.raises(UserError, match='seed'):
        batches(Numbers(4), seed=-1)


def test_a_batch_larger_than_the_data_is_said(caplog):
    stream = batches(Numbers(8), batch_size=64, flip=False)
    assert np.bincount(next(stream)['label']).tolist() == [8] * 8
    assert caplog.messages == [
        'A batch of 64 shows each of the 8 training images about 8 times: lower '
        '--config.batch_size, or add images.'
    ]
    batches(Numbers(8), batch_size=64, process_index=1, process_count=2)  # one process is enough
    batches(Numbers(64), batch_size=64)
    assert len(caplog.messages) == 1
