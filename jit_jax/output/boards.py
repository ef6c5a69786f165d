"""TensorBoard and Weights & Biases show a run while it trains and never stop it.

A board is written by a thread of its own. The training loop hands a line over and goes on; what a
board cannot take, because its disk is full, its server is gone or it is slow, is left out.
`metrics.jsonl` has every number all the same.
"""

import importlib.util
import os
import queue
import threading
import time
from collections.abc import Callable
from functools import partial

from jit_jax.errors import UserError
from jit_jax.output.sinks import Line, Sink, TensorBoard, WeightsAndBiases
from jit_jax.output.warnings_once import Trouble

ROOM = 256  # lines that may wait for a slow board
RETRY_SECONDS = 30.0  # until a board that failed is opened again
PATIENCE = 10.0  # seconds that the end of a run waits for each board


class Board:
    """A bounded queue and the thread that empties it into a sink.

    name: for people. open_sink: opens the sink, and opens it again after it failed. trouble: where
    failures are said.
    """

    def __init__(self, name: str, open_sink: Callable[[], Sink], trouble: Trouble):
        self.name, self.open_sink, self.trouble = name, open_sink, trouble
        self.lines = queue.Queue(ROOM)
        self.sink = None
        self.next_try = 0.0
        self.is_slow = False
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    def put(self, line: Line) -> None:
        """Hands a line over; returns at once, always."""
        try:
            self.lines.put_nowait(line)
        except queue.Full:
            self._say_slow()

    def close(self) -> None:
        """Writes what waits, for PATIENCE seconds at most."""
        deadline = time.monotonic() + PATIENCE
        try:
            self.lines.put(None, timeout=PATIENCE)
        except queue.Full:
            pass
        self.thread.join(max(deadline - time.monotonic(), 0))
        if self.thread.is_alive():
            self._say_slow()

    def _say_slow(self) -> None:
        """Once in a run: a slow board takes a line now and then, and would be said at each."""
        if not self.is_slow:
            self.is_slow = True
            self.trouble.say(f'{self.name} is too slow for this run; lines are left out of it.')

    def _work(self) -> None:
        self._attempt(None)
        while True:
            line = self.lines.get()
            if line is None:
                break
            self._attempt(line)
        self._close_sink()

    def _attempt(self, line: Line | None) -> None:
        """Writes a line, into a sink that is opened where need be.

        After a failure that is not tried before RETRY_SECONDS have passed.
        """
        if self.sink is None and time.monotonic() < self.next_try:
            return
        try:
            if self.sink is None:
                self.sink = self.open_sink()
            if line is not None:
                self.sink.write(line)
        except Exception as error:  # noqa: BLE001 - whatever it is, the run goes on
            self.trouble.came(error)
            self.next_try = time.monotonic() + RETRY_SECONDS
            self._close_sink()
        else:
            self.trouble.went()

    def _close_sink(self) -> None:
        sink, self.sink = self.sink, None
        if sink is None:
            return
        try:
            sink.close()
        except Exception as error:  # noqa: BLE001 - as above
            self.trouble.came(error)


def open_boards(
    workdir: str, start: int, config: dict | None, say: Callable[[str], None]
) -> list[Board]:
    """TensorBoard and, where config.wandb.project names one, Weights & Biases.

    Raises UserError where that is not installed.
    """
    project = config['wandb']['project'] if config else ''
    if project and importlib.util.find_spec('wandb') is None:
        raise UserError(
            'config.wandb.project needs Weights & Biases: pip install wandb, or leave it empty.'
        )
    openers = {'TensorBoard': event_files(os.path.join(workdir, 'tensorboard'), start, config)}
    if project:
        openers['Weights & Biases'] = partial(WeightsAndBiases, workdir, config)
    return [Board(name, opener, Trouble(name, say)) for name, opener in openers.items()]


def event_files(folder: str, start: int, config: dict | None) -> Callable[[], TensorBoard]:
    """Opens a file each time; the first says where the run begins and its config, others go on."""
    is_first = True

    def open_next() -> TensorBoard:
        nonlocal is_first
        if not is_first:
            return TensorBoard(folder, None, None)
        opened = TensorBoard(folder, start, config)
        is_first = False
        return opened

    return open_next
