"""Checkpoints that are whole or not there: save, verify, resume, start from another run.

    <workdir>/checkpoints/
      200/                  a complete step
        params/ ema/ opt/   Orbax items of arrays; `opt` also holds the step and the running loss
        data/ config/       Orbax items of JSON
        manifest.json       size and SHA-256 of every file above, written last
      300.partial…          a step on its way in or out: swept away by the next save or start
      damaged-100           a step that failed its manifest: set aside by a start, never deleted

On a file system a step enters and leaves by one rename, so it is complete or has another name. An object store
(gs://) has no rename: there a step is written in place, and its manifest alone makes it complete.
"""

import contextlib
import fcntl
import json
import math
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from flax.traverse_util import unflatten_dict
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from jit_jax.model.sizes import size
from jit_jax.output.files import remote
from jit_jax.training import manifest as manifests
from jit_jax.training.manifest import MANIFEST, UNSIGNED, Damaged, sign
from jit_jax.training.state import TrainState

PARTIAL = '.partial'


class Checkpoints:
    """The checkpoints of one run. Every process makes one and calls it at the same steps; the first one tidies.

    keep_last: how many of the newest steps stay, at least 1. keep_every: multiples of it stay as well. best: (metric,
    'min' or 'max'), the step where it is best stays as well. Raises ValueError for other values.
    """

    def __init__(
        self,
        workdir,
        *,
        keep_last: int,
        keep_every: int | None = None,
        best: tuple[str, str] | None = None,
    ):
        if keep_last < 1 or (keep_every or 1) < 1 or (best and best[1] not in ('min', 'max')):
            got = f'got {keep_last}, {keep_every} and {best}'
            raise ValueError(
                f"keep_last and keep_every are at least 1 and best is (metric, 'min' or 'max'); {got}."
            )
        keep = [policies.LatestN(keep_last)]
        keep += [policies.EveryNSteps(keep_every)] if keep_every else []
        if best:
            name, sign = best[0], {'min': -1, 'max': 1}[best[1]]
            score = lambda metrics: (
                sign * metrics[name] if math.isfinite(metrics.get(name, math.nan)) else -math.inf
            )
            keep += [policies.BestN(get_metric_fn=score, n=1)]
        self._policy = policies.AnyPreservationPolicy(keep)
        self._root = epath.Path(workdir) / 'checkpoints'
        self._newest = None  # newest step known to be good
        self._saving = None  # the thread of the save under way
        logging.get_absl_logger().addFilter(_worth_reading)

    def newest(self) -> int | None:
        """The newest step whose every byte is as it was saved; None in a fresh folder. For a start: it also tidies.

        What killed saves left is removed. Newer steps that are damaged are named in the log and renamed to
        damaged-<step>; nothing that is good is touched. Raises ValueError when only damaged steps are left, as a fresh
        start would be a surprise, and OSError when a step cannot be read, which does not make it damaged.
        """
        self.wait()
        found = _from_first(self._find() if jax.process_index() == 0 else None)
        if found < -1:
            raise ValueError(
                f'{self._root} has only damaged steps left; repair or remove them, or choose another --workdir.'
            )
        self._newest = found if found >= 0 else None
        return self._newest

    def _find(self) -> int:
        """The newest step; -1 when there never was a complete one, -2 when all are damaged."""
        self._sweep()
        for step in reversed(_steps(self._root)):
            try:
                manifests.verify(self._root / str(step))
                return step
            except Damaged as problem:
                self._set_aside(step, problem)
        return (
            -2 if any((path / MANIFEST).exists() for path in self._root.glob('damaged-*')) else -1
        )

    def save(self, state, *, data: dict, config: dict, metrics: dict | None = None) -> None:
        """Starts to save `state` as step `state.step`; returns when it is copied off the device.

        A step that is already complete is left alone. A save that fails, now or in the background, is one line in the
        log, and the steps before it stay good. `data` and `config` are JSON; `metrics` are numbers that `best` may name.
        """
        self.wait()
        step = int(state.step)
        items = _items(state)
        if not _from_first(self._may_save(step, items) if jax.process_index() == 0 else None):
            return
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        manifest = {'step': step, 'metrics': metrics, 'arrays': _arrays(items)}
        # A checkpointer for each save, so that nothing a failure leaves behind can spoil the next. Folders are made at
        # once, as Orbax would wait for minutes in the background for a folder that cannot be made.
        options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
        checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(), async_options=options
        )
        try:
            checkpointer.save(
                _absolute(self._staging(step)), args=_save_args(items, data=data, config=config)
            )
        except Exception as error:  # noqa: BLE001 - storage raises almost anything, and training must go on
            self._failed(step, error)
            return
        self._saving = threading.Thread(
            target=self._finish, args=(checkpointer, manifest), name=f'save-{step}'
        )
        self._saving.start()

    def restore(self, step: int, like) -> TrainState:
        """The state of a step that `newest` returned, on the shardings of `like`, which may be of any mesh.

        like: a TrainState of ShapeDtypeStructs with shardings. Raises ValueError, in one sentence, when a name, a shape
        or a dtype differs, or when the step is damaged.
        """
        folder, items = self._root / str(step), _items(like)
        try:
            there = (manifests.read if step == self._newest else manifests.verify)(folder)['arrays']
        except Damaged as problem:
            raise ValueError(f'{folder} cannot be restored: {problem}.') from None
        if differences := _differences(there, _arrays(items)):
            raise ValueError(f'{folder} does not fit this run: {_listed(differences)}.')
        load = ocp.StandardCheckpointHandler().restore
        got = {
            name: load(_absolute(folder / name), args=ocp.args.StandardRestore(tree))
            for name, tree in items.items()
        }
        return like.replace(params=got['params'], ema=got['ema'], **got['opt'])

    def wait(self) -> int | None:
        """Waits for the save under way. Returns the newest good step, that is, where a start would go on."""
        if self._saving:
            self._saving.join()
        return self._newest

    def close(self) -> None:
        """Waits, and lets Orbax log again."""
        self.wait()
        logging.get_absl_logger().removeFilter(_worth_reading)

    def _staging(self, step: int) -> epath.Path:
        return self._root / (str(step) if remote(self._root) else f'{step}{PARTIAL}')

    def _may_save(self, step: int, items: dict) -> bool:
        """Whether the step is new and there is room for it. Asked before Orbax starts, as it fails slowly and loudly."""
        try:
            if (self._root / str(step) / MANIFEST).exists():
                return False
            self._sweep()  # and not when a save fails, as some of its threads may still be writing
            self._root.mkdir(parents=True, exist_ok=True)
            trial = self._root / f'{step}{PARTIAL}-trial'
            trial.write_text('a few bytes')
            trial.unlink()
            room = math.inf if remote(self._root) else shutil.disk_usage(self._root).free
            need = sum(x.nbytes for x in jax.tree.leaves(items))
            if need <= room:
                return True
            self._failed(
                step, OSError(f'it takes {need / 1e6:.1f} MB and {room / 1e6:.1f} MB are free')
            )
        except Exception as error:  # noqa: BLE001 - as in save
            self._failed(step, error)
        return False

    def _finish(self, checkpointer, manifest: dict):
        """In the background: waits for the data, writes the manifest, shows the step, removes old ones."""
        step, first = manifest['step'], jax.process_index() == 0
        try:
            checkpointer.close()
            if first:
                manifests.seal(self._staging(step), manifest)
                if not remote(self._root):
                    self._staging(step).rename(self._root / str(step))
            self._newest = step
        except Exception as error:  # noqa: BLE001 - as in save
            self._failed(step, error)
            return
        try:
            if first:
                self._prune()
        except Exception as error:  # noqa: BLE001 - as in save
            logging.error('Old checkpoints could not be removed: %s.', _reason(error))

    def _prune(self):
        """Removes the complete steps that no rule keeps. The newest complete one is always kept, as keep_last ≥ 1."""
        complete = []
        for step in _steps(self._root):
            with contextlib.suppress(Damaged):
                metrics = manifests.read(self._root / str(step))['metrics']
                complete.append(SimpleNamespace(step=step, metrics=metrics))
        keep = self._policy.should_preserve(complete, context=policies.PreservationContext())
        for step in [about.step for about, kept in zip(complete, keep) if not kept]:
            folder = self._root / str(step)
            if remote(folder):
                (folder / MANIFEST).unlink()
            else:  # out of sight in one move, so that a kill in the middle of removing leaves no half step
                folder = folder.rename(self._root / f'{step}{PARTIAL}')
            folder.rmtree()

    def _failed(self, step: int, error: Exception):
        good = (
            'no checkpoint is there yet'
            if self._newest is None
            else f'checkpoint {self._newest} is still good'
        )
        logging.error(
            'Checkpoint %d was not saved: %s. Training goes on; %s.', step, _reason(error), good
        )

    def _sweep(self):
        """Removes steps that were on their way in or out."""
        half = re.compile(rf'\d+({re.escape(PARTIAL)}|\.orbax-checkpoint-tmp).*')
        for path in (
            [p for p in self._root.iterdir() if half.fullmatch(p.name)]
            if self._root.exists()
            else []
        ):
            try:
                path.rmtree() if path.is_dir() else path.unlink()
            except OSError as error:
                logging.info(
                    '%s, half a checkpoint, could not be removed yet: %s.', path, _reason(error)
                )

    def _set_aside(self, step: int, problem: Damaged):
        folder, aside, again = self._root / str(step), self._root / f'damaged-{step}', 1
        while aside.exists():
            again += 1
            aside = self._root / f'damaged-{step}-{again}'
        try:
            folder.rename(aside)
            logging.warning('%s is damaged (%s) and is now %s.', folder, problem, aside.name)
        except OSError as error:
            logging.warning(
                '%s is damaged (%s) and could not be set aside: %s.',
                folder,
                problem,
                _reason(error),
            )


