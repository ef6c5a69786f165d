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
from jit_jax.output.trouble import Trouble

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
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    def put(self, line: Line) -> None:
        """Hands a line over; returns at once, always."""
        try:
            self.lines.put_nowait(line)
        except queue.Full:
            self.trouble.came('it is too slow')

    def close(self) -> None:
        """Writes what waits, for PATIENCE seconds at most."""
        deadline = time.monotonic() + PATIENCE
        try:
            self.lines.put(None, timeout=PATIENCE)
        except queue.Full:
            pass
        self.thread.join(max(deadline - time.monotonic(), 0))
        if self.thread.is_alive():
            self.trouble.came('it is too slow')

    def _work(self) -> None:
        self._attempt(None)
        while True:
            line = self.lines.get()
            if line is None:
                break
            self._attempt(line)
        self._close_sink(self.trouble.came)

    def _attempt(self, line: Line | None) -> None:
        """Opens the sink where need be, after a failure not before RETRY_SECONDS, and writes a
        line.
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
            self._close_sink(self.trouble.came)
        else:
            self.trouble.went()

    def _close_sink(self, on_error: Callable[[Exception], None]) -> None:
        sink, self.sink = self.sink, None
        if sink is None:
            return
        try:
            sink.close()
        except Exception as error:  # noqa: BLE001 - as above
            on_error(error)


def open_boards(
    workdir: str, start: int, config: dict | None, say: Callable[[str], None]
) -> list[Board]:
    """TensorBoard and, where config.wandb.project names one, Weights & Biases.

    Raises UserError where that is not installed.
    """
    fresh = [start]

    def tensorboard() -> TensorBoard:
        folder = os.path.join(workdir, 'tensorboard')
        first = fresh[0] if fresh else None
        sink = TensorBoard(folder, first, config if fresh else None)
        fresh.clear()  # a file that is opened again goes on after the first one
        return sink

    boards = [Board('TensorBoard', tensorboard, Trouble('TensorBoard', say))]
    if config and config['wandb']['project']:
        if importlib.util.find_spec('wandb') is None:
            raise UserError(
                'config.wandb.project needs Weights & Biases: pip install wandb, or leave it empty.'
            )
        name = 'Weights & Biases'
        boards.append(Board(name, partial(WeightsAndBiases, workdir, config), Trouble(name, say)))
    return boards
