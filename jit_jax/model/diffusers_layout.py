"""JiT in the layout of the diffusers library, as on the Hugging Face Hub ↔ this parameter tree.

A folder with `config.json` and `diffusion_pytorch_model.safetensors`, in one file or in shards that
an index lists; alone, or as `transformer/` of a pipeline. The arrays are the official ones, named
as the library's JiTTransformer2DModel names them, or as an earlier class did that wrapped the
official network. Either is read; the former is written.
"""

import json
import re
from pathlib import Path

import numpy as np

from jit_jax.errors import UserError
from jit_jax.model.official import extra, read_safetensors, to_official
from jit_jax.model.sequence import patch_size
from jit_jax.model.sizes import size

CLASS = 'JiTTransformer2DModel'
STEM = 'diffusion_pytorch_model'
FILES = f'config.json of {CLASS} and {STEM}.safetensors'  # what is looked for, in words
SHARD_BYTES = 5_000_000_000  # of a file, at most
NORM_EPS = 1e-6  # of every RMSNorm in `layers`
MLP_RATIO = 4.0  # of SwiGLU, before its two thirds: see `sizes.hidden_width`

# Where names differ, as patterns of their beginnings.
TO_THEIRS = (
    (r'(blocks\.\d+\.adaLN_modulation)\.1\.', r'\1.'),
    (r'final_layer\.norm_final\.', 'norm_final.'),
    (r'final_layer\.linear\.', 'linear_final.'),
    (r'final_layer\.adaLN_modulation\.1\.', 'adaLN_modulation_final.'),
)
TO_OFFICIAL = (
    (r'(blocks\.\d+\.adaLN_modulation)\.(?=weight|bias)', r'\1.1.'),
    (r'norm_final\.', 'final_layer.norm_final.'),
    (r'linear_final\.', 'final_layer.linear.'),
    (r'adaLN_modulation_final\.', 'final_layer.adaLN_modulation.1.'),
)
WRAPPED = 'transformer.'  # before official names, in the earlier class


def find(folder: Path) -> Path | None:
    """The folder of the network in `folder` or its `transformer/`; None where there is none."""
    for place in (folder, folder / 'transformer'):
        if _class_name(place / 'config.json') == CLASS:
            return place
    return None


def _class_name(path: Path) -> str | None:
    try:
        return json.loads(path.read_text())['_class_name']
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load(folder: Path) -> tuple[dict[str, np.ndarray], int | None]:
    """A folder that `find` found → (arrays by official name, where class tokens enter).

    The latter is None where config.json names a published model instead. Raises UserError for files
    that are missing or damaged, and for a network that is not this one.
    """
    config = json.loads((folder / 'config.json').read_text())
    eps = config.get('norm_eps')
    if eps not in (None, NORM_EPS):
        raise UserError(f'{folder}/config.json: norm_eps is {eps}; this model has {NORM_EPS}.')
    arrays = {}
    for path in _files(folder):
        arrays |= _read(path)
    state = {official_name(name): array for name, array in arrays.items()}
    return state, config.get('in_context_start')


def _files(folder: Path) -> list[Path]:
    """The files of arrays: those that the index lists, or the only one."""
    whole, index = folder / f'{STEM}.safetensors', folder / f'{STEM}.safetensors.index.json'
    if not index.exists():
        return [whole]
    try:
        names = set(json.loads(index.read_text())['weight_map'].values())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f'{index} is damaged; download it again.') from error
    return [folder / name for name in sorted(names)]


def _read(path: Path) -> dict[str, np.ndarray]:
    extra('safetensors')
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f'{path} cannot be read ({error.strerror}); config.json needs it beside it.'
        ) from error
    try:
        return read_safetensors(content)
    except Exception as error:  # what a damaged file ends in is the library's own
        raise UserError(f'{path} is damaged; download it again.') from error


def save(folder: Path, architecture: dict, params: dict, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes a tree as `JiTTransformer2DModel.from_pretrained(folder)` reads it, in float32.

    What the official model has no place for is left out, as in `to_official`, which says what is
    raised. Raises OSError where the folder cannot be written.
    """
    library = extra('safetensors.numpy')
    state = to_official(architecture, params, prefix='')
    arrays = {diffusers_name(name): array for name, array in state.items()}
    shards = _shards(arrays, shard_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    where = {}
    for i, shard in enumerate(shards):
        name = f'{STEM}.safetensors'
        if len(shards) > 1:
            name = f'{STEM}-{i + 1:05d}-of-{len(shards):05d}.safetensors'
        where |= dict.fromkeys(shard, name)
        (folder / name).write_bytes(library.save(shard, metadata={'format': 'pt'}))
    if len(shards) > 1:
        total = sum(array.nbytes for array in arrays.values())
        index = {'metadata': {'total_size': total}, 'weight_map': where}
        (folder / f'{STEM}.safetensors.index.json').write_text(json.dumps(index, indent=2))
    (folder / 'config.json').write_text(json.dumps(_config(architecture), indent=2))


def _shards(arrays: dict[str, np.ndarray], limit: int) -> list[dict[str, np.ndarray]]:
    """The arrays in order, in parts of at most `limit` bytes, or of one array."""
    shards, used = [{}], 0
    for name, array in arrays.items():
        if shards[-1] and used + array.nbytes > limit:
            shards.append({})
            used = 0
        shards[-1][name] = array
        used += array.nbytes
    return shards


def _config(architecture: dict) -> dict:
    """The arguments of JiTTransformer2DModel."""
    sizes = size(architecture['variant'])
    return {
        '_class_name': CLASS,
        'sample_size': architecture['image_size'],
        'patch_size': patch_size(architecture['image_size']),
        'in_channels': architecture['channels'],
        'hidden_size': sizes['width'],
        'num_layers': sizes['depth'],
        'num_attention_heads': sizes['heads'],
        'mlp_ratio': MLP_RATIO,
        'attention_dropout': 0.0,
        'dropout': sizes['dropout'],
        'num_classes': architecture['num_classes'],
        'bottleneck_dim': sizes['bottleneck'],
        'in_context_len': sizes['class_tokens'],
        'in_context_start': sizes['class_start'],
        'norm_eps': NORM_EPS,
    }


def official_name(name: str) -> str:
    """Theirs, of either class → the official name, without `net.`."""
    return _renamed(name.removeprefix(WRAPPED), TO_OFFICIAL)


def diffusers_name(name: str) -> str:
    """An official name, without `net.` → the library's."""
    return _renamed(name, TO_THEIRS)


def _renamed(name: str, pairs: tuple) -> str:
    for before, after in pairs:
        if re.match(before, name):
            return re.sub(before, after, name, count=1)
    return name
