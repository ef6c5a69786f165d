"""A stop that loses nothing: Ctrl-C and SIGTERM as a wish that the loop reads."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

STDERR = 2
SAVING = b'\nStopping: the step is saved first. Again, and it stops at once.\n'


class Interrupted(Exception):
    """A stop was asked for within `Stop.interrupting`."""


class Stop:
    """Turns Ctrl-C and SIGTERM into a wish that the loop reads after each step.

    The second signal does what it does without this class: Ctrl-C is a KeyboardInterrupt, SIGTERM
    ends the process. Several processes must stop at one step; there JAX's own service catches
    SIGTERM and names the step.
    """

    def __init__(self):
        self.signal = ''  # the name of the signal that asked to stop
        self._several = jax.process_count() > 1
        self._may_interrupt = False
        self._previous = {}

    def __enter__(self):
        if not self._several and threading.current_thread() is threading.main_thread():
            for kind in (signal.SIGINT, signal.SIGTERM):
                self._previous[kind] = signal.signal(kind, self._ask)
        return self

    def __exit__(self, *error):
        self._restore()

    @property
    def asked(self) -> bool:
        """Whether to stop; of several processes all have the same answer, that of `after`."""
        return bool(self.signal)

    def after(self, step: int) -> bool:
        """Whether to stop after `step`; the same answer in every process, all of which call it for
        every step.
        """
        if self._several and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM.name
        return self.asked

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Within it, a single process does not finish what it is doing when a stop is asked for: it
        leaves the block.

        For work that may be lost and can take longer than the seconds between SIGTERM and the kill.
        """
        try:
            self._may_interrupt = True
            yield
            self._may_interrupt = (
                False  # within the `try`, so that a signal just before it is caught
            )
        except Interrupted:
            pass
        finally:
            self._may_interrupt = False

    def _ask(self, kind, frame):
        self.signal = signal.Signals(kind).name
        self._restore()
        # Not `print`, which a signal may have interrupted.
        os.write(STDERR, SAVING)
        if self._may_interrupt:
            raise Interrupted

    def _restore(self):
        for kind, handler in self._previous.items():
            signal.signal(kind, handler)
        self._previous = {}
