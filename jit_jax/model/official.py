"""Official PyTorch weights ↔ this parameter tree, bit for bit, and the command that converts files.

jit-jax convert checkpoint-last.pth runs/official     official weights → a run folder
jit-jax convert runs/official back.pth                a run folder → official weights
"""

import argparse
import importlib
import math
import re
from functools import partial
from pathlib import Path
from statistics import mode

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jit_jax.model.jit import JiT
from jit_jax.model.sequence import GRID, patch_size
from jit_jax.model.sizes import VARIANTS, hidden_width, size

# Ours: (official, its axes, our axes), for both directions. Letters of one word share an axis; the blocks {} are stacked.
#   d width, e width that comes out, f SwiGLU's hidden, n bottleneck, t time features, m class tokens, y labels and null,
#   h heads, j pairs of channels that rotate together, c channels, p and q rows and columns of a patch.
# The two of a pair are neighbours in the official head ('j2') and two halves apart in ours ('2j', see `attention.rotate`).
# v could stay as it is; it is stored with q and k, so it is reordered with them and proj takes it in that order.
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
TABLE = ARRAYS | {
    f'{ours}kernel': (f'{theirs}weight', axes, to) for ours, (theirs, axes, to) in LINEARS.items()
}
TABLE |= {
    f'{ours}bias': (f'{theirs}bias', axes.split()[0], to.split(' ', 1)[1])
    for ours, (theirs, axes, to) in LINEARS.items()
}
CHECKPOINT = {'params': 'model', 'ema1': 'model_ema1', 'ema2': 'model_ema2'}


def from_official(
    state: dict, *, class_start: int | None = None, cond: str = 'fresh', seed: int = 0
) -> tuple[dict, dict]:
    """Official state dict, with or without the prefix `net.` → (architecture, parameter tree of float32 numpy arrays).

    class_start: the block where class tokens enter, which no array shows; needed unless the size is in VARIANTS.
    cond: 'fresh' gives the condition's embedding and tables their initialisation under `seed`, 'copy' the target's.
    The architecture is `variant` and the fields of JiT that decide the tree. Raises ValueError with a list of missing,
    unexpected and misshapen arrays, and for a position table that is not rows + columns.
    """
    if cond not in ('fresh', 'copy'):
        raise ValueError(f"cond must be 'fresh' or 'copy'; got {cond!r}.")
    state = {name.removeprefix('net.'): np.asarray(array) for name, array in state.items()}
    architecture = read_architecture(
        {name: array.shape for name, array in state.items()}, class_start
    )
    letters = _letters(size(architecture['variant']) | architecture)
    flat = {}
    for ours, (theirs, their_axes, our_axes) in TABLE.items():
        arrays = [
            relayout(state[name], their_axes, our_axes, letters)
            for name in _names(theirs, letters['L'])
        ]
        flat[ours] = np.array(arrays if '{}' in theirs else arrays[0], np.float32, order='C')
    flat['target_embed/rows'], flat['target_embed/cols'] = _split_positions(
        state['pos_embed'].astype(np.float32)
    )
    model = JiT(
        **size(architecture['variant']),
        **{name: value for name, value in architecture.items() if name != 'variant'},
    )
    params = unflatten_dict(flat, sep='/') | jax.tree.map(
        np.array, _fresh_condition(model, jax.random.key(seed))
    )
    if cond == 'copy':
        params['cond_embed'] = jax.tree.map(np.copy, params['target_embed'])
    return architecture, params


def to_official(architecture: dict, params: dict, prefix: str = 'net.') -> dict[str, np.ndarray]:
    """The inverse of `from_official`, bit for bit: tree → official state dict of float32 numpy arrays.

    What the official model has no place for, the condition's embedding and the no-condition token, is left out.
    Raises ValueError for a model without classes.
    """
    if not architecture['num_classes']:
        raise ValueError(
            'The official model always has classes; a model with num_classes=0 has no official form.'
        )
    letters = _letters(size(architecture['variant']) | architecture)
    flat = {
        ours: np.asarray(leaf, np.float32) for ours, leaf in flatten_dict(params, sep='/').items()
    }
    state = {
        f'{prefix}pos_embed': (
            flat['target_embed/rows'][:, None] + flat['target_embed/cols']
        ).reshape(1, GRID * GRID, -1)
    }
    for ours, (theirs, their_axes, our_axes) in TABLE.items():
        for name, array in zip(
            _names(theirs, letters['L']), flat[ours] if '{}' in theirs else [flat[ours]]
        ):
            state[prefix + name] = np.array(
                relayout(array, our_axes, their_axes, letters), order='C'
            )
    return state


