"""The ways into a run, in this order: resume its folder, start from another run's weights, start
fresh.
"""

import json
import zlib
from functools import partial

import jax
import jax.numpy as jnp
from etils import epath

from jit_jax.errors import UserError
from jit_jax.model.sizes import size
from jit_jax.output import files
from jit_jax.recipe import build
from jit_jax.recipe.build import Run
from jit_jax.training.checkpoint import Checkpoints
from jit_jax.training.config_differences import changed_keys, differences
from jit_jax.training.older_configs import parse_config
from jit_jax.training.processes import agree, every_process, first_process
from jit_jax.training.state import TrainState
from jit_jax.training.weights import read_weights

# Parameters that a run can have beside those it starts from, by the key of config.model that asks
# for them: they start at zero, so that the function is the same.
JOINING = {'end_time': ('end_in', 'end_out'), 'guidance': ('guidance_in', 'guidance_out')}
# Keys of the config that decide which arrays the optimiser and the averages have.
STATE_KEYS = ('optimizer.muon_rms', 'optimizer.mu_dtype', 'ema.decays')
# Keys that say which images a run learns from, and what it makes of them.
IMAGE_KEYS = ('data.kind', 'data.name', 'data.path')
TASK_KEYS = (*IMAGE_KEYS, 'condition.kind')


def agreed_state(run: Run, workdir: str, checkpoints: Checkpoints) -> tuple[TrainState, str]:
    """`starting_state`, of processes that found out that they compute the same."""
    agree('config', in_common(run))  # before anything that all must compute together
    state, how = starting_state(run, workdir, checkpoints)
    said = agree('parameters', int(checksum(state.params).addressable_data(0)))
    return state, said + how


def in_common(run: Run) -> int:
    """uint32 of what must be the same in all processes: the config as it was given, and how many
    images each finds where a relative data.path is, from a working folder that may be its own, and
    the weights that each read.
    """
    found = [list(run.train.classes), len(run.train), len(run.test), run.content]
    found += [zlib.crc32(array.tobytes()) for array in jax.tree.leaves(run.frozen)]
    return zlib.crc32(json.dumps([run.config.to_dict(), found]).encode())


def starting_state(run: Run, workdir: str, checkpoints: Checkpoints) -> tuple[TrainState, str]:
    """The state that training goes on from, and a sentence that says where it is from.

    Raises UserError where the folder or the weights named by config.init_from are of another
    architecture or damaged, and where the folder shows a run whose checkpoints are gone. Writes
    nothing.
    """
    step = checkpoints.newest()
    if step is not None:
        return _resumed(run, workdir, checkpoints, step)
    first_process(partial(refuse_lost_checkpoints, workdir, run.config.checkpoint.every))
    if run.config.init_from:
        return _from_weights(run)
    return run.init(jax.random.key(run.config.seed)), f'Starting fresh in {workdir}.'


def _resumed(run: Run, workdir: str, checkpoints: Checkpoints, step: int) -> tuple[TrainState, str]:
    stored = checkpoints.config(step)
    unlike = architecture_differences(stored, run.record)
    if unlike:
        raise UserError(f'{workdir} holds a run of another architecture: {"; ".join(unlike)}.')
    refuse_other_images(workdir, stored, run.record)
    # The first process alone, as a relative data.path is in each one's own working folder.
    first_process(partial(refuse_other_task, workdir, stored, run))
    changed = changed_keys(stored, run.record)
    if checkpoints.unlike(step, run.like):
        refuse_other_state(workdir, stored, run.record, changed)
    how = f'Resuming {workdir} at step {step}'
    how += f', with {", ".join(changed)} changed.' if changed else '.'
    return checkpoints.restore(step, run.like), how + config_remark(workdir, step)


def _from_weights(run: Run) -> tuple[TrainState, str]:
    path, which = run.config.init_from, run.config.init_ema
    stored, params, step = every_process(partial(read_weights, path, which or None))
    joining = [key for key in JOINING if run.config.model[key] and not stored['model'][key]]
    stored = stored | {'model': stored['model'] | dict.fromkeys(joining, True)}
    unlike = architecture_differences(stored, run.record)
    if unlike:
        raise UserError(f'{path} has another architecture: {"; ".join(unlike)}.')
    if joining:
        params = params | _fresh(run, [name for key in joining for name in JOINING[key]])
    how = f'Starting from {which or "ema1"} of {path} at step {step}, with a fresh optimiser.'
    return run.start(params), how


def _fresh(run: Run, names: list[str]) -> dict:
    """These parameters as a fresh start of the run has them."""

    def some(key):
        params = build.initial(run.recipe)(key).params
        return {name: params[name] for name in names}

    return jax.device_get(jax.jit(some)(jax.random.key(run.config.seed)))


def architecture_differences(there: dict, here: dict) -> list[str]:
    """What keeps two configs from sharing weights, a readable line each; [] when nothing does."""
    lines = differences(_architecture(there), _architecture(here), 'model.')
    return lines + differences(_predicted(there), _predicted(here), 'diffusion.')


