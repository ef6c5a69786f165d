"""Official PyTorch weights ↔ this parameter tree, bit for bit.

`from_official` and `to_official` take and give arrays by name; `load_official` and `save_official`
are the files. The command is `jit-jax convert`.
"""

import argparse
import importlib
import math
import os
import re
from functools import partial
from pathlib import Path
from statistics import mode
from types import ModuleType

import jax
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jit_jax.errors import UserError
from jit_jax.model.jit import JiT
from jit_jax.model.sequence import GRID, patch_size
from jit_jax.model.sizes import VARIANTS, hidden_width, size

# Ours: (official, its axes, our axes), for both directions. Letters of one word share an axis; the
# blocks {} are stacked.
#   d width, e width that comes out, f SwiGLU's hidden, n bottleneck, t time features,
#   m class tokens, y labels and null, h heads, j pairs of channels that rotate together,
#   c channels, p and q rows and columns of a patch.
# The two of a pair are neighbours in the official head ('j2') and two halves apart in ours ('2j',
# see `attention.rotate`). v could stay as it is; it is stored with q and k, so it is reordered with
# them, and proj takes it in that order.
ARRAYS = {
    'class_positions': ('in_context_posemb', '1 m d', 'm d'),
    'classes': ('y_embedder.embedding_table.weight', 'y d', 'y d'),
    'target_embed/pixels/kernel': ('x_embedder.proj1.weight', 'n c p q', 'pqc n'),
    'blocks/norm1/weight': ('blocks.{}.norm1.weight', 'd', 'd'),
    'blocks/q_norm/weight': ('blocks.{}.attn.q_norm.weight', 'j2', '2j'),
    'blocks/k_norm/weight': ('blocks.{}.attn.k_norm.weight', 'j2', '2j'),
    'blocks/norm2/weight': ('blocks.{}.norm2.weight', 'd', 'd'),
    'final_norm/weight': ('final_layer.norm_final.weight', 'd', 'd'),
}
LINEARS = {  # the weight; the bias has its outputs
    'time_in/': ('t_embedder.mlp.0.', 'e t', 't e'),
    'time_out/': ('t_embedder.mlp.2.', 'e d', 'd e'),
    'target_embed/out/': ('x_embedder.proj2.', 'd n 1 1', 'n d'),
    'blocks/qkv/': ('blocks.{}.attn.qkv.', '3hj2 d', 'd 3 h 2j'),
    'blocks/proj/': ('blocks.{}.attn.proj.', 'e hj2', 'h2j e'),
    'blocks/w12/': ('blocks.{}.mlp.w12.', '2f d', 'd 2 f'),
    'blocks/w3/': ('blocks.{}.mlp.w3.', 'e f', 'f e'),
    'modulation_': ('blocks.{}.adaLN_modulation.1.', '6e d', 'd 6 e'),
    'final_modulation/': ('final_layer.adaLN_modulation.1.', '2e d', 'd 2 e'),
    'final/': ('final_layer.linear.', 'pqc d', 'd pqc'),
}
TABLE = dict(ARRAYS)
for _ours, (_theirs, _axes, _to) in LINEARS.items():
    TABLE[f'{_ours}kernel'] = (f'{_theirs}weight', _axes, _to)
    TABLE[f'{_ours}bias'] = (f'{_theirs}bias', _axes.split()[0], _to.split(' ', 1)[1])
WITH_CLASS_TOKENS = 'class_positions'  # the row that is left out without them
POSITIONS = 'pos_embed'  # one official table [1, 256, D], two of ours: rows and columns

