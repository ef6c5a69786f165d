"""Checkpoints that are whole or not there: save, verify, resume.

    <workdir>/checkpoints/
      200/                  a complete step
        params/ ema/ opt/   Orbax items of arrays; `opt` also holds the step and the running loss
        config/             an Orbax item of JSON
        manifest.json       size and SHA-256 of every file above, written last
      300.partial…          a step on its way in or out: swept away by the next save or start
      damaged-100           a step that failed its manifest: set aside by a start, never deleted

On a file system a step enters and leaves by one rename, so it is complete or has another name. An
object store (gs://) has no rename: there a step is written in place, and its manifest alone makes
it complete.

Writing in the background, the formats and the rules of retention are Orbax's. Its CheckpointManager
is not used, because it shows a step and removes older ones before any code of ours runs, and Orbax
restores flipped bits without a word. So the manifest has to be written before the one rename that
shows a step, and both are done here.
"""

import contextlib
import math
import shutil
import threading
from functools import partial

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from jit_jax.errors import UserError
from jit_jax.output.files import remote
from jit_jax.training import manifest as manifests
from jit_jax.training.config_differences import differences, listed
from jit_jax.training.manifest import MANIFEST, Damaged
from jit_jax.training.processes import every_process, first_process
from jit_jax.training.retention import Retention
from jit_jax.training.state import TrainState
from jit_jax.training.storage import (
    PARTIAL,
    absolute,
    as_items,
    reason,
    set_aside,
    staging,
    steps,
    sweep,
    worth_reading,
)
from jit_jax.training.weights import read_config

NONE = -1  # no step, where a number is needed


