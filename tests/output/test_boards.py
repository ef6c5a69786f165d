"""TensorBoard and its like never block a run, end it, or stay silent for good."""

import threading
import time

import pytest

from jit_jax.output import boards
from jit_jax.output.boards import Board
from jit_jax.output.sinks import Line
from jit_jax.output.warnings_once import Trouble


def a_line(step):
    return Line(step, 0.0, {'loss': 1.0}, {})


class Disk:
    """What sinks write to: lines, and whether there is room."""

    def __init__(self):
        self.lines, self.opened, self.room = [], 0, True

    def open(self):
        self.check()
        self.opened += 1
        return self

    def check(self):
        if not self.room:
            raise OSError(28, 'No space left on device')

    def write(self, line):
        self.check()
        self.lines.append(line.step)

    def close(self):
        self.check()


@pytest.fixture
def said():
    return []


def open_board(disk, said):
    return Board('TensorBoard', disk.open, Trouble('TensorBoard', said.append))


def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


FULL = 'TensorBoard cannot be written (No space left on device); the run goes on without.'
AGAIN = 'TensorBoard can be written again.'


def test_a_board_that_fails_is_opened_again_when_there_is_room(said, monkeypatch):
    monkeypatch.setattr(boards, 'RETRY_SECONDS', 0.0)
    disk = Disk()
    board = open_board(disk, said)
    board.put(a_line(1))
    until(lambda: disk.lines == [1])
    disk.room = False
    for step in range(2, 100):
        board.put(a_line(step))
    until(lambda: board.lines.empty() and said == [FULL])
    disk.room = True
    board.put(a_line(100))
    board.close()
    assert disk.lines == [1, 100] and disk.opened == 2 and said == [FULL, AGAIN]


def test_a_board_that_fails_is_left_in_peace_for_a_while(said):
    disk = Disk()
    disk.room = False
    board = open_board(disk, said)
    until(lambda: said == [FULL])
    disk.room = True
    board.put(a_line(1))
    board.close()
    assert disk.opened == 0 and said == [FULL]


def test_a_board_that_hangs_holds_nobody_up(said, monkeypatch):
    monkeypatch.setattr(boards, 'PATIENCE', 0.2)
    released = threading.Event()

    class Stuck(Disk):
        def write(self, line):
            released.wait(60)

    board = open_board(Stuck(), said)
    began = time.monotonic()
    for step in range(3 * boards.ROOM):
        board.put(a_line(step))
    assert time.monotonic() - began < 5
    board.close()
    assert time.monotonic() - began < 5
    assert said == ['TensorBoard is too slow for this run; lines are left out of it.']
    released.set()


def test_an_end_that_fails_is_said(said):
    disk = Disk()
    board = open_board(disk, said)
    board.put(a_line(1))
    until(lambda: disk.lines == [1])
    disk.room = False
    board.close()
    assert said == [FULL]


def test_a_slow_board_is_said_once(said, monkeypatch):
    """It is full again and again, and takes a line in between."""
    monkeypatch.setattr(boards, 'ROOM', 2)
    takes_one = threading.Semaphore(0)

    class Slow(Disk):
        def write(self, line):
            takes_one.acquire(timeout=10)
            super().write(line)

    disk = Slow()
    board = open_board(disk, said)
    for count in range(4):
        until(lambda count=count: len(disk.lines) == count)
        for _ in range(5):
            board.put(a_line(count))
        takes_one.release()
    for _ in range(3):
        takes_one.release()
    board.close()
    assert disk.lines == sorted(disk.lines) and len(disk.lines) >= 6
    assert said == ['TensorBoard is too slow for this run; lines are left out of it.']
