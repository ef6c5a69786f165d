"""A training run from top to bottom."""

import contextlib
import json
import math
import os
import signal
import threading
import zlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from jit_jax import data
from jit_jax.errors import UserError
from jit_jax.evaluation import page
from jit_jax.evaluation.measure import Watch
from jit_jax.evaluation.preview import Preview
from jit_jax.hardware import speed
from jit_jax.model.sharding import to_device
from jit_jax.output import files, log
from jit_jax.recipe.build import Run, less_memory
from jit_jax.training import checkpoint
from jit_jax.training.state import TrainState

PATIENCE = 86400  # seconds of a CPU that a run may take without --yes


class Refused(UserError):
    """A run that cannot start as asked; the message is one sentence with the fix, and nothing has been touched."""


def train(run: Run, workdir: str, *, yes: bool = False, follow: Callable | None = None) -> None:
    """Trains until config.steps, or until Ctrl-C or SIGTERM, which save and stop. Starts where `workdir` left off.

    yes: start even what would take a CPU days. follow(step) is called after each line of metrics.
    """
    config = run.config
    ideal = run.flops / speed.matmul_rate(run.model.dtype)  # seconds an image
    if jax.default_backend() == 'cpu' and jax.process_count() == 1 and not yes:
        check_patience(config, ideal * config.batch_size * config.steps)
    with checkpoint.lock(workdir), Stop() as stop, enough_memory(run):
        keep = config.checkpoint
        best = ('loss', 'min') if keep.keep_best else None
        checkpoints = checkpoint.Checkpoints(
            workdir, keep_last=keep.keep_last, keep_every=keep.keep_every or None, best=best
        )
        try:
            watch = Watch(run)
            state, how = agreed_state(run, workdir, checkpoints)
        except (ValueError, OSError) as problem:
            raise Refused(problem) from problem
        start = int(state.step)
        if start >= config.steps:
            print(
                f'{workdir} is done: step {start} of {config.steps}. To go on, raise --config.steps.'
            )
            return
        write_config(run, workdir)
        writer = log.Writer(
            workdir,
            start=start,
            steps=config.steps,
            enabled=jax.process_index() == 0,
            ideal=ideal,
            config=run.record,
            follow=follow,
        )
        writer.say(how)
        writer.say(summary(run, state))
        preview = Preview(run, workdir)
        key = jax.random.key(config.seed)
        batches = open_batches(run, start)
        batch = to_device(next(batches), run.mesh)
        in_flight = []  # (step, metrics, batch) of steps whose numbers nobody has read yet
        for step in range(start + 1, config.steps + 1):
            writer.clock.sent(idle=not in_flight or in_flight[-1][1]['loss'].is_ready())
            state, numbers = run.step(state, batch, key)
            in_flight.append((step, numbers, batch))
            if len(in_flight) > 1:  # read a step late: the device is never waited for empty
                tell(*in_flight.pop(0), run, writer, workdir, checkpoints)
            if step < config.steps:
                with writer.clock.waiting():
                    rows = next(batches)
                batch = to_device(rows, run.mesh)  # travels while the step runs
            last = step == config.steps or stop.after(step)
            due = step % config.checkpoint.every == 0 or last
            pausing = due or preview.due(step) or watch.due(step)
            if (
                pausing
            ):  # a checkpoint never holds a NaN nor outruns its metrics; a pause is no training
                tell(*in_flight.pop(0), run, writer, workdir, checkpoints)
            if preview.due(step):
                with writer.clock.pause():
                    preview.draw(state, step, writer)
            watch.look(state, step, writer)
            if due:
                with writer.clock.pause():
                    save(checkpoints, state, config, run.record)
            if last:
                break
        batches.close()
        saved = checkpoints.wait()
        checkpoints.close()
        writer.say(outcome(step, saved, config.steps, stop.name, workdir))
        writer.close()
    if jax.process_index() == 0:
        print(page.try_write(workdir, run.record, run.train, run.test))


def outcome(step: int, saved: int | None, steps: int, stopped_by: str, workdir: str) -> str:
    """How a run ended and what to do next."""
    if saved != step:
        return f'Step {step} could not be saved; {workdir} goes on from step {saved} when there is room.'
    if step < steps:
        return (
            f'Stopped by {stopped_by} after step {step}: saved. The same command goes on from here.'
        )
    return f'Done: step {step}. Samples are in {workdir}/samples; draw more with: jit-jax sample --workdir={workdir}'