def _architecture(config: dict) -> dict:
    """config.model with the variant spelled out."""
    return {**size(config['model']['variant']), **config['model'], 'variant': ''}


def _predicted(config: dict) -> dict:
    """What the network's output is; older runs, which did not say, had no choice."""
    return {'predict': build.diffusion(config).predict}


def refuse_other_images(workdir: str, there: dict, here: dict) -> None:
    """Raises UserError where a run that was trained on images in memory is given others."""
    contents = [config.get('data', {}).get('content') for config in (there, here)]
    if None not in contents and contents[0] != contents[1]:
        raise UserError(
            f'{workdir} was trained on other images, labels, conditions or captions than those '
            f'given: give the same, or start from its weights with config.init_from={workdir} and '
            'another folder.'
        )


def refuse_other_task(workdir: str, there: dict, run: Run) -> None:
    """Raises UserError where a run is given images from elsewhere that are not said to be the same
    ones, moved, or another condition: in one folder two tasks would be taken for one.
    """
    here, moved = run.record, run.config.data.moved
    unlike = [key for key in changed_keys(there, here) if key in TASK_KEYS]
    if moved:
        unlike = [key for key in unlike if key not in IMAGE_KEYS]
    if not unlike:
        return
    lines = []
    for key in unlike:
        section, name = key.split('.')
        lines.append(f'config.{key}={there[section][name]!r}, not {here[section][name]!r}')
    hint = ''
    if set(unlike) <= set(IMAGE_KEYS):
        hint = ', or say with --config.data.moved=true that these are the same images elsewhere'
    raise UserError(
        f'{workdir} was trained with {" and ".join(lines)}: give the same flags as before, or '
        f'another --workdir, with --config.init_from={workdir} to start from its weights{hint}.'
    )


def refuse_other_state(workdir: str, there: dict, here: dict, changed: list[str]) -> None:
    """Raises UserError where a changed key of STATE_KEYS gives the optimiser or the averages other
    arrays.
    """
    lines = []
    for key in STATE_KEYS:
        if key in changed:
            section, name = key.split('.')
            lines.append(f'--config.{key}={here[section][name]} ({there[section][name]} there)')
    if lines:
        raise UserError(
            f'{workdir} cannot go on with {" and ".join(lines)}, as that needs other arrays: '
            f'take it back, or start from its weights with --config.init_from={workdir} and '
            'another --workdir.'
        )


def refuse_lost_checkpoints(workdir: str, every: int) -> None:
    """Raises UserError where a folder without a checkpoint has had one: a fresh start would empty
    its metrics.

    every: config.checkpoint.every of this run, where the folder's config.json does not tell.
    A run makes checkpoints/ when it starts and waits for its first checkpoint, so it has had one
    when its metrics go beyond that, or when they are there without that folder.
    """
    folder = epath.Path(workdir)
    last, stored = last_step(folder / 'metrics.jsonl'), readable_config(folder)
    if stored is not None and 'checkpoint' in stored:
        every = stored['checkpoint']['every']
    without_folder = not files.remote(folder) and not (folder / 'checkpoints').exists()
    if last and (last > every or without_folder):
        raise UserError(
            f'{folder} has metrics up to step {last} and no checkpoint: put its checkpoints back, '
            f'or, to start over, remove {folder} or choose another --workdir.'
        )


def last_step(path: epath.Path) -> int:
    """The highest step in a metrics.jsonl; 0 when there is no line."""
    last = 0
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                last = max(last, int(json.loads(line)['step']))
            except (ValueError, KeyError, TypeError):
                continue  # a line that a kill has torn
    return last


def readable_config(folder: epath.Path) -> dict | None:
    """The config.json of a run's folder; None when it is missing or damaged."""
    try:
        config = parse_config((folder / 'config.json').read_text())
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) and 'model' in config else None


def config_remark(workdir: str, step: int) -> str:
    """Says so where config.json is of no use; '' otherwise. Every checkpoint has the config that it
    was saved with.
    """
    if readable_config(epath.Path(workdir)) is not None:
        return ''
    state = 'damaged' if (epath.Path(workdir) / 'config.json').exists() else 'missing'
    return f' {workdir}/config.json is {state}: the copy in checkpoint {step} was used.'


def write_config(run: Run, workdir: str) -> None:
    """Writes config.json, whole or not at all, and makes checkpoints/; the first process does.

    Raises UserError, in every process, where the folder cannot be written.
    """
    first_process(partial(_write_config, run, epath.Path(workdir)))


def _write_config(run: Run, workdir: epath.Path) -> None:
    try:
        files.write_whole(workdir / 'config.json', json.dumps(run.record, indent=1).encode())
        (workdir / 'checkpoints').mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'{workdir} cannot be written ({error.strerror}).') from error


@jax.jit
def checksum(tree) -> jax.Array:
    """uint32, of all bits of float32 leaves: a process whose copy of a replicated array differs
    gets another one.
    """
    total = jnp.uint32(0)
    for i, leaf in enumerate(jax.tree.leaves(tree)):
        bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
        total += (2 * i + 1) * jnp.sum(bits, dtype=jnp.uint32)
    return total
