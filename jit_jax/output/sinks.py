"""Where the lines of a run go besides metrics.jsonl: a file for TensorBoard, a page at Weights &
Biases.

These raise whatever their libraries raise; `boards` keeps that away from the run.
"""

import os
import secrets
import socket
import time
from typing import NamedTuple, Protocol

import numpy as np
from etils import epath

from jit_jax.output.files import remote, write_whole

FLUSH_SECONDS = 10.0  # between two writes of TensorBoard's file to a disk;
REMOTE_FLUSH_SECONDS = 120.0  # an object store gets all of it each time, so less often


class Line(NamedTuple):
    """What is shown of one step."""

    step: int
    time: float  # seconds since 1970
    values: dict[str, float]
    pictures: dict[str, np.ndarray]  # uint8 [h, w, 3]


class Sink(Protocol):
    """What a board writes to."""

    def write(self, line: Line) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """An event file in `folder`, a new one each time it is opened.

    start: the step that a run goes on from: TensorBoard forgets what an earlier process wrote after
    it. None: nothing. config: shown as hyper-parameters.
    """

    def __init__(self, folder: str, start: int | None, config: dict | None):
        from tensorboardX.record_writer import RecordWriter, directory_check

        directory_check(folder)
        now = time.time_ns()
        name = f'events.out.tfevents.{now // 10**9}.{socket.gethostname()}.{now % 10**9:09d}'
        path = os.path.join(folder, name)
        self.file = RecordWriter(path)
        try:
            self._write_head(start, config)
        except OSError:
            epath.Path(path).unlink(missing_ok=True)  # or a full disk gets an empty file each time
            raise
        self.flush_every = REMOTE_FLUSH_SECONDS if remote(folder) else FLUSH_SECONDS
        self.next_flush = 0.0

    def write(self, line: Line) -> None:
        from tensorboardX import summary

        for name, value in line.values.items():
            self._add(step=line.step, wall_time=line.time, summary=summary.scalar(name, value))
        for name, picture in line.pictures.items():
            image = summary.image(name, picture, dataformats='HWC')
            self._add(step=line.step, wall_time=line.time, summary=image)
        if time.monotonic() >= self.next_flush:
            self.file.flush()
            self.next_flush = time.monotonic() + self.flush_every

    def close(self) -> None:
        try:
            self.file.flush()
        finally:
            self.file.close()

    def _write_head(self, start: int | None, config: dict | None) -> None:
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.summary import hparams

        now = time.time()
        self._add(wall_time=now, file_version='brain.Event:2')
        if start is not None:
            log = SessionLog(status=SessionLog.START)
            self._add(wall_time=now, step=start + 1, session_log=log)
        for summary in hparams(flat(config), {'loss': 0}) if config else ():
            self._add(wall_time=now, summary=summary)
        self.file.flush()

    def _add(self, **what) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self.file.write(Event(**what).SerializeToString())


def flat(config: dict, prefix: str = '') -> dict[str, bool | int | float | str]:
    """A config as TensorBoard takes hyper-parameters: {'data.kind': 'digits', …}."""
    found = {}
    for name, value in config.items():
        if isinstance(value, dict):
            found |= flat(value, f'{prefix}{name}.')
        elif isinstance(value, bool | int | float | str):
            found[prefix + name] = value
        else:
            found[prefix + name] = str(value)
    return found


class WeightsAndBiases:
    """The run's page there.

    Its id is kept in the folder, so that a resumed run goes on in the same page.
    """

    def __init__(self, workdir: str, config: dict):
        import wandb

        path = epath.Path(workdir) / 'wandb_id'
        if not path.exists():
            write_whole(path, secrets.token_hex(4).encode())
        self.wandb = wandb
        self.run = wandb.init(
            project=config['wandb']['project'],
            id=path.read_text(),
            resume='allow',
            name=path.parent.name,
            config=config,
            **({} if remote(path) else {'dir': workdir}),
        )

    def write(self, line: Line) -> None:
        """W&B drops steps that it has: those that a resumed run repeats."""
        pictures = {name: self.wandb.Image(picture) for name, picture in line.pictures.items()}
        self.run.log(line.values | pictures, step=line.step)

    def close(self) -> None:
        self.run.finish()