def open_batches(run: Run, start: int) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of the global batches after step `start`."""
    d = run.config.data
    return data.train_batches(
        run.train,
        batch_size=run.config.batch_size,
        seed=run.config.seed,
        start_step=start,
        flip=d.flip,
        threads=d.threads,
        prefetch=d.prefetch,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def check_patience(config, seconds: float) -> None:
    """Raises Refused for a run that would take this CPU longer than anyone waits."""
    if seconds > PATIENCE:
        raise Refused(
            f'On this CPU, {config.steps} steps of JiT-{config.model.variant} at batch {config.batch_size} take at least {seconds / 86400:,.0f} days; '
            'run it on an accelerator, lower --config.steps, learn the digits (--config=configs/uncond.py), or start it all the same with --yes.'
        )


@contextlib.contextmanager
def enough_memory(run: Run) -> Iterator[None]:
    """Within it, a device that is out of memory, compiling or running, is a MemoryError that says what to change."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        raise MemoryError(memory_advice(run.config, run.mesh)) from error


def memory_advice(config, mesh) -> str:
    """One sentence: what else computes the same training in less memory, and then what does not."""
    tries, parts = less_memory(config, mesh), []
    if 'accumulate' in tries:
        parts += [
            f'--config.accumulate={tries["accumulate"]} ({config.batch_size // tries["accumulate"]} images at a time)'
        ]
    if 'compute.remat' in tries:
        parts += [
            f'--config.compute.remat={tries["compute.remat"]} (computes again what it need not keep)'
        ]
    less = config.batch_size // 2
    parts += [f'--config.batch_size={less} (another training)'] if less else []
    device = jax.local_devices()[0].device_kind
    return (
        f'{device} is out of memory with {config.batch_size // config.accumulate} images at a time; try '
        + ', or '.join(parts)
        + '.'
    )


def starting_state(run: Run, workdir: str, checkpoints) -> tuple[TrainState, str]:
    """The three ways in, in this order: resume this workdir, start from another run's weights, start fresh."""
    step = checkpoints.newest()
    if step is not None:
        stored, config = json.loads((epath.Path(workdir) / 'config.json').read_text()), run.record
        refuse(
            checkpoint.compatible(stored, config), f'{workdir} holds a run of another architecture'
        )
        changed = differences(stored, config)
        how = f'Resuming {workdir} at step {step}' + (
            f', with {", ".join(changed)} changed.' if changed else '.'
        )
        return checkpoints.restore(step, run.like), how
    if run.config.init_from:
        path, which = run.config.init_from, run.config.init_ema
        stored, params, step = checkpoint.read_weights(path, which or None)
        refuse(checkpoint.compatible(stored, run.record), f'{path} has another architecture')
        return run.start(
            params
        ), f'Starting from {which or "ema1"} of {path} at step {step}, with a fresh optimiser.'
    return run.init(jax.random.key(run.config.seed)), f'Starting fresh in {workdir}.'


def agreed_state(run: Run, workdir: str, checkpoints) -> tuple[TrainState, str]:
    """`starting_state`, of processes that found out that they compute the same."""
    agree(
        'config', zlib.crc32(json.dumps(run.record).encode())
    )  # before anything that all must compute together
    state, how = starting_state(run, workdir, checkpoints)
    return state, agree('parameters', int(checksum(state.params).addressable_data(0))) + how


def agree(what: str, number: int) -> str:
    """Says that all processes hold the same number; raises ValueError where they do not. '' for a single process."""
    count = jax.process_count()
    if count == 1:
        return ''
    if len(set(multihost_utils.process_allgather(np.uint32(number)).tolist())) > 1:
        raise ValueError(
            f'The {count} processes of this run differ in their {what}; start each with the same command and the same code.'
        )
    return f'{count} processes agree: {what} {number:08x}. '


@jax.jit
def checksum(tree) -> jax.Array:
    """uint32, of all bits of float32 leaves: a process whose copy of a replicated array differs gets another one."""
    sums = [
        jnp.sum(jax.lax.bitcast_convert_type(x, jnp.uint32), dtype=jnp.uint32)
        for x in jax.tree.leaves(tree)
    ]
    return sum((2 * i + 1) * s for i, s in enumerate(sums))