def read_weights(path, which: str | None = None, *, sharding=None) -> tuple[dict, dict, int]:
    """Reads one set of weights, and neither the optimiser nor the other sets → (config, tree, step).

    path: a run folder (its newest intact step), a step folder, or an export. which: 'params', 'ema1', …; None: 'ema1', or
    the only weights there. sharding: as in `jax.device_put`; None: numpy arrays in this host's memory. Never writes.
    Raises FileNotFoundError or ValueError, in one sentence that names what exists.
    """
    path = epath.Path(path)
    read = _read_safetensors if path.suffix == '.safetensors' and path.is_file() else _read_step
    config, tree, step = read(path, which)
    return config, tree if sharding is None else jax.device_put(tree, sharding), step


def _read_step(path: epath.Path, which: str | None) -> tuple[dict, dict, int]:
    folder, which, manifest = _newest_intact(path, which)
    item = 'params' if which == 'params' else 'ema'
    names = unflatten_dict(manifest['arrays'], sep='/')[item]
    target = names if item == 'params' else {which: names[which]}
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
    args = ocp.args.PyTreeRestore(target, restore_args=as_numpy, partial_restore=True)
    tree = ocp.PyTreeCheckpointHandler().restore(_absolute(folder / item), args=args)
    config = json.loads((folder / 'config' / 'metadata').read_text())
    return config, tree if item == 'params' else tree[which], manifest['step']


