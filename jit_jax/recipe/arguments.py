"""What the verbs of `jit_jax` are given besides a condition; what cannot be is a UserError."""

import os
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jit_jax.errors import UserError, shown
from jit_jax.model.jit import JiT
from jit_jax.recipe import build
from jit_jax.recipe.inputs import is_whole

SEEDS = 2**32  # JAX takes this much of a seed, and would drop the rest unsaid
KEY = 'a seed such as 0, or a random key such as jax.random.key(0)'


def random_key(key) -> jax.Array:
    """One random key: the key itself, or of a seed what `jax.random.key` makes of it.

    A seed is a whole number, of Python, NumPy or JAX. The raw numbers of an older key, uint32 [2],
    will do too. Raises UserError for all else.
    """
    if key is None:
        raise UserError(f'key is missing; give {KEY}; another one draws other images.')
    if is_whole(key):
        return jax.random.key(_seed(int(key)))
    if not isinstance(key, (jax.Array, np.ndarray)):
        raise UserError(f'key is {KEY}; got {shown(key)}.')
    if key.ndim == 0 and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    if key.ndim == 0 and jnp.issubdtype(key.dtype, jnp.integer):
        return jax.random.key(_seed(int(key)))
    raw = jax.eval_shape(jax.random.key_data, jax.eval_shape(partial(jax.random.key, 0)))
    if (key.dtype, key.shape) == (raw.dtype, raw.shape):
        return jax.random.wrap_key_data(jnp.asarray(key))
    raise UserError(f'key is {KEY}; got {key.dtype} {list(key.shape)}.')


def _seed(number: int) -> int:
    if not 0 <= number < SEEDS:
        raise UserError(f'key is a seed from 0 to {SEEDS - 1}, or a random key; got {number}.')
    return number


def check_params(net: JiT, params) -> None:
    """Raises UserError unless every parameter of the network is in the tree, in its shape."""
    if not isinstance(params, Mapping):
        raise UserError(
            'params is what jit_jax.load returns beside the model, a tree of arrays; got '
            f'{shown(params)}.'
        )
    found = flatten_dict(params, sep='/')
    for name, like in flatten_dict(build.parameter_shapes(net), sep='/').items():
        here = list(np.shape(found[name])) if name in found else 'missing'
        if here != list(like.shape):
            raise UserError(
                f'params are not of this model, whose {name} is {list(like.shape)} and here is '
                f'{here}; give the two that one jit_jax.load returned.'
            )


def check_path(name: str, path) -> None:
    """Raises UserError unless `path` names a folder, or a file."""
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise UserError(f"{name} is the folder of a run, such as 'runs/uncond'; got {shown(path)}.")
