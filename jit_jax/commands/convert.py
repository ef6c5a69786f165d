"""Converts official PyTorch weights, or those of the diffusers library, to a run folder, or a run
folder back.

examples:
  jit-jax convert checkpoint-last.pth runs/official
  jit-jax convert runs/official back.pth
  jit-jax convert JiT-diffusers/JiT-B-16 runs/b16     # a folder from the Hugging Face Hub
  jit-jax convert runs/b16 b16-diffusers/             # and back: ema1, or what --ema names
"""

import argparse
import dataclasses
from pathlib import Path

from jit_jax.commands import command_line
from jit_jax.diffusion.guidance import GUIDANCE
from jit_jax.diffusion.objective import T_EPS, Diffusion
from jit_jax.errors import UserError
from jit_jax.model import diffusers_layout
from jit_jax.model.official import from_official, load_official, save_official
from jit_jax.output import destination
from jit_jax.recipe import build
from jit_jax.training.weights import is_run, read_weights, write_weights

EXAMPLE = 'jit-jax convert checkpoint-last.pth runs/official'
PUBLISHED_DECAYS = (0.9999, 0.9996)  # of the averages that official files hold


def define_flags(parser: command_line.Parser) -> None:
    parser.add_argument(
        'source',
        nargs='?',
        type=Path,
        help='an official .pth or .safetensors, a folder of diffusers, or a run folder',
    )
    parser.add_argument(
        'destination',
        nargs='?',
        type=Path,
        help='the run folder, the .pth or the folder of diffusers to write',
    )
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
    parser.add_argument(
        '--ema', help='which weights go into a folder of diffusers: params, ema1 …; ema1 by default'
    )


def main(args: argparse.Namespace) -> None:
    if args.source is None:
        raise UserError(f'convert names what to read and what to write, for example {EXAMPLE}.')
    there = diffusers_layout.find(args.source)
    if args.source.is_dir() and there is None and not is_run(args.source):
        raise UserError(nothing_to_convert(args.source))
    if args.destination is None:
        raise UserError(f'convert names what to write as well, for example {EXAMPLE}.')
    if args.destination.exists():
        raise UserError(
            f'{args.destination} exists and is not overwritten; name another destination.'
        )
    destination.check_place(args.destination, 'destination')
    if there is not None:
        state, class_start = diffusers_layout.load(there)
        asked = class_start if args.class_start is None else args.class_start
        to_run_folder({'params': state}, args.destination, asked, args.cond)
    elif not args.source.is_dir():
        states = load_official(args.source)
        to_run_folder(states, args.destination, args.class_start, args.cond)
    elif args.destination.suffix == '.pth':
        to_pth(args.source, args.destination)
    else:
        to_diffusers(args.source, args.destination, args.ema)
    print(f'{args.source} → {args.destination}')


def nothing_to_convert(folder: Path) -> str:
    """What is said of a folder that is neither a run nor one of diffusers."""
    files = sorted(path for path in folder.iterdir() if path.suffix in ('.pth', '.safetensors'))
    if files:
        return f'{folder} is a folder; name the official weights in it, for example {files[0]}.'
    return (
        f'{folder} holds no weights: name an official .pth or .safetensors, a folder of diffusers '
        f'({diffusers_layout.FILES}, in it or in its transformer/), or a run folder, which has '
        'checkpoints/.'
    )


def to_run_folder(states: dict, folder: Path, class_start: int | None, cond: str) -> None:
    """Official state dicts by the name of their weights → a run folder without an optimiser.

    Raises UserError for what is no official model.
    """
    trees = {}
    for which, state in states.items():
        architecture, trees[which] = from_official(state, class_start=class_start, cond=cond)
    decays = PUBLISHED_DECAYS[: len(trees) - 1]
    config = run_config(architecture, list(decays))
    with destination.writing(folder, 'destination'):
        write_weights(folder, config, trees.pop('params'), trees, step=0)


def to_pth(source: Path, path: Path) -> None:
    """A run folder → an official .pth of its weights and its averages, as many as it has."""
    config, params, _ = read_weights(source, 'params')
    predict = build.diffusion(config).predict
    if predict != 'x':
        raise UserError(
            f'{source} predicts {predict} (config.diffusion.predict), and the official code x; '
            'only runs that predict x become a .pth.'
        )
    averages = {}
    for name, _ in zip(('ema1', 'ema2'), config['ema']['decays']):
        _, averages[name], _ = read_weights(source, name)
    save_official(path, config['model'], params, averages)


def to_diffusers(source: Path, folder: Path, ema: str | None) -> None:
    """A run folder → one set of its weights in a folder that diffusers reads."""
    if folder.suffix:
        raise UserError(f'A run folder becomes a .pth, or a folder of diffusers; got {folder}.')
    config, params, _ = read_weights(source, ema)
    with destination.writing(folder, 'destination'):
        diffusers_layout.save(folder, config['model'], params)


def run_config(architecture: dict, decays: list[float]) -> dict:
    """The config.json of a run that would have ended in these weights."""
    guidance = 1.0
    published = (architecture['image_size'], architecture['variant'])
    if published in GUIDANCE:
        guidance = GUIDANCE[published]
    return {
        'model': architecture,
        'compute': {'dtype': 'auto', 'dead_slots': 'skip', 'scan': True, 'remat': 'none'},
        'condition': {'kind': 'class'},
        'diffusion': dataclasses.asdict(Diffusion(noise_scale=architecture['image_size'] / 256)),
        'ema': {'decays': decays},
        'sample': {
            'sampler': 'heun',
            'steps': 50,
            'guidance': guidance,
            'interval': (0.1, 1.0),
            't_eps': T_EPS,
        },
    }
