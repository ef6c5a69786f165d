"""Repeats the step at which a run stopped because its loss was not finite, and says what made the first NaN or infinity.

examples:
  jit-jax replay --bundle=runs/uncond/nan-1234.npz

A stopped run leaves the bundle: the step's batch, its number, the seed and the last good checkpoint. The steps from there are
trained again, which gives the same parameters; then the step is computed one operation at a time.
"""

import argparse
import dataclasses
import io
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.extend.core import Literal
from jax.extend.source_info_util import summarize
from ml_collections import ConfigDict

from jit_jax import loop, resume
from jit_jax.commands import command_line, environment
from jit_jax.hardware import compiler
from jit_jax.model import sizes
from jit_jax.model.sharding import to_device
from jit_jax.recipe import build
from jit_jax.training import checkpoint
from jit_jax.training.step import batch_loss, draw


def broken(x) -> bool:
    """Whether an array holds NaN or +∞; −∞ is how attention masks."""
    x = np.asarray(x, np.float32)
    return bool((np.isnan(x) | np.isposinf(x)).any())


def first_broken(f, *args) -> str | None:
    """Where f(*args), computed one operation at a time, makes its first NaN or infinity: operation, part of the model, line; or None."""

    def walk(closed, args):
        jaxpr = closed.jaxpr
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *args], strict=True))
        read = lambda v: v.val if isinstance(v, Literal) else known[v]
        for eqn in jaxpr.eqns:
            inputs, found = [read(v) for v in eqn.invars], None
            name, inner = (
                eqn.primitive.name,
                {'jit': 'jaxpr', 'pjit': 'jaxpr', 'custom_jvp_call': 'call_jaxpr'},
            )
            if name in inner:
                found, outputs = walk(eqn.params[inner[name]], inputs)
            else:
                outputs = eqn.primitive.bind(*inputs, **eqn.params)
                outputs = outputs if eqn.primitive.multiple_results else [outputs]
                if any(jnp.issubdtype(x.dtype, jnp.floating) and broken(x) for x in outputs):
                    found = f'{name} in {eqn.source_info.name_stack}, {summarize(eqn.source_info)}'
            if found:
                return found, None
            known.update(zip(eqn.outvars, outputs, strict=True))
        return None, [read(v) for v in jaxpr.outvars]

    return walk(jax.make_jaxpr(f)(*args), jax.tree.leaves(args))[0]


def define_flags(parser: command_line.Parser) -> None:
    parser.add_argument('--bundle', help='the nan-<step>.npz of a stopped run')


def main(args: argparse.Namespace) -> None:
    command_line.required(
        args, 'bundle', 'names the nan-<step>.npz that a stopped run has left in its folder.'
    )
    bundle, workdir = (
        np.load(io.BytesIO(epath.Path(args.bundle).read_bytes())),
        os.path.dirname(args.bundle) or '.',
    )
    step, good = int(bundle['step']), int(bundle['checkpoint'])
    stored = json.loads((epath.Path(workdir) / 'config.json').read_text())
    config = ConfigDict({name: value for name, value in stored.items() if name != 'classes'})
    environment.use_cpu_cores(config.batch_size, sizes.size(config.model.variant)['width'])
    compiler.configure(deterministic=config.compute.deterministic, cache=config.compute.cache)
    run, checkpoints = build.run(config), checkpoint.Checkpoints(workdir, keep_last=1)
    state = (
        checkpoints.restore(good, run.like)
        if good
        else resume.starting_state(run, workdir, checkpoints)[0]
    )
    if int(state.step) != good:
        raise ValueError(
            f'{workdir} has gone on since: the bundle starts from step {good} and needs a folder without checkpoints.'
        )
    key, batches = jax.random.key(int(bundle['seed'])), loop.open_batches(run, good)
    for _ in range(good + 1, step):
        state, _ = run.step(state, to_device(next(batches), run.mesh), key)
    batch = {
        name.removeprefix('batch/'): rows
        for name, rows in bundle.items()
        if name.startswith('batch/')
    }
    draw_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
    # One operation after the other.
    plain = dataclasses.replace(run.recipe, model=run.model.clone(scan=False, remat='none'))
    drawn = draw(batch, draw_key, plain)
    for what, tree in (('parameter', state.params), ('input', drawn)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree)):
            if broken(leaf):
                print(
                    f'Step {step}: not finite from the start is the {what} {jax.tree_util.keystr(path)}.'
                )
                return
    loss = jax.value_and_grad(lambda params: batch_loss(params, drawn, dropout_key, plain))
    found = first_broken(loss, jax.device_get(state.params))
    print(
        f'Step {step}: the first NaN or infinity comes from {found}.'
        if found
        else f'Step {step} is finite when repeated: suspect the device.'
    )
