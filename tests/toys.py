"""Small states and runs, and damage to them: what the tests of checkpoints, weights and locks
share.
"""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jit_jax.training.checkpoint import Checkpoints
from jit_jax.training.older_configs import complete
from jit_jax.training.state import TrainState

CONFIG = complete(
    {
        'model': {'variant': 'S', 'image_size': 32, 'null': 'mask'},
        'diffusion': {'noise_scale': 1.0},
        'steps': 9,
    }
)
NO_CACHE = {
    'JAX_ENABLE_COMPILATION_CACHE': 'false'
}  # where a process could leave half an entry in JAX's cache of programs


def toy(step: int, *, size: int = 24) -> TrainState:
    """A state whose every array says which step it is from; its optimiser has counters, masks and
    empty states.
    """
    rng = np.random.default_rng(step)

    def tree():
        return {
            'final': {
                'kernel': jnp.asarray(rng.normal(size=(size, 8)), jnp.float32),
                'bias': jnp.full(8, step, jnp.float32),
            },
            'blocks': {'w': jnp.asarray(rng.normal(size=(2, 8, 16)), jnp.float32)},
        }

    params, mask = tree(), {'final': {'kernel': True, 'bias': False}, 'blocks': {'w': True}}
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(1e-3, mask=mask, mu_dtype=jnp.bfloat16)
    )
    opt = jax.tree.map(lambda x: x + jnp.asarray(step, x.dtype), optimizer.init(params))
    return TrainState(
        jnp.int32(step), params, {'ema1': tree(), 'ema2': tree()}, opt, jnp.float32(step / 7)
    )


def like(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def same(a, b) -> bool:
    """Same structure, dtypes and bits."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    bits = all(
        x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs
    )
    return bits and jax.tree.structure(a) == jax.tree.structure(b)


def run_with(workdir, *steps: int, keep_last: int = 9, **keep) -> Checkpoints:
    checkpoints = Checkpoints(workdir, keep_last=keep_last, **keep)
    for step in steps:
        checkpoints.save(toy(step), config=CONFIG)
    assert checkpoints.wait() == (steps[-1] if steps else None)
    return checkpoints


def listing(folder) -> list[str]:
    return sorted(os.listdir(pathlib.Path(folder) / 'checkpoints'))


PREAMBLE = f"""
import os, pathlib, shutil, signal, sys
import jax, jax.numpy as jnp, numpy as np
sys.path.insert(0, {os.path.dirname(__file__)!r})
from toys import CONFIG, like, listing, same, toy
from jit_jax.errors import UserError
from jit_jax.training import checkpoint, lock, manifest, processes
from jit_jax.training.checkpoint import Checkpoints
"""


def python(code: str, *args, exit_code: int = 0, **env) -> str:
    """Runs a program of its own with what this file defines; returns what it printed."""
    env = os.environ | {'JAX_PLATFORMS': 'cpu'} | env
    command = [sys.executable, '-c', PREAMBLE + code, *map(str, args)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == exit_code, done.stdout + done.stderr
    return done.stdout + done.stderr


def flip(file: pathlib.Path, bit: int):
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def biggest(step: pathlib.Path) -> pathlib.Path:
    return max(
        (file for file in step.rglob('*') if file.is_file()), key=lambda file: file.stat().st_size
    )
