"""Weights alone, in and out: of a run, a step or an export, without the optimiser."""

import json

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from flax.traverse_util import unflatten_dict

from jit_jax.errors import UserError
from jit_jax.training import manifest as manifests
from jit_jax.training.config_differences import listed
from jit_jax.training.manifest import MANIFEST, UNSIGNED, Damaged, sign
from jit_jax.training.older_configs import parse_config
from jit_jax.training.storage import PARTIAL, absolute, as_items, reason, steps


def read_weights(path, which: str | None = None) -> tuple[dict, dict, int]:
    """Reads one set of weights, and neither the optimiser nor the other sets → (config, tree of
    numpy arrays, step).

    path: a run folder (its newest intact step), a step folder, or an export. which: 'params',
    'ema1', …; None: 'ema1', or the only weights there. Never writes. Raises UserError, in one
    sentence that names what exists.
    """
    path = epath.Path(path)
    try:
        if path.suffix == '.safetensors' and path.is_file():
            return _read_safetensors(path, which)
        if path.is_file():
            raise UserError(
                f'{path} is a file, and weights are read from a run folder, a step folder or a '
                f'.safetensors of jit-jax export; for official weights first run: jit-jax convert '
                f'{path} runs/official.'
            )
        return _read_step(path, which)
    except OSError as error:
        raise UserError(f'{path} cannot be read: {reason(error)}.') from error


def write_weights(workdir, config: dict, params: dict | None, ema: dict, step: int = 0) -> None:
    """Writes a run folder with weights and no optimiser, whole or not at all. `params` may be None.

    Raises UserError when something is there already.
    """
    workdir = epath.Path(workdir)
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        what = 'is a run folder' if (workdir / 'config.json').exists() else 'is in the way'
        raise UserError(f'{workdir} {what} and is not overwritten; write somewhere else.')
    staging = workdir.parent / f'{workdir.name}{PARTIAL}'
    if staging.exists():
        staging.rmtree()
    folder = staging / 'checkpoints' / str(step)
    items = {name: tree for name, tree in (('params', params), ('ema', ema)) if tree}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(absolute(folder), args=as_items(items, config=config))
    manifests.seal(folder, {'step': step, 'metrics': {}, 'arrays': manifests.arrays(items)})
    (staging / 'config.json').write_text(json.dumps(config, indent=1))
    staging.rename(workdir)


def read_config(step_folder: epath.Path) -> dict:
    """The config that a step was saved with."""
    return parse_config((step_folder / 'config' / 'metadata').read_text())


def _read_step(path: epath.Path, which: str | None) -> tuple[dict, dict, int]:
    folder, which, manifest = _newest_intact(path, which)
    item = 'params' if which == 'params' else 'ema'
    names = unflatten_dict(manifest['arrays'], sep='/')[item]
    target = names if item == 'params' else {which: names[which]}
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
    args = ocp.args.PyTreeRestore(target, restore_args=as_numpy, partial_restore=True)
    tree = ocp.PyTreeCheckpointHandler().restore(absolute(folder / item), args=args)
    return read_config(folder), tree if item == 'params' else tree[which], manifest['step']


def _newest_intact(path: epath.Path, which: str | None) -> tuple[epath.Path, str, dict]:
    """The newest step at `path` with these weights intact → (folder, their name, manifest)."""
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
    check_exists(path)
    wanted = (
        _first_step(path) or _run_inside(path) or 'give a run folder, a step folder or an export'
    )
    raise UserError(f'{path} holds no intact checkpoint{problem}; {wanted}.')


def _first_step(path: epath.Path) -> str:
    """When a run that has just started saves its first step, in words; '' for what is no such run.

    What is there by then is at most a step under way.
    """
    folder = path / 'checkpoints'
    if not folder.exists() or any(PARTIAL not in there.name for there in folder.iterdir()):
        return ''
    try:
        config = parse_config((path / 'config.json').read_text())
        first = min(config['checkpoint']['every'], config['steps'])
    except (OSError, ValueError, KeyError, TypeError):
        return ''
    return f'its run saves the first after step {first}, or when it is stopped by Ctrl-C'


def _run_inside(path: epath.Path) -> str:
    """Which runs a folder holds, in words; '' for none."""
    if not path.is_dir():
        return ''
    there = [child.name for child in path.iterdir() if (child / 'checkpoints').exists()]
    return f'name a run in it: {listed(there)}' if there else ''


def check_exists(path: epath.Path) -> None:
    """Raises UserError, which names the runs and exports beside it, where there is no such path."""
    if path.exists():
        return
    near = next(parent for parent in path.parents if parent.exists())
    there = [child.name for child in near.iterdir() if _has_weights(child)]
    if not there:
        raise UserError(f'{path} does not exist, and {near} holds no run: name another folder.')
    raise UserError(f'{path} does not exist; {near} holds {listed(there)}.')


def _has_weights(path: epath.Path) -> bool:
    """Whether a path looks like a run, a step or an export."""
    named = ('config.json', 'checkpoints', MANIFEST)
    return path.suffix == '.safetensors' or any((path / name).exists() for name in named)


def is_run(path) -> bool:
    """Whether a folder is a run, a step or an export, intact or not."""
    path = epath.Path(path)
    if (path / 'checkpoints').exists():
        return True
    return any((step / MANIFEST).exists() for step in _candidates(path))


def _candidates(path: epath.Path) -> list[epath.Path]:
    """The step folders that `path` may stand for, the newest first."""
    if (path / MANIFEST).exists():
        return [path]
    root = path / 'checkpoints' if (path / 'checkpoints').exists() else path
    return [root / str(step) for step in reversed(steps(root))]


def _choose(which: str | None, there: set[str], place) -> str:
    name = which or ('ema1' if 'ema1' in there or len(there) != 1 else min(there))
    if name not in there:
        raise UserError(f'{place} has no weights {name!r}; it has {listed(there)}.')
    return name


def _read_safetensors(path: epath.Path, which: str | None) -> tuple[dict, dict, int]:
    try:
        from safetensors.numpy import load
    except ImportError:
        raise UserError(f'Reading {path} needs a package: pip install safetensors.') from None
    content = path.read_bytes()
    try:
        header_end = 8 + int.from_bytes(content[:8], 'little')
        about = json.loads(content[8:header_end])['__metadata__']
        whole = sign(content.replace(about['sha256'].encode(), UNSIGNED, 1)) == content
    except (ValueError, KeyError):
        whole = False
    if not whole:
        raise UserError(f'{path} is damaged, or was not written by jit_jax.export.')
    _choose(which, {about['weights']}, path)
    return parse_config(about['config']), unflatten_dict(load(content), sep='/'), int(about['step'])
