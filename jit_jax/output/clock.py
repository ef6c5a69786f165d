"""How fast training goes: images a second, the share of the machine's best, the share of time spent
on data.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import NamedTuple


class Reading(NamedTuple):
    """A stopwatch and a counter, both in seconds."""

    trained: float  # wall time without pauses
    waited: float  # of it, waiting for data


class Clock:
    """Steps over the wall time in which they could run, from one line of metrics to the next.

    The loop reads the numbers of a step while the next one runs, and before a checkpoint of two
    steps at once; so the moment of reading says little. What counts is when a step ended: at the
    latest when it was read, or earlier, when the next one was sent to a device that had nothing
    else to do. The next step cannot have begun before that.

        clock.sent(idle=…)       just before a step goes to the device
        clock.finished(step)     just after its numbers were read
        clock.lap(step, …)       the rates up to that step

    ideal: seconds that an image would take at the rate of plain matrix products; `mfu` is the share
    of it reached.
    """

    def __init__(self, step: int, ideal: float = 0.0):
        self.ideal = ideal
        self.last_lap = self.last_sent = step
        self.paused = self.waited = 0.0
        self.took: dict[str, float] = {}  # seconds of the latest pause by its name
        self.ends = {step: self._read()}  # of the last lap's step and those after it

    def sent(self, *, idle: bool) -> None:
        """The next step is about to be sent.

        idle: the device has finished all that was sent before.
        """
        if idle:
            self.ends.setdefault(self.last_sent, self._read())
        self.last_sent += 1

    def finished(self, step: int) -> None:
        """The numbers of `step` are here."""
        self.ends.setdefault(step, self._read())

    def lap(self, step: int, batch_size: int) -> dict[str, float]:
        """images_per_second, mfu and data_wait (a share of 1) of the steps since the last lap, up
        to `step`.
        """
        self.finished(step)
        begin, end = self.ends[self.last_lap], self.ends[step]
        elapsed = max(end.trained - begin.trained, 1e-9)
        speed = (step - self.last_lap) * batch_size / elapsed
        self.last_lap = step
        self.ends = {at: reading for at, reading in self.ends.items() if at >= step}
        return {
            'images_per_second': speed,
            'mfu': speed * self.ideal,
            'data_wait': (end.waited - begin.waited) / elapsed,
        }

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around waiting for data."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    @contextlib.contextmanager
    def pause(self, name: str) -> Iterator[None]:
        """Around samples, checkpoints and evaluation, which are not training.

        While a step is on its way to its numbers, the device trains, whatever the host does: such a
        pause counts as training. Read all steps before one.
        """
        training = self.last_sent not in self.ends
        began = time.perf_counter()
        yield
        self.took[name] = time.perf_counter() - began
        if not training:
            self.paused += self.took[name]

    def trained(self) -> float:
        """The time without pauses, in seconds from an arbitrary start."""
        return self._read().trained

    def _read(self) -> Reading:
        return Reading(time.perf_counter() - self.paused, self.waited)
