"""Rates of training in a simulated run: a device that takes a known time, and a loop like ours."""

import collections

import numpy as np
import pytest

from jit_jax.output import clock
from jit_jax.output.clock import Clock

BATCH = 8


@pytest.fixture
def now(monkeypatch):
    """The time, which stands still unless a test moves it."""
    time = [100.0]
    monkeypatch.setattr(clock.time, 'perf_counter', lambda: time[0])
    return time


def test_only_training_counts(now):
    one = Clock(10, ideal=0.02)  # seconds an image
    now[0] += 3
    with one.waiting():
        now[0] += 1
    with one.pause('draw'):
        now[0] += 100
    assert one.lap(20, 8) == pytest.approx(
        {'images_per_second': 10 * 8 / 4, 'mfu': 0.4, 'data_wait': 0.25}
    )
    now[0] += 2
    assert one.lap(21, 8) == pytest.approx(
        {'images_per_second': 4, 'mfu': 0.08, 'data_wait': 0}
    )  # nothing carried over


def simulate(now, steps, *, compute, data, log_every, pauses, at_once=False):
    """Laps [(step, rates)] of a loop as `jit_jax.loop`'s, on a device that takes `compute` seconds
    a step.

    data: seconds that the next batch takes. pauses: step → seconds of a preview or a checkpoint
    after it. at_once: sending a step returns when it is done, as some CPU programs do.
    """
    one, in_flight, laps, free = Clock(0), collections.deque(), [], now[0]

    def read():
        step, end = in_flight.popleft()
        now[0] = max(now[0], end)
        one.finished(step)
        if step % log_every == 0:
            laps.append((step, one.lap(step, BATCH)))

    for step in range(1, steps + 1):
        one.sent(idle=not in_flight or in_flight[-1][1] <= now[0])
        free = max(free, now[0]) + compute
        in_flight.append((step, free))
        if at_once:
            now[0] = free
        if len(in_flight) > 1:
            read()
        with one.waiting():
            now[0] += data
        if step in pauses:
            read()
            with one.pause('draw'):
                now[0] += pauses[step]
    return laps


@pytest.mark.parametrize('at_once', [False, True])
@pytest.mark.parametrize('data', [0.0, 0.05, 0.95, 1.05, 3.0])
@pytest.mark.parametrize('log_every', [1, 2, 5])
@pytest.mark.parametrize('every', [1, 2, 3, 5, 7])
def test_no_rate_is_above_what_is_possible_and_none_is_lost(now, at_once, data, log_every, every):
    pauses = {step: 0.01 if step % 2 else 50.0 for step in range(every, 100, every)}
    laps = simulate(
        now, 60, compute=1.0, data=data, log_every=log_every, pauses=pauses, at_once=at_once
    )
    rates = np.array([rates['images_per_second'] for _, rates in laps])
    assert rates.max() <= BATCH / 1.0 * 1.0001
    worst = BATCH / (1.0 + data)  # nothing overlaps
    assert rates[1:].min() >= worst * 0.9999
    assert all(0 <= rates['data_wait'] <= 1.0001 for _, rates in laps)
    seconds = sum(log_every * BATCH / rate for rate in rates)
    assert 60 - log_every <= seconds * 1.0001 and seconds <= 60 * (1 + data) * 1.0001


def test_a_device_that_is_kept_busy_shows_its_own_rate(now):
    laps = simulate(now, 40, compute=1.0, data=0.3, log_every=2, pauses={11: 40.0, 20: 5.0})
    for step, rates in laps:
        assert rates['images_per_second'] == pytest.approx(
            BATCH / 1.15 if step in (12, 22) else BATCH / 1.0, rel=0.16
        )


def test_a_pause_with_a_step_on_its_way_is_training(now):
    one = Clock(0)
    one.sent(idle=True)
    with one.pause('draw'):
        now[0] += 4
    one.finished(1)
    assert one.lap(1, 8)['images_per_second'] == pytest.approx(2)