def _newest_intact(path: epath.Path, which: str | None) -> tuple[epath.Path, str, dict]:
    """The newest step at `path` in which these weights are intact → (folder, their name, manifest)."""
    problem = ''
    for folder in _candidates(path):
        try:
            manifest = manifests.verify(folder, 'config')
            names = unflatten_dict(manifest['arrays'], sep='/')
            name = _choose(which, {*names.get('ema', ()), *names.keys() & {'params'}}, folder)
            manifests.verify(folder, 'params' if name == 'params' else 'ema')
            return folder, name, manifest
        except Damaged as error:
            problem = f'; {folder.name}: {error}'
            logging.warning('%s is passed over: %s.', folder, error)
    if path.exists():
        wanted = 'give a run folder, a step folder or an export'
        raise (ValueError if problem else FileNotFoundError)(
            f'{path} holds no intact checkpoint{problem}; {wanted}.'
        )
    near = next(parent for parent in path.parents if parent.exists())
    raise FileNotFoundError(
        f'{path} does not exist; {near} holds {_listed(p.name for p in near.iterdir())}.'
    )


def _candidates(path: epath.Path) -> list[epath.Path]:
    if (path / MANIFEST).exists():
        return [path]
    root = path / 'checkpoints' if (path / 'checkpoints').exists() else path
    return [root / str(step) for step in reversed(_steps(root))]


def _choose(which: str | None, there: set[str], place) -> str:
    name = which or ('ema1' if 'ema1' in there or len(there) != 1 else min(there))
    if name not in there:
        raise ValueError(f'{place} has no weights {name!r}; it has {_listed(there)}.')
    return name


def _read_safetensors(path: epath.Path, which: str | None) -> tuple[dict, dict, int]:
    try:
        from safetensors.numpy import load
    except ImportError:
        raise ValueError(f'Reading {path} needs a package: pip install safetensors.') from None
    content = path.read_bytes()
    try:
        about = json.loads(content[8 : 8 + int.from_bytes(content[:8], 'little')])['__metadata__']
        whole = sign(content.replace(about['sha256'].encode(), UNSIGNED, 1)) == content
    except (ValueError, KeyError):
        whole = False
    if not whole:
        raise ValueError(f'{path} is damaged, or was not written by jit_jax.export.')
    _choose(which, {about['weights']}, path)
    return json.loads(about['config']), unflatten_dict(load(content), sep='/'), int(about['step'])


