"""A training run from top to bottom."""

import json
import os
import signal
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

from jit_jax import checkpoint, data, metrics
from jit_jax.build import Run
from jit_jax.measure import Watch
from jit_jax.preview import Preview
from jit_jax.sharding import to_device


class Refused(ValueError):
    """A run that cannot start as asked; the message is one sentence with the fix, and nothing has been touched."""


def train(run: Run, workdir: str):
    """Trains until config.steps, or until Ctrl-C or SIGTERM, which save and stop. Starts where `workdir` left off."""
    config = run.config
    with checkpoint.lock(workdir), Stop() as stop:
        keep = config.checkpoint
        best = ('loss', 'min') if keep.keep_best else None
        checkpoints = checkpoint.Checkpoints(workdir, keep_last=keep.keep_last, keep_every=keep.keep_every or None, best=best)
        try:
            watch = Watch(run)
            state, how = starting_state(run, workdir, checkpoints)
        except (ValueError, OSError) as problem:
            raise Refused(problem) from problem
        start = int(state.step)
        if start >= config.steps:
            print(f'{workdir} is done: step {start} of {config.steps}. To go on, raise --config.steps.')
            return
        write_config(run, workdir)
        writer = metrics.Writer(workdir, start=start, steps=config.steps, enabled=jax.process_index() == 0)
        writer.say(how)
        writer.say(summary(run, state))
        preview = Preview(run, workdir)
        key = jax.random.key(config.seed)
        batches = data.train_batches(
            run.train, batch_size=config.batch_size, seed=config.seed, start_step=start, flip=config.data.flip,
            threads=config.data.threads, prefetch=config.data.prefetch,
            process_index=jax.process_index(), process_count=jax.process_count(),
        )  # fmt: skip
        batch = to_device(next(batches), run.mesh)
        in_flight = []  # (step, metrics) of steps whose numbers nobody has read yet
        for step in range(start + 1, config.steps + 1):
            state, numbers = run.step(state, batch, key)
            in_flight.append((step, numbers))
            if step < config.steps:
                with writer.clock.waiting():
                    rows = next(batches)
                batch = to_device(rows, run.mesh)  # travels while the step runs
            last = step == config.steps or stop.after(step)
            while len(in_flight) > (0 if last else 1):  # read a step late: the device is never waited for empty
                report(*in_flight.pop(0), run, writer, workdir)
            if step % config.sample.every == 0 or step == config.steps:
                with writer.clock.pause():
                    preview.draw(state, step, writer)
            watch.look(state, step, writer)
            if step % config.checkpoint.every == 0 or last:
                save(checkpoints, state, in_flight, run, writer, workdir)
            if last:
                break
        batches.close()
        saved = checkpoints.wait()
        checkpoints.close()
        if saved != step:
            writer.say(f'Step {step} could not be saved; {workdir} goes on from step {saved} when there is room.')
        elif step < config.steps:
            writer.say(f'Stopped by {stop.name} after step {step}: saved. The same command goes on from here.')
        else:
            writer.say(f'Done: step {step}. Samples are in {workdir}/samples; draw more with: python -m jit_jax.sample --workdir={workdir}')
        writer.close()


def starting_state(run: Run, workdir: str, checkpoints):
    """The three ways in, in this order: resume this workdir, start from another run's weights, start fresh."""
    step = checkpoints.newest()
    if step is not None:
        stored, config = json.loads(read(os.path.join(workdir, 'config.json'))), run.record
        refuse(checkpoint.compatible(stored, config), f'{workdir} holds a run of another architecture')
        changed = differences(stored, config)
        how = f'Resuming {workdir} at step {step}' + (f', with {", ".join(changed)} changed.' if changed else '.')
        return checkpoints.restore(step, run.like), how
    if run.config.init_from:
        path, which = run.config.init_from, run.config.init_ema
        stored, params, step = checkpoint.read_weights(path, which or None)
        refuse(checkpoint.compatible(stored, run.record), f'{path} has another architecture')
        return run.start(params), f'Starting from {which or "ema1"} of {path} at step {step}, with a fresh optimiser.'
    return run.init(jax.random.key(run.config.seed)), f'Starting fresh in {workdir}.'


def refuse(differences: list[str], why: str):
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


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


def write_config(run: Run, workdir: str):
    """config.json, whole or not at all."""
    if jax.process_index() == 0:
        path = os.path.join(workdir, 'config.json')
        with open(path + '.tmp', 'w') as file:
            json.dump(run.record, file, indent=1)
        os.replace(path + '.tmp', path)


def summary(run: Run, state) -> str:
    """What is about to run, in one line."""
    count = sum(x.size for x in jax.tree.leaves(state.params))
    devices = f'{jax.device_count()} × {jax.devices()[0].device_kind}'
    c = run.config
    return (
        f'JiT-{c.model.variant} at {c.model.image_size}×{c.model.image_size}: {count / 1e6:.1f} M parameters, condition {c.condition.kind}, '
        f'{len(run.train)} images, batch {c.batch_size}, {c.steps} steps, on {devices} as mesh {dict(run.mesh.shape)}. Compiling …'
    )


def report(step: int, numbers: dict, run: Run, writer, workdir: str):
    """Waits for a step to end; on a step that is due, writes its line of metrics."""
    config = run.config
    if step % config.log_every and step != config.steps:
        jax.block_until_ready(numbers)
        return
    numbers = {name: float(value) for name, value in jax.device_get(numbers).items()}
    if not np.isfinite(numbers['loss']):
        raise FloatingPointError(
            f'The loss is {numbers["loss"]} at step {step}. Checkpoints in {workdir} are from before; lower config.optimizer.base_lr and start again.'
        )
    numbers['broken_images'] = len(run.train.broken)
    writer.scalars(step, numbers | writer.clock.lap(step, config.batch_size))


def save(checkpoints, state, in_flight, run: Run, writer, workdir: str):
    """Saves, after the numbers of the step have been read: a checkpoint never holds a NaN nor outruns its metrics."""
    while in_flight:
        report(*in_flight.pop(0), run, writer, workdir)
    if not np.isfinite(float(state.loss_mean)):
        raise FloatingPointError(f'The loss is not finite at step {int(state.step)}; nothing was saved.')
    c = run.config
    order = {'seed': c.seed, 'batch_size': c.batch_size, 'source': c.data.kind, 'step': int(state.step)}
    with writer.clock.pause():
        checkpoints.save(state, data=order, config=run.record, metrics={'loss': float(state.loss_mean)})


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

    def wish(self, kind, frame):
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