def read_architecture(shapes: dict[str, tuple], class_start: int | None = None) -> dict:
    """Official names (without `net.`) and shapes → architecture; arguments and errors as in `from_official`."""
    depth = len({match[1] for name in shapes if (match := re.match(r'blocks\.(\d+)\.', name))})
    expected = {
        name: axes for theirs, axes, _ in TABLE.values() for name in _names(theirs, depth)
    } | {'pos_embed': '1 s d'}
    seen = {}
    for name, axes in expected.items():
        for word, n in zip(axes.split(), shapes.get(name, ())):
            seen.setdefault(word, []).append(n)
    # A size is what most arrays say, so that an odd one is told apart; 1 where none of them is there to ask.
    width, head, bottleneck, class_tokens, patch, channels, labels = (
        mode(seen.get(word, [1])) for word in ('d', 'j2', *'nmpcy')
    )
    sizes = dict(
        depth=depth,
        width=width,
        heads=max(1, width // head),
        bottleneck=bottleneck,
        class_tokens=class_tokens,
    )
    architecture = dict(image_size=patch * GRID, channels=channels, num_classes=labels - 1)
    right = {name: _shape(axes, _letters(sizes | architecture)) for name, axes in expected.items()}
    problems = [f'{name} is missing' for name in right if name not in shapes]
    problems += [f'{name} is unexpected' for name in shapes if name not in right]
    problems += [
        f'{name} is {shapes[name]}, not {right[name]}'
        for name in right
        if shapes.get(name, right[name]) != right[name]
    ]
    if problems:
        raise ValueError(f'These are not the weights of an official JiT: {"; ".join(problems)}.')
    return dict(
        variant=_variant(sizes, class_start),
        **architecture,
        tables='sincos',
        freeze_tables=True,
        null='mask',
    )


def load_official(path) -> dict[str, dict[str, np.ndarray]]:
    """An official file → {'params': state dict, 'ema1': …, 'ema2': …} of float32 arrays; some hold 'params' alone.

    From a `.pth`, tensors, plain containers and the `argparse.Namespace` of the released files are read, and nothing
    else is. Raises OSError or ValueError, in one sentence.
    """
    safe = Path(path).suffix == '.safetensors'
    library = _extra('safetensors.numpy' if safe else 'torch')
    open(path, 'rb').close()  # a file that is not there is an error of its own
    try:
        if safe:
            return {
                'params': {
                    name: array.astype(np.float32)
                    for name, array in library.load_file(path).items()
                }
            }
        with library.serialization.safe_globals([argparse.Namespace]):
            # Mapped, not read: beside the weights lies the optimiser, twice their size.
            loaded = library.load(path, map_location='cpu', weights_only=True, mmap=True)
        loaded = loaded if 'model' in loaded else {'model': loaded}
        states = {which: loaded[key] for which, key in CHECKPOINT.items() if key in loaded}
        return {
            which: {name: tensor.float().numpy() for name, tensor in state.items()}
            for which, state in states.items()
        }
    except Exception as error:  # a damaged file or a strange one can end in any of a dozen types
        raise ValueError(
            f'{path} is damaged, or holds something else than the official weights.'
        ) from error


def save_official(path, architecture: dict, params: dict, ema: dict) -> None:
    """Writes an official `.pth`: `model`, and `model_ema1`, `model_ema2` from the trees 'ema1', 'ema2' of `ema`."""
    torch = _extra('torch')
    tensors = lambda tree: {
        name: torch.from_numpy(array) for name, array in to_official(architecture, tree).items()
    }
    part = Path(f'{path}.part')  # a file of the final name is always whole
    part.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {CHECKPOINT[which]: tensors(tree) for which, tree in {'params': params, **ema}.items()},
        part,
    )
    part.rename(path)


def relayout(x, axes: str, to: str, letters: dict[str, int]) -> np.ndarray:
    """Takes an array from one notation of TABLE to another: relayout(w, '2f d', 'd 2 f', sizes of the letters)."""
    split = [letter for letter in axes if letter not in ' 1']
    order = [split.index(letter) for letter in to if letter not in ' 1']
    return (
        x.reshape([letters[letter] for letter in split])
        .transpose(order)
        .reshape(_shape(to, letters))
    )


def _shape(axes: str, letters: dict[str, int]) -> tuple[int, ...]:
    return tuple(math.prod(letters[letter] for letter in word) for word in axes.split())


def _letters(about: dict) -> dict[str, int]:
    d, h, p = about['width'], about['heads'], patch_size(about['image_size'])
    numbers = {digit: int(digit) for digit in '1236'} | dict(
        s=GRID * GRID, t=256, L=about['depth'], y=about['num_classes'] + 1
    )
    widths = dict(
        d=d,
        e=d,
        f=hidden_width(d),
        h=h,
        j=d // h // 2,
        n=about['bottleneck'],
        m=about['class_tokens'],
    )
    return numbers | widths | dict(p=p, q=p, c=about['channels'])


def _names(official: str, depth: int) -> list[str]:
    return [official.format(i) for i in range(depth)] if '{}' in official else [official]


def _variant(sizes: dict, class_start: int | None) -> str:
    for name, row in VARIANTS.items():
        if sizes.items() <= row.items() and class_start in (None, row['class_start']):
            return name
    if class_start not in range(sizes['depth']):
        raise ValueError(
            f'In {sizes}, --class_start must say in which block class tokens start, counted from 0; got {class_start}.'
        )
    return ','.join(
        f'{name}={value}'
        for name, value in (sizes | dict(class_start=class_start, dropout=0.0)).items()
    )


def _split_positions(positions):
    """[1, 256, D] → rows [16, D], cols [16, D]: exactly, where a channel shows one of the two, as in the published table."""
    grid = positions.reshape(GRID, GRID, -1)
    rows = np.where((grid == grid[:1]).all((0, 1)), 0, grid[:, 0])
    cols = grid[0] - rows[0]
    if not np.allclose(rows[:, None] + cols, grid, rtol=0, atol=1e-6):
        raise ValueError(
            'pos_embed is not the sum of a table of rows and a table of columns, as it is in this model.'
        )
    return rows, cols


@partial(jax.jit, static_argnums=0)
def _fresh_condition(model: JiT, key) -> dict:
    """The half of the tree that official weights lack, as `JiT.init` makes it; the compiler leaves the other half out."""
    z = np.zeros((1, model.image_size, model.image_size, model.channels), np.float32)
    params = model.init(key, z, np.zeros(1, np.float32))['params']
    return {name: params[name] for name in ('cond_embed', 'no_condition')}


def _extra(module: str):
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise ValueError(
            "Official files are read and written with PyTorch: pip install 'jit_jax[torch]'."
        ) from None