def write_weights(workdir, config: dict, params: dict | None, ema: dict, step: int = 0) -> None:
    """Writes a run folder with weights and no optimiser, whole or not at all. `params` may be None.

    Raises FileExistsError when something is in the way.
    """
    workdir = epath.Path(workdir)
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise FileExistsError(f'{workdir} is in the way; remove it or write somewhere else.')
    staging = workdir.parent / f'{workdir.name}{PARTIAL}'
    if staging.exists():
        staging.rmtree()
    folder = staging / 'checkpoints' / str(step)
    items = {name: tree for name, tree in (('params', params), ('ema', ema)) if tree}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(_absolute(folder), args=_save_args(items, config=config))
    manifests.seal(folder, {'step': step, 'metrics': {}, 'arrays': _arrays(items)})
    (staging / 'config.json').write_text(json.dumps(config, indent=1))
    staging.rename(workdir)


@contextlib.contextmanager
def lock(workdir) -> Iterator[None]:
    """Holds `workdir` for this run; makes the folder. The system lets go when the process dies, however it dies.

    Raises BlockingIOError when another run holds it, and other OSErrors when it cannot be written.
    """
    with contextlib.ExitStack() as held:
        problem = _take(epath.Path(workdir), held) if jax.process_index() == 0 else None
        if _from_first(problem is not None):
            raise problem or BlockingIOError(f'The first process could not take {workdir}.')
        yield


def _take(workdir: epath.Path, held: contextlib.ExitStack) -> OSError | None:
    if remote(workdir):
        logging.info('%s has no locks: start one run on it at a time.', workdir)
        return None
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = held.enter_context(open(workdir / '.lock', 'a+'))
    except OSError as error:
        return type(error)(
            f'{workdir} cannot be written ({_reason(error)}); choose another --workdir.'
        )
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}')
        file.flush()
    except BlockingIOError:
        file.seek(0)
        return BlockingIOError(
            f'{workdir} is in use by another run ({file.read()}); stop it or choose another --workdir.'
        )
    except OSError as error:
        logging.warning(
            '%s cannot be locked (%s): start one run on it at a time.', workdir, _reason(error)
        )
    return None


def compatible(there: dict, here: dict) -> list[str]:
    """Differences between the architectures of two configs, a readable line each; [] when they can share weights."""
    there, here = (
        {**size(config['model']['variant']), **config['model'], 'variant': ''}
        for config in (there, here)
    )
    return _differences(there, here, 'model.')


def _arrays(items: dict) -> dict[str, str]:
    """The arrays of a tree by name, as in {'params/final/bias': 'float32[12]'}."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(items)
    return {
        jax.tree_util.keystr(path, simple=True, separator='/'): f'{x.dtype}{list(x.shape)}'
        for path, x in leaves
    }


def _differences(there: dict, here: dict, prefix: str = '') -> list[str]:
    both = [name for name in there if name in here]
    lines = [
        f'{prefix}{name} is {there[name]} there and {here[name]} here'
        for name in both
        if there[name] != here[name]
    ]
    lines += [f'{prefix}{name} is only there' for name in there if name not in here]
    return lines + [f'{prefix}{name} is only here' for name in here if name not in there]


def _items(state) -> dict:
    """A state as the Orbax items of arrays that a step has."""
    opt = {'opt': state.opt, 'step': state.step, 'loss_mean': state.loss_mean}
    return {'params': state.params, 'ema': state.ema, 'opt': opt}


def _save_args(trees: dict, **texts: dict):
    save = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
    return ocp.args.Composite(
        **save, **{name: ocp.args.JsonSave(text) for name, text in texts.items()}
    )


def _steps(root: epath.Path) -> list[int]:
    names = [path.name for path in root.iterdir() if path.is_dir()] if root.exists() else []
    return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))


def _from_first(value: int | None) -> int:
    """The first process's value, in every process."""
    return (
        value
        if jax.process_count() == 1
        else int(multihost_utils.broadcast_one_to_all(np.int32(value or 0)))
    )


def _absolute(path: epath.Path) -> epath.Path:
    return path if remote(path) else path.absolute()


def _listed(names, most: int = 8) -> str:
    names = sorted(names)
    more = [f'and {len(names) - most} more'] if len(names) > most else []
    return ', '.join(names[:most] + more) or 'nothing'


def _reason(error: Exception) -> str:
    """A few words for an error of the storage, where TensorStore has pages."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    number = int(code[1]) if code else getattr(error, 'errno', None)
    return (
        os.strerror(number)
        if number
        else ' '.join(str(error).split())[:300] or type(error).__name__
    )


def _worth_reading(record) -> bool:
    """Drops the tracebacks that Orbax logs for an error it also raises: our line says it, once."""
    return (
        not (record.exc_info and f'{os.sep}orbax{os.sep}' in record.pathname)
        or logging.get_verbosity() >= logging.DEBUG
    )
