"""Official PyTorch weights to a run folder, or back."""

import argparse
import dataclasses
from pathlib import Path

from jit_jax.diffusion.guidance import GUIDANCE
from jit_jax.diffusion.objective import Diffusion
from jit_jax.model.official import from_official, load_official, save_official


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


def main(argv: list[str] | None = None) -> None:
    from jit_jax.commands import (
        cli,
    )  # only the command needs run folders; the functions above stay below that layer
    from jit_jax.training import checkpoint

    parser = argparse.ArgumentParser(
        prog='jit-jax convert', description='Official weights to a run folder, or back.'
    )
    parser.add_argument(
        'source', type=Path, help='an official .pth or .safetensors, or a run folder'
    )
    parser.add_argument('destination', type=Path, help='the run folder, or the .pth, to write')
    parser.add_argument(
        '--class_start',
        type=int,
        help='the block where class tokens enter, where the size is not a published one',
    )
    parser.add_argument(
        '--cond',
        choices=['fresh', 'copy'],
        default='fresh',
        help="the condition's embedding: fresh, or the target's",
    )
    args = parser.parse_args(argv)
    with cli.one_sentence():
        if args.destination.exists():
            raise ValueError(
                f'{args.destination} exists and is not overwritten; name another destination.'
            )
        if args.source.is_dir():
            if args.destination.suffix != '.pth':
                raise ValueError(f'A run folder becomes a .pth; got {args.destination}.')
            config, params, _ = checkpoint.read_weights(args.source, 'params')
            ema = {
                w: checkpoint.read_weights(args.source, w)[1]
                for w in ['ema1', 'ema2'][: len(config['ema']['decays'])]
            }
            save_official(args.destination, config['model'], params, ema)
        else:
            trees = {}
            for which, state in load_official(args.source).items():
                architecture, trees[which] = from_official(
                    state, class_start=args.class_start, cond=args.cond
                )
            config = _run_config(architecture, [0.9999, 0.9996][: len(trees) - 1])
            checkpoint.write_weights(args.destination, config, trees.pop('params'), trees, step=0)
    print(f'{args.source} → {args.destination}')


if __name__ == '__main__':
    main()
