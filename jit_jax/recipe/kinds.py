"""Conditions as a config names them: imported, made, and what each looks like.

Converted runs name a kind alone; they get the defaults of `conditions.make`.
"""

import importlib
import os
import sys
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jit_jax.data import condition_names, count_classes
from jit_jax.diffusion import conditions
from jit_jax.errors import UserError


def import_own(config) -> None:
    """Imports the module with conditions of the user's own that a config names, if it names one.

    Raises UserError where that cannot be imported.
    """
    section = config['condition']
    if 'module' in section and section['module']:
        import_module(section['module'], 'config.condition.module')


def import_module(name: str, flag: str) -> None:
    """Imports a module by its name, from the working folder too. It puts its conditions into KINDS.

    Raises UserError, which begins with `flag`, where there is no such module or it is no Python.
    """
    parts = name.split('.')
    if parts[-1] == 'py' or not all(part.isidentifier() for part in parts):
        raise UserError(
            f'{flag} names a module, such as mycond for the file mycond.py; got {name!r}.'
        )
    if os.getcwd() not in sys.path and '' not in sys.path:
        sys.path.append(os.getcwd())  # where a command that is a program does not search by itself
    try:
        importlib.import_module(name)
    except (ImportError, SyntaxError) as error:
        reason = ' '.join(str(error).split())
        raise UserError(
            f'{flag}: {name} cannot be imported ({reason}); go where {name}.py is, or put its '
            'folder on PYTHONPATH.'
        ) from error


def condition(config, kind: str = '') -> Callable:
    """(x, batch, key) → what the model is conditioned on about x, as config.condition says.

    kind: another kind with the same settings, such as one of its options.
    """
    section = config['condition']
    settings = {}
    for name in conditions.SETTINGS:
        if name in section:
            value = section[name]
            settings[name] = value if np.isscalar(value) else tuple(value)  # JSON has lists
    return conditions.make(kind or section['kind'], **settings)


def options(config) -> dict[str, dict]:
    """What each option of a run's condition makes of one image: shapes by keyword of
    `JiT.__call__`, by the option, such as 'edges+class'.
    """
    found = {}
    for names in conditions.parse(config['condition']['kind']):
        found['+'.join(names)] = shapes(config, names)
    return found


def shapes(config, names: list[str]) -> dict:
    """What conditions that are given together make of one image: shapes by keyword."""
    side, channels = config['model']['image_size'], config['model']['channels']
    x = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    batch = {
        'label': jax.ShapeDtypeStruct((1,), jnp.int32),
    }
    section = config['condition']
    for name in condition_names(section['paired'] if 'paired' in section else 1):
        batch[name] = jax.ShapeDtypeStruct(x.shape, jnp.uint8)
    if 'text' in names:
        batch |= shapes_of_a_text(config, 1)
    key = jax.eval_shape(partial(jax.random.key, 0))
    return jax.eval_shape(condition(config, '+'.join(names)), x, batch, key)


def classes_there(section) -> str:
    """What to do where config.data lacks classes, in words that follow 'needs classes'."""
    if section['kind'] != 'folder':
        return '; set config.model.num_classes'
    count = count_classes(section['path'] or None, section['train'], section['holdout'])
    if count:
        return f', of which {section["path"]} has {count}; set config.model.num_classes={count}'
    return f', and {section["path"]} has none; put the images of each into a sub-folder'


def text_tokens(config) -> int:
    """The tokens of a caption in the programs of a config; 0 for a run without text."""
    section = config['condition']
    return section['tokens'] if 'text' in conditions.kinds(section['kind']) else 0


def embeddings(config) -> str:
    """The folder of embeddings of a run's captions; '' where those are bytes, or there are none."""
    return config['condition']['embeddings'] if text_tokens(config) else ''


def shapes_of_a_text(config, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The tokens of a batch with captions, as the data pipeline makes them."""
    tokens = jax.ShapeDtypeStruct((rows, text_tokens(config)), jnp.uint8)
    if embeddings(config):
        shape = (*tokens.shape, config['model']['token_width'])
        tokens = jax.ShapeDtypeStruct(shape, jnp.float16)
    return {'tokens': tokens, 'token_count': jax.ShapeDtypeStruct((rows,), jnp.int32)}


@partial(jax.jit, static_argnums=3)
def each_row(batch, key, index, condition) -> dict:
    """The condition of each row by a key of its own, which depends on index [B] alone.

    batch: arrays by name, 'image' uint8 [B, H, H, C] among them. condition: as `condition` gives.
    """

    def one(row, i):
        row = jax.tree.map(_one_row, row)
        return condition(conditions.from_uint8(row['image']), row, jax.random.fold_in(key, i))

    return jax.tree.map(_first_of_each, jax.vmap(one)(batch, index))


def _one_row(x):
    return x[None]


def _first_of_each(x):
    return x[:, 0]
