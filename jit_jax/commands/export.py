"""A run's weights without its optimiser, small enough to mail:

jit-jax export --workdir=runs/uncond --out=uncond.safetensors    # or --out=a/folder, for Orbax
"""

import json
import os

import numpy as np
from absl import flags
from etils import epath
from flax.traverse_util import flatten_dict

from jit_jax.commands import cli
from jit_jax.training.checkpoint import PARTIAL, read_weights, write_weights
from jit_jax.training.manifest import UNSIGNED, sign


def export(workdir: str, ema: str, out: str) -> str:
    """Writes the weights `ema` of `workdir` and its config to `out`, whole or not at all; says so in a sentence.

    out: a .safetensors file, replaced when it exists, or a folder to make. Raises FileNotFoundError, FileExistsError or
    ValueError, in one sentence.
    """
    config, tree, step = read_weights(workdir, ema)
    if out.endswith('.safetensors'):
        write_safetensors(out, config, ema, tree, step)
    elif ema == 'params':
        write_weights(out, config, tree, {}, step)
    else:
        write_weights(out, config, None, {ema: tree}, step)
    count = sum(array.size for array in flatten_dict(tree).values())
    return f'Wrote {ema} of {workdir} at step {step}, {count / 1e6:.1f} M parameters, to {out}.'


def write_safetensors(out: str, config: dict, weights: str, tree: dict, step: int) -> None:
    """One file: arrays by path ('blocks/qkv/kernel'), and what they are in its metadata, with a hash of it all."""
    try:
        from safetensors.numpy import save
    except ImportError:
        raise ValueError(f'Writing {out} needs a package: pip install safetensors.') from None
    arrays = {
        name: np.ascontiguousarray(array) for name, array in flatten_dict(tree, sep='/').items()
    }
    about = {
        'config': json.dumps(config),
        'weights': weights,
        'step': str(step),
        'sha256': UNSIGNED.decode(),
    }
    path = epath.Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f'{path.name}{PARTIAL}'
    partial.write_bytes(sign(save(arrays, about)))
    partial.replace(path)


def main() -> None:
    flags.DEFINE_string('workdir', None, 'Folder of the run to export.')
    flags.DEFINE_string('ema', 'ema1', 'Which of its weights: params, ema1 or ema2.')
    flags.DEFINE_string('out', None, 'A .safetensors file or a folder.')
    cli.parse()
    with cli.one_sentence():
        for name in ('workdir', 'out'):
            if not flags.FLAGS[name].value:
                raise ValueError(f'--{name} is missing: {flags.FLAGS[name].help}')
        print(export(flags.FLAGS.workdir, flags.FLAGS.ema, os.fspath(flags.FLAGS.out)))


if __name__ == '__main__':
    main()
