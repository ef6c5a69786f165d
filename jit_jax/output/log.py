"""What a run tells people: metrics.jsonl, TensorBoard, a progress line, and grids of images."""

import contextlib
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
from etils import epath
from tqdm import tqdm

from jit_jax.output.files import append, remote, write_whole
from jit_jax.output.images import save_png


class Writer:
    """Writes scalars to `metrics.jsonl` (one object a line), TensorBoard and, by config, Weights & Biases; shows progress.

    Opened at step `start` it first drops the lines of later steps, which a killed run wrote after its last
    checkpoint: a resumed run has no line twice. `enabled=False` (every process but the first) writes nothing.
    ideal: as in `Clock`. config: the run's, for the boards. follow(step) is called after each line.
    """

    def __init__(
        self,
        workdir: str,
        *,
        start: int,
        steps: int,
        enabled: bool = True,
        ideal: float = 0.0,
        config: dict | None = None,
        follow: Callable | None = None,
    ):
        self.enabled, self.clock, self.follow = enabled, Clock(start, ideal), follow
        if not enabled:
            return
        from tensorboardX import SummaryWriter
        from tensorboardX.summary import hparams

        self.path = epath.Path(workdir) / 'metrics.jsonl'
        drop_lines_after(self.path, start)
        self.board = SummaryWriter(os.path.join(workdir, 'tensorboard'), purge_step=start + 1)
        for summary in hparams(flat(config), {'loss': 0}) if config else ():
            self.board.file_writer.add_summary(summary)
        self.wandb = join_wandb(workdir, config) if config and config['wandb']['project'] else None
        self.on_terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=steps,
            initial=start,
            disable=not self.on_terminal,
            unit='step',
            dynamic_ncols=True,
        )
        self.opened = (start, time.perf_counter())

    def scalars(self, step: int, values: dict) -> None:
        """Appends one line for `step`, so that a checkpoint never knows more than the file."""
        if not self.enabled:
            return
        values = {name: float(value) for name, value in values.items()}
        append(self.path, json.dumps({'step': step, **values}) + '\n')
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
        if self.wandb:  # which drops steps that it has: those that a resumed run repeats
            self.wandb.log(values, step=step)
        shown = ' '.join(f'{name} {value:.4g}' for name, value in values.items())
        self.bar.update(step - self.bar.n)
        self.bar.set_postfix_str(shown)
        if not self.on_terminal:
            start, began = self.opened
            left = (time.perf_counter() - began) / max(step - start, 1) * (self.bar.total - step)
            print(f'step {step}/{self.bar.total} {shown} left {left / 60:.1f} min', flush=True)
        if self.follow:
            self.follow(step)

    def images(self, step: int, name: str, grid: np.ndarray, path: str) -> None:
        """Saves a grid (uint8 [h, w, 3]) as a PNG at `path`, whole or not at all, and in TensorBoard."""
        if self.enabled:
            save_png(path, grid)
            self.board.add_image(name, grid, step, dataformats='HWC')
            if self.wandb:
                import wandb

                self.wandb.log({name: wandb.Image(grid)}, step=step)

    def say(self, text: str) -> None:
        """A line for the person who watches."""
        if self.enabled:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        if self.enabled:
            self.bar.close()
            self.board.close()
            if self.wandb:
                self.wandb.finish()


def join_wandb(workdir: str, config: dict) -> object:
    """The run's page at Weights & Biases: its id is kept in the folder, so that a resumed run goes on there."""
    import wandb

    path = epath.Path(workdir) / 'wandb_id'
    if not path.exists():
        write_whole(path, secrets.token_hex(4).encode())
    where = {} if remote(path) else {'dir': workdir}
    return wandb.init(
        project=config['wandb']['project'],
        id=path.read_text(),
        resume='allow',
        name=path.parent.name,
        config=config,
        **where,
    )


def flat(config: dict, prefix: str = '') -> dict:
    """A config as TensorBoard takes hyper-parameters: {'data.kind': 'digits', …} of numbers, bools and words."""
    found = {}
    for name, value in config.items():
        found |= (
            flat(value, f'{prefix}{name}.') if isinstance(value, dict) else {prefix + name: value}
        )
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in found.items()
    }


class Clock:
    """Training throughput between two lines, and the share of that time spent waiting for data.

    ideal: seconds an image would take at the rate of plain matrix products; `mfu` is the share of it that is reached.
    """

    def __init__(self, step: int, ideal: float = 0.0):
        self.step, self.start, self.waited, self.paused, self.ideal = (
            step,
            time.perf_counter(),
            0.0,
            0.0,
            ideal,
        )

    def lap(self, step: int, batch_size: int) -> dict:
        """images_per_second, mfu and data_wait since the last lap."""
        now = time.perf_counter()
        elapsed = max(now - self.start - self.paused, 1e-9)
        speed = (step - self.step) * batch_size / elapsed
        rates = {
            'images_per_second': speed,
            'mfu': speed * self.ideal,
            'data_wait': self.waited / elapsed,
        }
        self.step, self.start, self.waited, self.paused = step, now, 0.0, 0.0
        return rates

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around waiting for data."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Around samples and checkpoints: they are not training."""
        began = time.perf_counter()
        yield
        self.paused += time.perf_counter() - began


def drop_lines_after(path, step: int) -> None:
    """Rewrites a metrics.jsonl without lines after `step` and without a torn last line; nothing when there is no file."""
    path = epath.Path(path)
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if line.endswith('\n') and json.loads(line)['step'] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue
    write_whole(path, ''.join(kept).encode())