class Checkpoints:
    """The checkpoints of one run. Every process makes one and calls it at the same steps; the first
    one tidies.

    Used as a context, it waits at the end for the save under way, but for a KeyboardInterrupt,
    which abandons it.
    keep_last, keep_every, best: see `Retention`.
    """

    def __init__(
        self,
        workdir,
        *,
        keep_last: int,
        keep_every: int | None = None,
        best: tuple[str, str] | None = None,
    ):
        self._retention = Retention(keep_last, keep_every, best)
        self._root = epath.Path(workdir) / 'checkpoints'
        self._newest = None  # the newest step known to be good
        self._under_way = False  # whether a save has begun that nobody has waited for
        self._thread = None  # what finishes it in this process
        self._abandoned = False
        self._problem = ''  # why the latest save failed
        logging.get_absl_logger().addFilter(worth_reading)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._abandoned = True  # then the thread, which goes on for a while, shows nothing
        elif kind is not None and jax.process_count() > 1:
            self._join()  # and no more, as another process may not have failed
        else:
            self.close()

    def newest(self) -> int | None:
        """The newest step whose every byte is as it was saved; None in a fresh folder. For a start:
        it also tidies.

        What killed saves left is removed. Newer steps that are damaged are named in the log and
        renamed to damaged-<step>; nothing that is good is touched. Raises UserError when only
        damaged steps are left, as a fresh start would be a surprise, and when a step cannot be
        read, which does not make it damaged.
        """
        self.wait()
        found = first_process(self._find)
        self._newest = None if found == NONE else found
        return self._newest

    def _find(self) -> int:
        try:
            sweep(self._root)
            for step in reversed(steps(self._root)):
                try:
                    manifests.verify(self._root / str(step))
                    return step
                except Damaged as problem:
                    set_aside(self._root / str(step), problem)
            damaged = self._was_saved_here()
        except OSError as error:
            raise UserError(f'{self._root} cannot be read: {reason(error)}.') from error
        if damaged:
            raise UserError(
                f'{self._root} has only damaged steps left; repair them, or, to start over, '
                f'remove {self._root.parent} or choose another --workdir.'
            )
        return NONE

    def _was_saved_here(self) -> bool:
        """Whether a step that was set aside had been complete, as far as what is left of it tells.

        Only on an object store does a step without a manifest lie in a complete one's place; it was
        interrupted.
        """
        for folder in self._root.glob('damaged-*'):
            if (folder / MANIFEST).exists() or (any(folder.iterdir()) and not remote(folder)):
                return True
        return False

    def save(self, state: TrainState, *, config: dict, metrics: dict | None = None) -> None:
        """Starts to save `state` as step `state.step`; returns when it is copied off the device.

        config: JSON. metrics: numbers, which `best` may name. A step that is already complete is
        left alone. A save that fails, now or in the background, is one line in the log, and the
        steps before it stay good. The first save
        is waited for: when it fails there is nothing to go on from, and every process raises
        UserError.
        """
        self.wait()
        step, items = int(state.step), _items(state)
        try:
            if not first_process(partial(self._prepare, step, items)):
                return
            self._under_way = True
            self._start(step, items, config, metrics or {})
        except Exception as error:  # noqa: BLE001 - storage raises anything; training goes on
            self._failed(step, error)
        if self._newest is None and self.wait() is None:
            first_process(partial(self._refuse_to_go_on, step))

    def _prepare(self, step: int, items: dict) -> bool:
        """Makes room for a step; whether it is new. Raises OSError where there is none, as Orbax
        fails slowly and loudly.
        """
        if (self._root / str(step) / MANIFEST).exists():
            return False
        sweep(self._root)  # and not when a save fails, as some of its threads may still be writing
        self._root.mkdir(parents=True, exist_ok=True)
        trial = self._root / f'{step}{PARTIAL}-trial'
        trial.write_text('a few bytes')
        trial.unlink()
        room = math.inf if remote(self._root) else shutil.disk_usage(self._root).free
        need = sum(x.nbytes for x in jax.tree.leaves(items))
        if need > room:
            raise OSError(f'it takes {need / 1e6:.1f} MB and {room / 1e6:.1f} MB are free')
        return True

    def _start(self, step: int, items: dict, config: dict, metrics: dict) -> None:
        metrics = {name: float(value) for name, value in metrics.items()}
        manifest = {'step': step, 'metrics': metrics, 'arrays': manifests.arrays(items)}
        # A checkpointer for each save, so that nothing a failure leaves behind can spoil the next.
        # Folders are made at once, as Orbax would wait for minutes in the background for a folder
        # that cannot be made.
        options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
        handler = ocp.CompositeCheckpointHandler()
        checkpointer = ocp.AsyncCheckpointer(handler, async_options=options)
        place = absolute(staging(self._root, step))
        checkpointer.save(place, args=as_items(items, config=config))
        self._thread = threading.Thread(
            target=self._finish, args=(checkpointer, manifest), name=f'save-{step}', daemon=True
        )
        self._thread.start()

    def _finish(self, checkpointer, manifest: dict) -> None:
        """In the background: waits for the data, writes the manifest, shows the step, removes old
        ones.
        """
        step, first = manifest['step'], jax.process_index() == 0
        try:
            checkpointer.close()
            if first and not self._abandoned:
                place = staging(self._root, step)
                manifests.seal(place, manifest)
                if not remote(self._root) and not self._abandoned:
                    place.rename(self._root / str(step))
            self._newest = step
        except Exception as error:  # noqa: BLE001 - as in save
            self._failed(step, error)
            return
        try:
            if first and not self._abandoned:
                self._prune()
        except Exception as error:  # noqa: BLE001 - as in save
            logging.error('Old checkpoints could not be removed: %s.', reason(error))

    def _prune(self) -> None:
        """Removes the complete steps that no rule keeps. The newest complete one is always kept, as
        keep_last ≥ 1.
        """
        metrics = {}
        for step in steps(self._root):
            with contextlib.suppress(Damaged):
                metrics[step] = manifests.read(self._root / str(step))['metrics']
        for step in self._retention.removable(metrics):
            folder = self._root / str(step)
            if remote(folder):
                (folder / MANIFEST).unlink()
            else:  # out of sight in one move: a kill in the middle of removing leaves no half step
                folder = folder.rename(self._root / f'{step}{PARTIAL}')
            folder.rmtree()

    def _failed(self, step: int, error: Exception) -> None:
        self._problem = reason(error)
        if self._newest is None:
            logging.error('Checkpoint %d was not saved: %s.', step, self._problem)
        else:
            logging.error(
                'Checkpoint %d was not saved: %s. Training goes on; checkpoint %d is still good.',
                step,
                self._problem,
                self._newest,
            )

    def _refuse_to_go_on(self, step: int) -> None:
        raise UserError(
            f'The first checkpoint, {self._root / str(step)}, could not be saved '
            f'({self._problem}), so the run stops; mend that, or choose another --workdir.'
        )

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of a step that `newest` returned, on the shardings of `like`, which may be of
        any mesh.

        like: a TrainState of ShapeDtypeStructs with shardings. Raises UserError, in one sentence,
        when a name, a shape or a dtype differs, or when the step is damaged or cannot be read.
        """
        folder = self._root / str(step)
        if unlike := self.unlike(step, like):
            raise UserError(f'{folder} does not fit this run: {listed(unlike)}.')
        got = every_process(partial(_load, folder, _items(like)))
        return like.replace(params=got['params'], ema=got['ema'], **got['opt'])

    def unlike(self, step: int, like: TrainState) -> list[str]:
        """A line for each array of an intact step that is not as in `like`. Raises UserError when
        it is damaged.
        """
        check = (
            manifests.read if step == self._newest else manifests.verify
        )  # `newest` has verified it
        there = every_process(partial(_checked, check, self._root / str(step)))['arrays']
        return differences(there, manifests.arrays(_items(like)))

    def config(self, step: int) -> dict:
        """The config that a step was saved with."""
        return every_process(partial(_checked, read_config, self._root / str(step)))

    def wait(self) -> int | None:
        """Waits for the save under way. Returns the newest good step, that is, where a start would
        go on.

        The same answer in every process: a step is good when the first process has shown it.
        """
        if self._under_way:
            self._under_way = False
            self._join()
            newest = first_process(lambda: NONE if self._newest is None else self._newest)
            self._newest = None if newest == NONE else newest
        return self._newest

    def _join(self) -> None:
        if self._thread:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Waits, and lets Orbax log again."""
        self.wait()
        logging.get_absl_logger().removeFilter(worth_reading)


def _checked(read, folder: epath.Path) -> dict:
    """read(folder), with what a user can cause as a sentence."""
    try:
        return read(folder)
    except (Damaged, OSError) as problem:
        why = str(problem) if isinstance(problem, Damaged) else reason(problem)
        raise UserError(f'{folder} cannot be restored: {why}.') from problem


def _load(folder: epath.Path, like: dict) -> dict:
    load = ocp.StandardCheckpointHandler().restore
    try:
        return {
            name: load(absolute(folder / name), args=ocp.args.StandardRestore(tree))
            for name, tree in like.items()
        }
    except OSError as error:
        raise UserError(f'{folder} cannot be read: {reason(error)}.') from error


def _items(state: TrainState) -> dict:
    """A state as the Orbax items of arrays that a step has."""
    opt = {'opt': state.opt, 'step': state.step, 'loss_mean': state.loss_mean}
    return {'params': state.params, 'ema': state.ema, 'opt': opt}
