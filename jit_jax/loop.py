"""A training run, top to bottom: `train` opens what a run needs, `Training.steps` is the loop."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from ml_collections import ConfigDict

from jit_jax import data, resume
from jit_jax.errors import UserError
from jit_jax.evaluation import page
from jit_jax.evaluation.periodic import PeriodicEvaluation
from jit_jax.evaluation.preview import Preview
from jit_jax.feasibility import (
    check_patience,
    enough_memory,
    evaluation_advice,
    preview_advice,
    training_advice,
)
from jit_jax.hardware import speed
from jit_jax.model.sharding import everywhere, to_device
from jit_jax.output import files, log
from jit_jax.recipe.build import Run
from jit_jax.training.checkpoint import Checkpoints
from jit_jax.training.config_differences import changed_keys, listed
from jit_jax.training.lock import lock
from jit_jax.training.processes import every_process, leave
from jit_jax.training.state import TrainState
from jit_jax.training.stop import Stop


def train(run: Run, workdir: str, *, yes: bool = False, follow: Callable | None = None) -> str:
    """Trains until config.steps, or until Ctrl-C or SIGTERM, which save and stop. Starts where
    `workdir` left off. Returns the name of the signal that stopped it, '' where none did.

    yes: start even what would take a CPU days. follow(step) is called after each line of metrics.
    Raises UserError for what cannot start as asked, before anything is written, and for what ends a
    run without its last step saved.
    """
    config = run.config
    seconds_an_image = run.flops / speed.matmul_rate(run.model.dtype)
    if jax.default_backend() == 'cpu' and jax.process_count() == 1 and not yes:
        check_patience(config, seconds_an_image * config.batch_size * config.steps)
    with (
        lock(workdir),
        Stop() as stop,
        open_checkpoints(run, workdir) as checkpoints,
        enough_memory(partial(training_advice, config, run.mesh)),
    ):
        evaluation = PeriodicEvaluation(run)
        state, how = resume.agreed_state(run, workdir, checkpoints)
        start = int(state.step)
        if start >= config.steps:
            changed = changed_keys(checkpoints.config(start), run.record)
            print(done(start, config.steps, workdir, changed))
            return ''
        resume.write_config(run, workdir)
        writer = every_process(partial(open_writer, run, workdir, start, seconds_an_image, follow))
        with contextlib.closing(writer):
            writer.started(how)
            for found in dict.fromkeys([run.train.summary, run.test.summary]):
                writer.say(found)
            for remark in every_process(partial(data.remarks, run.train, run.test)):
                writer.say(remark)
            writer.say(summary(run, state))
            preview = every_process(partial(Preview, run, workdir))
            training = Training(run, workdir, checkpoints, writer, stop, preview, evaluation)
            step = training.steps(state, start)
            writer.say(outcome(step, config.steps, stop.signal, workdir))
    if jax.process_index() == 0:
        print(page.try_write(workdir, run.record, run.train, run.test))
    return stop.signal


@dataclass
class Training:
    """The steps of a run, and what comes after a step: save, then preview, then evaluate."""

    run: Run
    workdir: str
    checkpoints: Checkpoints
    writer: log.Writer
    stop: Stop
    preview: Preview
    evaluation: PeriodicEvaluation
    unread: list = field(default_factory=list)  # (step, metrics, batch), numbers still to be read
    handed_over: int = -1  # the latest step that was given to `checkpoints`

    def steps(self, state: TrainState, start: int) -> int:
        """Trains from step `start` until config.steps or a stop; returns the last step, saved.

        Raises UserError where that step could not be saved.
        """
        run, config = self.run, self.run.config
        key = jax.random.key(config.seed)
        frozen = everywhere(run.frozen, run.mesh)
        after_a_step = (
            (self.saving_is_due, self.save),
            (self.drawing_is_due, self.draw),
            (self.evaluating_is_due, self.evaluate),
        )
        with contextlib.closing(open_batches(run, start)) as batches:
            batch = to_device(next(batches), run.mesh)
            for step in range(start + 1, config.steps + 1):
                idle = not self.unread or self.unread[-1][1]['loss'].is_ready()
                self.writer.clock.sent(idle=idle)
                state, numbers = run.step(state, batch, key, *frozen)
                self.unread.append((step, numbers, batch))
                self.read(but=1)  # a step late: the device is never waited for empty
                if step < config.steps:
                    batch = self.next_batch(batches)  # travels while the step runs
                self.stop.after(step)
                for due, act in after_a_step:
                    if due(step):
                        self.read()  # a checkpoint never holds a NaN nor outruns its metrics
                        act(state, step)
                if self.stop.asked:
                    break
        if self.handed_over != step:  # a stop was asked for while drawing or evaluating
            self.read()
            self.save(state, step)
        good = self.checkpoints.wait()
        if good != step:
            raise UserError(
                f'Step {step} could not be saved; '
                f'{self.workdir} goes on from step {good} when there is room.'
            )
        return step

    def next_batch(self, batches: Iterator) -> dict:
        """Waits for the next rows and sends them on their way to the devices.

        Raises UserError where too many images are broken; one of several processes ends there.
        """
        with self.writer.clock.waiting():
            try:
                rows = next(batches)
            except UserError as error:
                if jax.process_count() > 1:
                    leave(error)
                raise
        return to_device(rows, self.run.mesh)

    def read(self, but: int = 0) -> None:
        """Waits for steps to end, all but the latest few; writes their lines of metrics where they
        are due.

        Raises UserError, with a bundle for `replay`, where a number is not finite.
        """
        config = self.run.config
        while len(self.unread) > but:
            step, numbers, batch = self.unread.pop(0)
            numbers = {name: float(value) for name, value in jax.device_get(numbers).items()}
            if not all(map(math.isfinite, numbers.values())):
                raise self.not_finite(step, numbers, batch)
            self.writer.finished(step)
            if step % config.log_every == 0 or step == config.steps:
                numbers['broken_images'] = len(self.run.train.broken)
                self.writer.scalars(step, numbers | self.writer.clock.lap(step, config.batch_size))

    def not_finite(self, step: int, numbers: dict, batch: dict) -> UserError:
        """Leaves the batch of a step in a bundle; the error that says so."""
        good = self.checkpoints.wait() or 0
        rows = {f'batch/{name}': process_allgather(v, tiled=True) for name, v in batch.items()}
        path = os.path.join(self.workdir, f'nan-{step}.npz')
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):  # a full disk does not hide what happened
                seed = self.run.config.seed
                files.save_npz(path, step=step, seed=seed, checkpoint=good, **rows)
        return UserError(
            f'At step {step} the loss is {numbers["loss"]:.4g} and its gradient '
            f'{numbers["grad_norm"]:.4g}; {self.workdir} is good up to step {good}. '
            f'To see where it comes from: jit-jax replay --bundle={path}; '
            'what often helps is a lower --config.optimizer.base_lr.'
        )

    def saving_is_due(self, step: int) -> bool:
        config = self.run.config
        return step % config.checkpoint.every == 0 or step == config.steps or self.stop.asked

    def drawing_is_due(self, step: int) -> bool:
        return self.preview.due(step) and not self.stop.asked

    def evaluating_is_due(self, step: int) -> bool:
        return self.evaluation.due(step) and not self.stop.asked

    def save(self, state: TrainState, step: int) -> None:
        """Starts to save a step whose numbers have been read. Raises UserError where it is the
        first and fails.
        """
        metrics = {'loss': float(state.loss_mean)}
        with self.writer.clock.pause('save'):
            self.checkpoints.save(state, config=self.run.record, metrics=metrics)
        self.handed_over = step

    def draw(self, state: TrainState, step: int) -> None:
        """Draws the grid of samples; a stop ends it early."""
        with (
            self.writer.clock.pause('draw'),
            enough_memory(partial(preview_advice, self.run.config)),
            self.stop.interrupting(),
        ):
            self.preview.draw(state, step, self.writer)

    def evaluate(self, state: TrainState, step: int) -> None:
        """Measures images, generated or denoised; a stop ends it early and nothing is written."""
        values = {}
        with (
            enough_memory(partial(evaluation_advice, self.run.config)),
            self.stop.interrupting(),
        ):
            values = self.evaluation(state, step, self.writer.clock.pause)
        if values:
            self.writer.scalars(step, values)


def open_checkpoints(run: Run, workdir: str) -> Checkpoints:
    """The checkpoints of a run, by the rules of config.checkpoint."""
    keep = run.config.checkpoint
    return Checkpoints(
        workdir,
        keep_last=keep.keep_last,
        keep_every=keep.keep_every or None,
        best=('loss', 'min') if keep.keep_best else None,
    )


def open_writer(
    run: Run, workdir: str, start: int, seconds_an_image: float, follow: Callable | None
) -> log.Writer:
    """The metrics of a run. Raises UserError where the folder cannot be written."""
    try:
        return log.Writer(
            workdir,
            start=start,
            steps=run.config.steps,
            every=pauses(run.config),
            enabled=jax.process_index() == 0,
            ideal=seconds_an_image,
            config=run.record,
            follow=follow,
        )
    except OSError as error:
        raise UserError(f'{workdir} cannot be written ({error.strerror}).') from error


def pauses(config: ConfigDict) -> dict[str, int]:
    """After how many steps each pause of the clock comes, by its name; 0 for never."""
    evaluate = config.evaluate
    often = {'denoise': evaluate.denoise_every, 'measure': evaluate.every}
    return {'save': config.checkpoint.every, 'draw': config.sample.every} | often


def open_batches(run: Run, start: int) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of the global batches after step `start`."""
    return data.train_batches(
        run.train,
        batch_size=run.config.batch_size,
        seed=run.config.seed,
        start_step=start,
        flip=run.config.data.flip,
        threads=run.config.data.threads,
        prefetch=run.config.data.prefetch,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def summary(run: Run, state: TrainState) -> str:
    """What is about to run, in one line."""
    c = run.config
    count = sum(x.size for x in jax.tree.leaves(state.params))
    side = c.model.image_size
    devices = f'{jax.device_count()} × {jax.devices()[0].device_kind}'
    return (
        f'JiT-{c.model.variant} at {side}×{side}: {count / 1e6:.1f} M parameters, '
        f'condition {c.condition.kind}, {len(run.train)} images, batch {c.batch_size}, '
        f'{c.steps} steps, on {devices} as mesh {dict(run.mesh.shape)}, '
        f'{run.remarks}. Compiling …'
    )


def done(step: int, steps: int, workdir: str, changed: list[str]) -> str:
    """What is said of a run that has all its steps, and of the keys that were changed in vain."""
    said = f'{workdir} is done: step {step} of {steps}; more: raise --config.steps.'
    return f'{said} Nothing came of what changed: {listed(changed)}.' if changed else said


def outcome(step: int, steps: int, stopped_by: str, workdir: str) -> str:
    """How a run whose last step is saved has ended, and what to do next."""
    if step < steps:
        return (
            f'Stopped by {stopped_by} after step {step}: saved. The same command goes on from here.'
        )
    return (
        f'Done: step {step}. Samples are in {workdir}/samples; '
        f'draw more with: jit-jax sample --workdir={workdir}'
    )
