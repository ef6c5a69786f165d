"""Finds what made the loss of a stopped run not finite.

examples:
  jit-jax replay --bundle=runs/uncond/nan-1234.npz

A stopped run leaves the bundle: the step's batch, its number, the seed and the last good
checkpoint. The steps from there are trained again, which gives the same parameters; then the step
is computed one operation at a time, until one makes a NaN or an infinity.
"""

import argparse
import dataclasses
import io
import os
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.extend.source_info_util import summarize
from ml_collections import ConfigDict

from jit_jax import loop, resume
from jit_jax.commands import command_line, environment
from jit_jax.errors import UserError
from jit_jax.hardware import compiler
from jit_jax.model import sizes
from jit_jax.model.sharding import everywhere, to_device
from jit_jax.recipe import build
from jit_jax.training import checkpoint
from jit_jax.training.older_configs import parse_config
from jit_jax.training.state import TrainState
from jit_jax.training.step import batch_loss, draw, keys_at

# Operations that hold a program of their own, and the parameter where it lies.
INNER = {
    'jit': 'jaxpr',
    'pjit': 'jaxpr',
    'checkpoint': 'jaxpr',
    'custom_jvp_call': 'call_jaxpr',
    'custom_vjp_call': 'call_jaxpr',
}


def define_flags(parser: command_line.Parser) -> None:
    parser.add_argument('--bundle', help='the nan-<step>.npz of a stopped run')
    parser.define_import()


def main(args: argparse.Namespace) -> None:
    command_line.required(
        args, 'bundle', 'names the nan-<step>.npz that a stopped run has left in its folder.'
    )
    bundle = read_bundle(args.bundle)
    step, good = int(bundle['step']), int(bundle['checkpoint'])
    workdir = os.path.dirname(args.bundle) or '.'
    config = read_config(workdir)
    environment.use_cpu_cores(config.batch_size, sizes.size(config.model.variant)['width'])
    compiler.configure(deterministic=config.compute.deterministic, cache=config.compute.cache)
    run = build.run(config)
    state = state_before(run, workdir, good)
    key, batches = jax.random.key(int(bundle['seed'])), loop.open_batches(run, good)
    frozen = everywhere(run.frozen, run.mesh)
    for _ in range(good + 1, step):
        state, _ = run.step(state, to_device(next(batches), run.mesh), key, *frozen)
    batch = {}
    for name, rows in bundle.items():
        if name.startswith('batch/'):
            batch[name.removeprefix('batch/')] = rows
    print(f'Step {step}{cause(run, state, batch, key)}')


def read_bundle(path: str) -> dict[str, np.ndarray]:
    """The arrays of a bundle. Raises UserError for another file."""
    try:
        content = epath.Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f'--bundle: {path} cannot be read ({error.strerror or error}); name the nan-<step>.npz '
            'in the folder of a stopped run.'
        ) from error
    try:
        bundle = dict(np.load(io.BytesIO(content), allow_pickle=False))
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile):
        bundle = {}  # cut off, empty, or of another kind
    if not {'step', 'seed', 'checkpoint', 'batch/image'} <= bundle.keys():
        raise UserError(
            f'--bundle: {path} is damaged, or is no bundle of a stopped run; name the '
            'nan-<step>.npz in its folder.'
        )
    return bundle


def read_config(workdir: str) -> ConfigDict:
    """The config of the run that a bundle lies in. Raises UserError where there is none."""
    path = epath.Path(workdir) / 'config.json'
    try:
        stored = parse_config(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f'--bundle: {path} is missing or damaged; a bundle is replayed where its run left it.'
        ) from error
    return ConfigDict({name: value for name, value in stored.items() if name != 'classes'})


def state_before(run: build.Run, workdir: str, good: int) -> TrainState:
    """The state of the last good step, or a fresh one. Raises UserError where it is gone."""
    checkpoints = checkpoint.Checkpoints(workdir, keep_last=1)
    if good:
        return checkpoints.restore(good, run.like)
    state, _ = resume.starting_state(run, workdir, checkpoints)
    if int(state.step) != good:
        raise UserError(
            f'{workdir} has gone on since: the bundle starts from step {good} and needs a folder '
            'without checkpoints.'
        )
    return state


def cause(run: build.Run, state: TrainState, batch: dict, key) -> str:
    """What made the step of a batch not finite, as the end of a sentence that begins 'Step 12'."""
    draw_key, dropout_key = keys_at(key, state.step)
    # One operation after the other.
    recipe = dataclasses.replace(run.recipe, model=run.model.clone(scan=False, remat='none'))
    drawn = draw(batch, draw_key, recipe)
    for what, tree in (('parameter', state.params), ('input', drawn)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree)):
            if broken(leaf):
                name = jax.tree_util.keystr(path)
                return f': not finite from the start is the {what} {name}.'

    def loss(params):
        return batch_loss(params, drawn, dropout_key, recipe, *run.frozen)[0]

    found = first_broken(jax.value_and_grad(loss), jax.device_get(state.params))
    if found:
        return f': the first NaN or infinity comes from {found}.'
    return ' is finite when repeated: suspect the device.'


def broken(x) -> bool:
    """Whether an array holds NaN or +∞; −∞ is how attention masks."""
    x = np.asarray(x, np.float32)
    return bool((np.isnan(x) | np.isposinf(x)).any())


def first_broken(f, *args) -> str | None:
    """Where f(*args), computed one operation at a time, makes its first NaN or infinity.

    Returns the operation, the part of the model and the line; or None.
    """
    found, _ = _walk(jax.make_jaxpr(f)(*args), jax.tree.leaves(args))
    return found


def _walk(closed, args: list) -> tuple[str | None, list | None]:
    """(what is broken, None) or (None, the outputs) of a program."""
    jaxpr = closed.jaxpr
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *args], strict=True))

    def value(variable):
        return variable.val if isinstance(variable, Literal) else known[variable]

    for operation in jaxpr.eqns:
        values = [value(variable) for variable in operation.invars]
        name = operation.primitive.name
        if name in INNER:
            inner = operation.params[INNER[name]]
            if isinstance(inner, Jaxpr):  # rematerialisation's has no constants of its own
                inner = ClosedJaxpr(inner, ())
            found, outputs = _walk(inner, values)
        else:
            found, outputs = _compute(operation, values)
        if found:
            return found, None
        known.update(zip(operation.outvars, outputs, strict=True))
    return None, [value(variable) for variable in jaxpr.outvars]


def _compute(operation, values: list) -> tuple[str | None, list]:
    """(what is broken, the outputs) of one operation."""
    outputs = operation.primitive.bind(*values, **operation.params)
    if not operation.primitive.multiple_results:
        outputs = [outputs]
    for x in outputs:
        if jnp.issubdtype(x.dtype, jnp.floating) and broken(x):
            where = operation.source_info
            name = operation.primitive.name
            return f'{name} in {where.name_stack}, {summarize(where)}', outputs
    return None, outputs