def refuse(differences: list[str], why: str) -> None:
    if differences:
        raise ValueError(f'{why}: {"; ".join(differences)}.')


def differences(a: dict, b: dict, prefix: str = '') -> list[str]:
    """Keys of two configs whose values differ, as `data.path`."""
    keys = []
    for name in sorted(a.keys() | b.keys()):
        x, y = a.get(name), b.get(name)
        if isinstance(x, dict) and isinstance(y, dict):
            keys += differences(x, y, f'{prefix}{name}.')
        elif json.dumps(x) != json.dumps(y):
            keys.append(prefix + name)
    return keys


def write_config(run: Run, workdir: str) -> None:
    """config.json, whole or not at all."""
    if jax.process_index() == 0:
        files.write_whole(
            os.path.join(workdir, 'config.json'), json.dumps(run.record, indent=1).encode()
        )


def summary(run: Run, state) -> str:
    """What is about to run, in one line."""
    count = sum(x.size for x in jax.tree.leaves(state.params))
    devices = f'{jax.device_count()} × {jax.devices()[0].device_kind}'
    c = run.config
    return (
        f'JiT-{c.model.variant} at {c.model.image_size}×{c.model.image_size}: {count / 1e6:.1f} M parameters, condition {c.condition.kind}, '
        f'{len(run.train)} images, batch {c.batch_size}, {c.steps} steps, on {devices} as mesh {dict(run.mesh.shape)}, {run.remarks}. Compiling …'
    )


def tell(step: int, numbers: dict, batch, run: Run, writer, workdir: str, checkpoints) -> None:
    """Waits for a step to end; on a step that is due, writes its line of metrics. Raises FloatingPointError, with a bundle."""
    config = run.config
    numbers = {name: float(value) for name, value in jax.device_get(numbers).items()}
    if not all(map(math.isfinite, numbers.values())):
        good, path = checkpoints.wait() or 0, os.path.join(workdir, f'nan-{step}.npz')
        rows = {
            f'batch/{name}': multihost_utils.process_allgather(v, tiled=True)
            for name, v in batch.items()
        }
        if jax.process_index() == 0:
            files.save_npz(path, step=step, seed=config.seed, checkpoint=good, **rows)
        raise FloatingPointError(
            f'At step {step} the loss is {numbers["loss"]:.4g} and its gradient {numbers["grad_norm"]:.4g}; {workdir} is good up to step {good}. '
            f'To see where it comes from: jit-jax replay --bundle={path}; what often helps is a lower --config.optimizer.base_lr.'
        )
    writer.clock.finished(step)
    if step % config.log_every == 0 or step == config.steps:
        numbers['broken_images'] = len(run.train.broken)
        writer.scalars(step, numbers | writer.clock.lap(step, config.batch_size))


def save(checkpoints, state, config, record: dict) -> None:
    """Starts to save a step whose numbers have been read."""
    order = {
        'seed': config.seed,
        'batch_size': config.batch_size,
        'source': config.data.kind,
        'step': int(state.step),
    }
    checkpoints.save(state, data=order, config=record, metrics={'loss': float(state.loss_mean)})


class Stop:
    """Turns Ctrl-C and SIGTERM into a wish that the loop reads after each step; a second Ctrl-C is immediate.

    Several processes must stop at one step. There JAX's own service catches SIGTERM and names the step.
    """

    def __enter__(self):
        self.name, self.previous = '', {}
        alone = jax.process_count() == 1
        if alone and threading.current_thread() is threading.main_thread():
            for kind in (signal.SIGINT, signal.SIGTERM):
                self.previous[kind] = signal.signal(kind, self.wish)
        self.alone = alone
        return self

    def wish(self, kind, frame) -> None:
        self.name = signal.Signals(kind).name
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def after(self, step: int) -> bool:
        """Whether to save and stop after `step`; the same answer in every process."""
        if not self.alone and multihost_utils.reached_preemption_sync_point(step):
            self.name = signal.SIGTERM.name
        return bool(self.name)

    def __exit__(self, *error):
        for kind, handler in self.previous.items():
            signal.signal(kind, handler)
