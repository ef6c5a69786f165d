"""Draws images from a trained run.

examples:
  jit-jax sample --workdir=runs/uncond --num=64 --out=samples.png
  jit-jax sample --workdir=runs/cond --num=16 --out=cond.png         # condition | result | truth
  jit-jax sample --workdir=runs/cond --cond=photo.png --out=out.png  # fills in transparent patches
  jit-jax sample --workdir=runs/uncond --num=50000 --out=images/     # 000000.png, 000001.png …
  jit-jax sample --workdir=runs/uncond --trajectory=10 --out=path.png   # one image, from noise

`--out` ending in .png is a grid; .npz holds uint8 `arr_0` [N, H, W, C], as ADM's evaluator reads
it; a folder gets one file an image.
"""

import argparse
import os

import jax
import numpy as np

from jit_jax import trained
from jit_jax.commands import command_line, environment
from jit_jax.diffusion.samplers import SAMPLERS
from jit_jax.evaluation import preview
from jit_jax.hardware import compiler
from jit_jax.output.images import save_png


def define_flags(parser: command_line.Parser) -> None:
    count = command_line.whole_number(1)
    add = parser.add_argument
    add('--workdir', help='a run folder, a step folder, or an exported or converted checkpoint')
    add('--out', default='samples.png', help='.png (a grid), .npz (arr_0) or folder/ (a .png each)')
    add('--num', type=count, default=16, help='how many images')
    add('--batch', type=count, default=64, help='how many at a time')
    add(
        '--seed',
        type=command_line.whole_number(0),
        default=0,
        help='image i depends on the seed and on i alone',
    )
    add('--steps', type=count, help="sampler steps; the run's own by default")
    add('--sampler', choices=sorted(SAMPLERS), help="the run's own by default")
    add(
        '--guidance',
        type=command_line.finite_number,
        help="classifier-free guidance, 1 is none; the run's own by default",
    )
    add('--label', type=command_line.words, help='classes by number or name, taken in turn')
    add(
        '--cond',
        type=command_line.words,
        help='condition images, taken in turn; transparent patches count as missing',
    )
    add('--ema', help='which weights: params, ema1, ema2 …; ema1 by default')
    add(
        '--trajectory',
        type=command_line.whole_number(2),
        metavar='TIMES',
        help='draw one image at so many times on its way: z_t above, x̂ below',
    )
    environment.define_flags(parser)


def load_condition(paths, num: int, net) -> dict:
    """Image files → cond float32 [num, Hc, Wc, C] and, where patches are transparent, cond_valid bool [num, n]."""
    from jit_jax import data
    from jit_jax.errors import UserError
    from jit_jax.model.sequence import condition_grid, patchify

    try:
        pictures = [data.condition_image(path, net.channels) for path in paths]
    except UserError as problem:
        raise UserError(f'--cond: {problem}') from problem
    if len({image.shape for image, _ in pictures}) > 1:
        raise UserError('--cond: all condition images must have one size.')
    turns = [pictures[i % len(pictures)] for i in range(num)]
    cond = np.stack([image for image, _ in turns]).astype(np.float32) / 127.5 - 1
    opaque = np.stack([opaque for _, opaque in turns])[..., None]
    condition_grid(cond.shape, net.patch)
    valid = np.asarray(patchify(opaque, net.patch)).all(-1)
    return {'cond': cond} if valid.all() else {'cond': cond, 'cond_valid': valid}


def load_labels(names, num: int, model) -> np.ndarray:
    """Class numbers or names, taken in turn → int32 [num]. Raises ValueError for what is not a class."""
    classes, count = list(model.config.get('classes', [])), model.net.num_classes
    numbers = [
        classes.index(name) if name in classes else int(name) if name.isdigit() else -1
        for name in names
    ]
    for name, number in zip(names, numbers):
        if not 0 <= number <= count:
            raise ValueError(
                f'--label: {name!r} is not a class of this run; it has {count}, numbered from 0.'
            )
    return np.resize(np.asarray(numbers, np.int32), num)


def main(args: argparse.Namespace) -> None:
    environment.use_cpu_cores(args.batch)
    compiler.configure()
    command_line.required(
        args, 'workdir', 'says which run to sample from, for example --workdir=runs/uncond.'
    )
    kind = (
        'folder'
        if args.out.endswith(os.sep) or os.path.isdir(args.out)
        else os.path.splitext(args.out)[1]
    )
    if kind not in ('.png', '.npz', 'folder') or (args.trajectory and kind != '.png'):
        raise ValueError(
            f'--out must end in .png, or without --trajectory in .npz or / for a folder; got {args.out}.'
        )
    environment.join_processes(args)
    model, params = trained.load(args.workdir, args.ema)
    conditioning, truth = {}, None
    if args.cond:
        conditioning |= load_condition(args.cond, args.num, model.net)
    if args.label:
        conditioning['label'] = load_labels(args.label, args.num, model)
    if not conditioning and model.config['condition']['kind'] == 'class':
        conditioning['label'] = np.arange(args.num, dtype=np.int32) % model.net.num_classes
    elif not conditioning:
        conditioning, truth = preview.held_out(model.config, args.num, args.seed)
    chosen = {'steps': args.steps, 'sampler': args.sampler, 'guidance': args.guidance}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    key, classes = jax.random.key(args.seed), model.config.get('classes', [])
    if args.trajectory:
        path = trained.trajectory(
            model, params, key, **{name: rows[:1] for name, rows in conditioning.items()}, **chosen
        )
        save_png(args.out, preview.strip(path, args.trajectory))
        return print(f'Image 0 of step {model.step}, from t=0 to t=1, in {args.out}')
    images = []
    for start in range(0, args.num, args.batch):
        rows = np.arange(
            start, start + min(args.batch, args.num)
        )  # always as many: one program serves all
        part = {name: v[rows % args.num] for name, v in conditioning.items()}
        batch = trained.sample(
            model, params, key, len(rows), start=start, batch_size=args.batch, **part, **chosen
        )[: args.num - start]
        if kind == 'folder':  # written at once: memory does not grow with the number of images
            for i, image in zip(rows, batch if jax.process_index() == 0 else ()):
                save_png(os.path.join(args.out, f'{i:06d}.png'), image.squeeze())
        else:
            images.append(batch)
    if jax.process_index():
        return  # all of them draw, the first one writes
    if kind == '.npz':
        np.savez(args.out, arr_0=np.concatenate(images))
    elif kind == '.png':
        save_png(
            args.out,
            preview.sheet(np.concatenate(images), conditioning, truth, model.net, classes),
        )
    print(f'{args.num} images of step {model.step} in {args.out}')