FLOATS = {'F64': np.float64, 'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16}

ZIP, PICKLE = b'PK', b'\x80'  # how a .pth of today begins, and an older one
CHECKPOINT = {'params': 'model', 'ema1': 'model_ema1', 'ema2': 'model_ema2'}


def from_official(
    state: dict, *, class_start: int | None = None, cond: str = 'fresh', seed: int = 0
) -> tuple[dict, dict]:
    """Official state dict → (architecture, parameter tree of float32 numpy arrays).

    Args:
      state: arrays by official name, with or without the prefix `net.`.
      class_start: the block where class tokens enter, which no array shows; needed unless the size
        is in VARIANTS or has no class tokens.
      cond: 'fresh' gives the condition's embedding and tables their initialisation under `seed`,
        'copy' the target's.

    The architecture is `variant` and the fields of JiT that decide the tree.

    Raises UserError with a list of missing, unexpected and misshapen arrays, and for a position
    table that is not rows + columns.
    """
    if cond not in ('fresh', 'copy'):
        raise UserError(f"cond must be 'fresh' or 'copy'; got {cond!r}.")
    state = {name.removeprefix('net.'): np.asarray(array) for name, array in state.items()}
    shapes = {name: array.shape for name, array in state.items()}
    architecture = read_architecture(shapes, class_start)
    sizes = size(architecture['variant'])
    letters = _letters(sizes | architecture)
    flat = {}
    for ours, (theirs, their_axes, our_axes) in _table(sizes['class_tokens']).items():
        arrays = [
            relayout(state[name], their_axes, our_axes, letters)
            for name in _names(theirs, letters['L'])
        ]
        leaf = arrays if _is_stacked(theirs) else arrays[0]
        flat[ours] = np.array(leaf, np.float32, order='C')
    rows, columns = _split_positions(state[POSITIONS].astype(np.float32))
    flat |= {'target_embed/rows': rows, 'target_embed/cols': columns}
    fields = {name: value for name, value in architecture.items() if name != 'variant'}
    fresh = _fresh_condition(JiT(**sizes, **fields), jax.random.key(seed))
    params = unflatten_dict(flat, sep='/') | jax.tree.map(np.array, fresh)
    if cond == 'copy':
        params['cond_embed'] = jax.tree.map(np.copy, params['target_embed'])
    return architecture, params


def to_official(architecture: dict, params: dict, prefix: str = 'net.') -> dict[str, np.ndarray]:
    """The inverse of `from_official`, bit for bit: tree → official state dict of float32 arrays.

    What the official model has no place for, the condition's embedding and the no-condition token,
    is left out. Raises UserError for a model without classes, or with what decides the function of
    every regime and has no place there.
    """
    if not architecture['num_classes']:
        raise UserError(
            'The official model always has classes; a model with num_classes=0 has no official '
            'form.'
        )
    if 'end_out' in params:
        raise UserError(
            'This model takes the end of a step (config.model.end_time), for which the official '
            'model has no place; jit-jax export writes its weights.'
        )
    sizes = size(architecture['variant'])
    letters = _letters(sizes | architecture)
    flat = {
        ours: np.asarray(leaf, np.float32) for ours, leaf in flatten_dict(params, sep='/').items()
    }
    positions = flat['target_embed/rows'][:, None] + flat['target_embed/cols']
    state = {prefix + POSITIONS: positions.reshape(1, GRID * GRID, -1)}
    for ours, (theirs, their_axes, our_axes) in _table(sizes['class_tokens']).items():
        arrays = flat[ours] if _is_stacked(theirs) else [flat[ours]]
        for name, array in zip(_names(theirs, letters['L']), arrays, strict=True):
            laid_out = relayout(array, our_axes, their_axes, letters)
            state[prefix + name] = np.array(laid_out, order='C')
    return state


def read_architecture(shapes: dict[str, tuple], class_start: int | None = None) -> dict:
    """Official names (without `net.`) and shapes → architecture; errors as in `from_official`."""
    depth = len({match[1] for name in shapes if (match := re.match(r'blocks\.(\d+)\.', name))})
    class_positions, _, _ = TABLE[WITH_CLASS_TOKENS]
    expected = {POSITIONS: '1 s d'}
    for theirs, axes, _ in _table(class_positions in shapes).values():
        expected |= dict.fromkeys(_names(theirs, depth), axes)

    sizes, architecture = _sizes(shapes, expected, depth)
    if class_positions not in shapes:
        sizes['class_tokens'] = 0
    letters = _letters(sizes | architecture)
    right = {name: _shape(axes, letters) for name, axes in expected.items()}
    problems = [f'{name} is missing' for name in right if name not in shapes]
    problems += [f'{name} is unexpected' for name in shapes if name not in right]
    for name in right:
        if name in shapes and shapes[name] != right[name]:
            problems.append(f'{name} is {shapes[name]}, not {right[name]}')
    if problems:
        raise UserError(f'These are not the weights of an official JiT: {"; ".join(problems)}.')
    start = {'tables': 'sincos', 'freeze_tables': True, 'null': 'mask'}
    return {'variant': _variant(sizes, class_start), **architecture, **start}


def _sizes(shapes: dict, expected: dict[str, str], depth: int) -> tuple[dict, dict]:
    """The sizes and the rest of the architecture that most arrays say, so that an odd one shows.

    Where no array is there to ask, 1.
    """
    found = {}
    for name, axes in expected.items():
        for word, n in zip(axes.split(), shapes.get(name, ())):
            found.setdefault(word, []).append(n)

    def most(word: str) -> int:
        return mode(found[word]) if word in found else 1

    width = most('d')
    sizes = {
        'depth': depth,
        'width': width,
        'heads': max(1, width // most('j2')),
        'bottleneck': most('n'),
        'class_tokens': most('m'),
    }
    architecture = {
        'image_size': most('p') * GRID,
        'channels': most('c'),
        'num_classes': most('y') - 1,
    }
    return sizes, architecture


def _variant(sizes: dict, class_start: int | None) -> str:
    """The name of a size, or the size spelled out. Raises UserError where class_start is needed."""
    for name, row in VARIANTS.items():
        if sizes.items() <= row.items() and class_start in (None, row['class_start']):
            return name
    if not sizes['class_tokens']:
        class_start = 0  # nothing enters anywhere
    if class_start not in range(sizes['depth']):
        raise UserError(
            f'In {sizes}, --class_start must say in which block class tokens start, counted from '
            f'0; got {class_start}.'
        )
    spelled = sizes | {'class_start': class_start, 'dropout': 0.0}
    return ','.join(f'{name}={value}' for name, value in spelled.items())


def load_official(path) -> dict[str, dict[str, np.ndarray]]:
    """An official file → {'params': state dict, 'ema1': …, 'ema2': …}; some hold 'params' alone.

    Arrays are float32. From a `.pth`, tensors, plain containers and the `argparse.Namespace` of the
    released files are read, and nothing else is. Raises UserError.
    """
    safe = Path(path).suffix == '.safetensors'
    try:
        with open(path, 'rb') as file:
            begins = file.read(len(ZIP))
    except OSError as error:
        raise UserError(
            f'{path} cannot be read ({error.strerror}); name an official .pth or .safetensors.'
        ) from error
    if not safe and not begins.startswith((ZIP, PICKLE)):
        raise UserError(f'{path} is damaged, or holds something else than the official weights.')
    library = extra('safetensors' if safe else 'torch')
    try:
        if safe:
            return {'params': read_safetensors(Path(path).read_bytes())}
        return _load_pth(library, path)
    except Exception as error:  # a damaged file or a strange one can end in any of a dozen types
        raise UserError(
            f'{path} is damaged, or holds something else than the official weights.'
        ) from error


def read_safetensors(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of a .safetensors by name; floats of any width become float32."""
    arrays = {}
    for name, found in extra('safetensors').deserialize(content):
        flat = np.frombuffer(found['data'], FLOATS[found['dtype']])
        arrays[name] = flat.reshape(found['shape']).astype(np.float32)
    return arrays


def _load_pth(torch: ModuleType, path) -> dict[str, dict[str, np.ndarray]]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        # Mapped, not read: beside the weights lies the optimiser, twice their size.
        loaded = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    loaded = loaded if 'model' in loaded else {'model': loaded}
    states = {}
    for which, key in CHECKPOINT.items():
        if key in loaded:
            states[which] = {name: x.float().numpy() for name, x in loaded[key].items()}
    return states


def save_official(path, architecture: dict, params: dict, ema: dict) -> None:
    """Writes an official `.pth`: `model`, and `model_ema1` … from the trees 'ema1' … of `ema`.

    A file of that name is always whole. Raises UserError where it cannot be written.
    """
    torch = extra('torch')
    content = {}
    for which, tree in {'params': params, **ema}.items():
        state = to_official(architecture, tree)
        content[CHECKPOINT[which]] = {name: torch.from_numpy(x) for name, x in state.items()}
    part = Path(f'{path}.part')
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with open(part, 'wb') as file:
            torch.save(content, file)
        os.replace(part, path)
    except OSError as error:
        raise UserError(
            f'{path} cannot be written ({error.strerror or error}); name another destination.'
        ) from error


def extra(module: str) -> ModuleType:
    """A module that reads or writes official files. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise UserError(
            'Official files are read and written with PyTorch: pip install torch safetensors.'
        ) from None


def relayout(x, axes: str, to: str, letters: dict[str, int]) -> np.ndarray:
    """Takes an array from one notation of TABLE to another: relayout(w, '2f d', 'd 2 f', letters).

    letters: the size of each.
    """
    split = [letter for letter in axes if letter not in ' 1']
    order = [split.index(letter) for letter in to if letter not in ' 1']
    by_letter = x.reshape([letters[letter] for letter in split])
    return by_letter.transpose(order).reshape(_shape(to, letters))


def _shape(axes: str, letters: dict[str, int]) -> tuple[int, ...]:
    return tuple(math.prod(letters[letter] for letter in word) for word in axes.split())


def _letters(about: dict) -> dict[str, int]:
    """The size of each letter of TABLE, and of L, the blocks."""
    width, heads = about['width'], about['heads']
    patch = patch_size(about['image_size'])
    numbers = {digit: int(digit) for digit in '1236'}
    return numbers | {
        's': GRID * GRID,
        't': 256,
        'L': about['depth'],
        'y': about['num_classes'] + 1,
        'd': width,
        'e': width,
        'f': hidden_width(width),
        'h': heads,
        'j': width // heads // 2,
        'n': about['bottleneck'],
        'm': about['class_tokens'],
        'p': patch,
        'q': patch,
        'c': about['channels'],
    }


def _table(class_tokens: int) -> dict[str, tuple[str, str, str]]:
    """TABLE, without the row of class tokens where there are none."""
    return {ours: row for ours, row in TABLE.items() if class_tokens or ours != WITH_CLASS_TOKENS}


def _is_stacked(official: str) -> bool:
    return '{}' in official


def _names(official: str, depth: int) -> list[str]:
    """The official name, or one a block where blocks are stacked."""
    return [official.format(i) for i in range(depth)] if _is_stacked(official) else [official]


def _split_positions(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[1, 256, D] → rows [16, D], columns [16, D].

    Exactly, where a channel shows one of the two, as in the published table.
    """
    grid = positions.reshape(GRID, GRID, -1)
    rows = np.where((grid == grid[:1]).all((0, 1)), 0, grid[:, 0])
    columns = grid[0] - rows[0]
    if not np.allclose(rows[:, None] + columns, grid, rtol=0, atol=1e-6):
        raise UserError(
            'pos_embed is not the sum of a table of rows and a table of columns, as it is in this '
            'model.'
        )
    return rows, columns


@partial(jax.jit, static_argnums=0)
def _fresh_condition(model: JiT, key) -> dict:
    """The half of the tree that official weights lack, as `JiT.init` makes it.

    The compiler leaves the other half out.
    """
    z = np.zeros((1, model.image_size, model.image_size, model.channels), np.float32)
    params = model.init(key, z, np.zeros(1, np.float32))['params']
    return {name: params[name] for name in ('cond_embed', 'no_condition')}
