"""Converts official PyTorch weights to a run folder, or a run folder back.

examples:
  jit-jax convert checkpoint-last.pth runs/official
  jit-jax convert runs/official back.pth
"""

import argparse
import dataclasses
from pathlib import Path

from jit_jax.commands import command_line
from jit_jax.diffusion.guidance import GUIDANCE
from jit_jax.diffusion.objective import Diffusion
from jit_jax.errors import UserError
from jit_jax.model.official import from_official, load_official, save_official
from jit_jax.training.weights import read_weights, write_weights

PUBLISHED_DECAYS = [0.9999, 0.9996]  # of the averages that official files hold


def _run_config(architecture: dict, decays: list[float]) -> dict:
    """The config.json of a run that would have ended in these weights."""
    guidance = GUIDANCE.get((architecture['image_size'], architecture['variant']), 1.0)
    return {
        'model': architecture,
        'compute': {'dtype': 'auto', 'dead_slots': 'skip', 'scan': True, 'remat': 'none'},
        'condition': {'kind': 'class'},
        'diffusion': dataclasses.asdict(Diffusion(noise_scale=architecture['image_size'] / 256)),
        'ema': {'decays': decays},
        'sample': {'sampler': 'heun', 'steps': 50, 'guidance': guidance, 'interval': (0.1, 1.0)},
    }


def define_flags(parser: command_line.Parser) -> None:
    parser.add_argument(
        'source', type=Path, help='an official .pth or .safetensors, or a run folder'
    )
    parser.add_argument('destination', type=Path, help='the run folder, or the .pth, to write')
    parser.add_argument(
        '--class_start',
        type=command_line.whole_number(0),
        help='the block where class tokens enter, where the size is not a published one',
    )
    parser.add_argument(
        '--cond',
        choices=['fresh', 'copy'],
        default='fresh',
        help="the condition's embedding: fresh, or the target's",
    )


def main(args: argparse.Namespace) -> None:
    if args.destination.exists():
        raise UserError(
            f'{args.destination} exists and is not overwritten; name another destination.'
        )
    if args.source.is_dir():
        to_pth(args.source, args.destination)
    else:
        to_run_folder(args.source, args.destination, args.class_start, args.cond)
    print(f'{args.source} → {args.destination}')


def to_run_folder(source: Path, destination: Path, class_start: int | None, cond: str) -> None:
    """Official weights → a run folder without an optimiser. Raises UserError for what they are not."""
    trees = {}
    for which, state in load_official(source).items():
        architecture, trees[which] = from_official(state, class_start=class_start, cond=cond)
    config = _run_config(architecture, PUBLISHED_DECAYS[: len(trees) - 1])
    write_weights(destination, config, trees.pop('params'), trees, step=0)


def to_pth(source: Path, destination: Path) -> None:
    """A run folder → an official .pth of its weights and its first two averages."""
    if destination.suffix != '.pth':
        raise UserError(f'A run folder becomes a .pth; got {destination}.')
    config, params, _ = read_weights(source, 'params')
    names = ['ema1', 'ema2'][: len(config['ema']['decays'])]
    averages = {name: read_weights(source, name)[1] for name in names}
    save_official(destination, config['model'], params, averages)
