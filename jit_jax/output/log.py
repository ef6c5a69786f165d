"""What a run tells people: metrics.jsonl, TensorBoard, a progress line, and pictures.

All of it is best effort. What cannot be written, on a full disk or because a service is gone, is
said once; the run goes on, and so does the writing when it is possible again.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
from etils import epath
from tqdm import tqdm

from jit_jax.output.boards import open_boards
from jit_jax.output.clock import Clock
from jit_jax.output.files import save_npz
from jit_jax.output.images import save_png
from jit_jax.output.jsonl import Lines, drop_lines_after
from jit_jax.output.progress import duration, measured, progress_line, shown, times_left
from jit_jax.output.sinks import Line
from jit_jax.output.warnings_once import Trouble

BAR = '{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]'  # ours says what is left
HISTORY = 'history.jsonl'  # a line for each start of a run


class Writer:
    """Writes numbers to `metrics.jsonl`, TensorBoard and, by config, Weights & Biases; shows
    progress.

    Opened at step `start` it first drops the lines of later steps, which a killed run wrote after
    its last checkpoint: a resumed run has no line twice.

    steps: of the whole run. every: after how many steps each pause of the clock comes, by its name,
    as in `times_left`. enabled: False in every process but the first, which then writes
    nothing. ideal: as in `Clock`. config: the run's, for the boards. follow(step) is called after
    each line.
    """

    def __init__(
        self,
        workdir: str,
        *,
        start: int,
        steps: int,
        every: dict[str, int] | None = None,
        enabled: bool = True,
        ideal: float = 0.0,
        config: dict | None = None,
        follow: Callable[[int], None] | None = None,
    ):
        self.enabled, self.follow = enabled, follow
        self.clock = Clock(start, ideal)
        if not enabled:
            return
        path = epath.Path(workdir) / 'metrics.jsonl'
        drop_lines_after(path, start)
        self.lines = Lines(path, Trouble('metrics.jsonl', self.say))
        history = epath.Path(workdir) / HISTORY
        self.history = Lines(history, Trouble(HISTORY, self.say))
        self.pictures = Trouble('The pictures of samples', self.say)
        self.boards = open_boards(workdir, start, config, self.say)
        self.start, self.steps, self.every = start, steps, every or {}
        self.opened = time.perf_counter()
        self.began, self.since = self.clock.trained(), start  # when which step had ended
        self.first = 0.0  # seconds of the first step
        self.on_terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=steps,
            initial=start,
            disable=not self.on_terminal,
            unit='step',
            dynamic_ncols=True,
            bar_format=BAR,
        )

    def finished(self, step: int) -> None:
        """The numbers of `step` are here. After the second one, says how long the others take."""
        self.clock.finished(step)
        if not self.enabled:
            return
        if step == self.start + 1:
            self.first = time.perf_counter() - self.opened
            self.began, self.since = self.clock.trained(), step  # what is left needs no compiling
        elif step == self.start + 2:
            ends = self.clock.ends
            count = self.steps - step + 1
            each = ends[step].trained - ends[step - 1].trained
            self.say(
                f'Step {step - 1} took {duration(self.first)}, compiling included; the {count:,} '
                f'after it take about {duration(each * count)}.'
            )

    def started(self, how: str) -> None:
        """Says how the run starts or goes on, and keeps it with the time in history.jsonl."""
        if self.enabled:
            self.say(how)
            self.history.add({'step': self.start, 'time': time.time(), 'how': how})

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Appends one line for `step` before it returns: a checkpoint never knows more than the
        file.
        """
        if not self.enabled:
            return
        values = {name: float(value) for name, value in values.items()}
        self.lines.add({'step': step, **values})
        self._hand_over(step, values, {})
        if 'loss' not in values:
            self.say(measured(step, values))
        elif self.on_terminal:
            self.bar.update(step - self.bar.n)
            left = duration(self._seconds_left(step))
            self.bar.set_postfix_str(f'{shown(values)}  left {left}')
        else:
            self.say(progress_line(step, self.steps, values, self._seconds_left(step)))
        if self.follow:
            self.follow(step)

    def images(
        self,
        step: int,
        name: str,
        picture: np.ndarray,
        *paths: str,
        archives: dict[str, np.ndarray] | None = None,
    ) -> None:
        """Saves a picture, uint8 [h, w, 3], as PNGs, whole or not at all; shows it on boards.

        archives: arrays by the .npz that each goes into, as arr_0.
        """
        if not self.enabled:
            return
        try:
            for path in paths:
                save_png(path, picture)
            for path, array in (archives or {}).items():
                save_npz(path, arr_0=array)
        except Exception as error:  # noqa: BLE001 - object stores raise their own kinds
            self.pictures.came(error)
        else:
            self.pictures.went()
        self._hand_over(step, {}, {name: picture})

    def say(self, text: str) -> None:
        """A line for the person who watches, where there is one: standard output may be on the full
        disk too.
        """
        if not self.enabled:
            return
        try:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()
        except OSError:
            pass

    def close(self) -> None:
        """Writes what waits; a board that does not come to an end is left behind."""
        if not self.enabled:
            return
        self.lines.flush()
        self.history.flush()
        self.bar.close()
        for board in self.boards:
            board.close()

    def _seconds_left(self, step: int) -> float:
        """By the steps so far but the first, or by the first where there is no other; and by the
        latest pause of each name, where there was one.
        """
        each = self.first
        if step > self.since:
            each = (self.clock.trained() - self.began) / (step - self.since)
        seconds = each * (self.steps - step)
        for name, every in self.every.items():
            seconds += self.clock.took.get(name, 0.0) * times_left(every, step, self.steps)
        return seconds

    def _hand_over(self, step: int, values: dict, pictures: dict) -> None:
        line = Line(step, time.time(), values, pictures)
        for board in self.boards:
            board.put(line)
