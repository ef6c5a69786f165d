"""Writes a run's weights without its optimiser, small enough to mail, and a model card: a page with
the run's samples, numbers and config and how to load it, as the Hugging Face Hub shows it.

examples:
  jit-jax export --workdir=runs/uncond --out=uncond.safetensors
  jit-jax export --workdir=runs/uncond --ema=params --out=a/folder    # for Orbax
"""

import argparse
import json

import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from jit_jax.commands import command_line
from jit_jax.errors import UserError
from jit_jax.evaluation import model_card
from jit_jax.output import destination
from jit_jax.training.manifest import UNSIGNED, sign
from jit_jax.training.storage import PARTIAL
from jit_jax.training.weights import read_weights, write_weights


def export(workdir: str, ema: str, out: str, *, card: bool = False) -> str:
    """Writes weights of a run and its config, whole or not at all; says so in a sentence.

    Args:
      workdir: the run.
      ema: which weights, 'params', 'ema1' …
      out: a .safetensors file, replaced when it exists, or a folder to make.
      card: with a model card.

    Raises UserError.
    """
    destination.check_place(out, '--out')
    config, tree, step = read_weights(workdir, ema)
    with destination.writing(out, '--out'):
        if out.endswith('.safetensors'):
            write_safetensors(out, config, ema, tree, step)
        elif ema == 'params':
            write_weights(out, config, tree, {}, step)
        else:
            write_weights(out, config, None, {ema: tree}, step)
    count = sum(array.size for array in flatten_dict(tree).values())
    said = f'Wrote {ema} of {workdir} at step {step}, {count / 1e6:.1f} M parameters, to {out}.'
    if card:
        with destination.writing(out, '--out'):
            said += f' Its model card: {model_card.write(out, workdir, config, ema, step)}'
    return said


def write_safetensors(out: str, config: dict, weights: str, tree: dict, step: int) -> None:
    """One file: arrays by path ('blocks/qkv/kernel'), and what they are, with a hash of it all."""
    try:
        from safetensors.numpy import save
    except ImportError:
        raise UserError(f'Writing {out} needs a package: pip install safetensors.') from None
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


def define_flags(parser: command_line.Parser) -> None:
    parser.add_argument('--workdir', help='the run folder to export')
    parser.add_argument('--ema', default='ema1', help='which of its weights: params, ema1, ema2 …')
    parser.add_argument('--out', help='a .safetensors file, or a folder to make')


def main(args: argparse.Namespace) -> None:
    command_line.required(args, 'workdir', 'says which run to export, as --workdir=runs/uncond.')
    command_line.required(args, 'out', 'says where to: a .safetensors file or a folder to make.')
    print(export(args.workdir, args.ema, args.out, card=True))
