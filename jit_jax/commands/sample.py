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
from functools import partial

import jax
import numpy as np

from jit_jax import data, trained
from jit_jax.commands import command_line, environment
from jit_jax.diffusion.samplers import SAMPLERS
from jit_jax.errors import UserError
from jit_jax.evaluation import held_out, preview
from jit_jax.hardware import compiler
from jit_jax.model.jit import JiT
from jit_jax.model.sequence import condition_grid, patchify
from jit_jax.output import destination
from jit_jax.output.images import save_png
from jit_jax.recipe import build, inputs
from jit_jax.training.processes import first_process


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


def load_condition(
    paths: list[str], num: int, net: JiT, palette: str = ''
) -> dict[str, np.ndarray]:
    """Image files, taken in turn, as a condition. palette: config.data.palette of the run.

    Returns `cond` float32 [num, Hc, Wc, C] in [−1, 1] and, where patches are transparent,
    `cond_valid` bool [num, n]. Raises UserError for what is no image and for sizes that differ.
    """
    pictures = []
    for path in paths:
        try:
            pictures.append(data.condition_image(path, net.channels, palette))
        except UserError as problem:
            raise UserError(f'--cond: {problem}') from problem
    if len({image.shape for image, _ in pictures}) > 1:
        raise UserError('--cond: all condition images must have one size.')
    turns = [pictures[i % len(pictures)] for i in range(num)]
    cond = np.stack([image for image, _ in turns]).astype(np.float32) / 127.5 - 1
    opaque = np.stack([opaque for _, opaque in turns])[..., None]
    if opaque.all():
        return {'cond': cond}
    try:
        condition_grid(cond.shape, net.patch)
    except ValueError as problem:
        raise UserError(f'--cond: {problem}') from problem
    valid = np.asarray(patchify(opaque, net.patch)).all(-1)
    return {'cond': cond, 'cond_valid': valid}


def load_labels(names: list[str], num: int, model: trained.Model) -> np.ndarray:
    """Class numbers or names, taken in turn → int32 [num]. Raises UserError for what is none."""
    classes = list(model.config['classes']) if 'classes' in model.config else []
    count = model.net.num_classes
    numbers = []
    for name in names:
        if name in classes:
            numbers.append(classes.index(name))
        elif name.isdecimal() and int(name) <= count:
            numbers.append(int(name))
        else:
            raise UserError(
                f'--label: {name!r} is not a class of this run; it has {count}, numbered from 0.'
            )
    return np.resize(np.asarray(numbers, np.int32), num)


def conditioning_of(
    args: argparse.Namespace, model: trained.Model
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """What the images are conditioned on, and the truth, uint8, where held-out images are used.

    The flags decide; without them, every class in turn, or what the held-out images give.
    """
    given = {}
    if args.cond:
        palette = build.palette(model.config)
        given |= load_condition(args.cond, args.num, model.net, palette)
    if args.label:
        given['label'] = load_labels(args.label, args.num, model)
    if given:
        inputs.check_conditioning(model.config, model.net, args.num, given, prefix='--')
        return given, None
    if model.config['condition']['kind'] == 'class':
        return {'label': np.arange(args.num, dtype=np.int32) % model.net.num_classes}, None
    return held_out.examples(model.config, args.num, args.seed)


def main(args: argparse.Namespace) -> None:
    command_line.required(
        args, 'workdir', 'says which run to sample from, for example --workdir=runs/uncond.'
    )
    check_kind(args)
    environment.use_cpu_cores(args.batch)
    compiler.configure()
    environment.join_processes(args)
    model, params = trained.load(args.workdir, args.ema)
    conditioning, truth = conditioning_of(args, model)
    inputs.check_guidance(model.config, args.guidance, conditioning, prefix='--')
    first_process(partial(destination.check_writable, args.out, '--out'))
    if args.trajectory:
        draw_trajectory(args, model, params, conditioning)
    else:
        draw_images(args, model, params, conditioning, truth)


def check_kind(args: argparse.Namespace) -> None:
    """Raises UserError unless --out ends in what can be written."""
    kind = destination.kind(args.out)
    if args.trajectory and kind != destination.GRID:
        raise UserError(f'--out must end in .png with --trajectory; got {args.out}.')
    if kind is None:
        raise UserError(f'--out must end in .png, .npz or / for a folder; got {args.out}.')


def draw_trajectory(
    args: argparse.Namespace, model: trained.Model, params: dict, conditioning: dict
) -> None:
    """One image on its way from noise, as one picture."""
    path = trained.trajectory(
        model,
        params,
        jax.random.key(args.seed),
        **{name: rows[:1] for name, rows in conditioning.items()},
        steps=args.steps,
        sampler=args.sampler,
        guidance=args.guidance,
    )
    if jax.process_index() == 0:
        with destination.writing(args.out, '--out'):
            save_png(args.out, preview.strip(path, args.trajectory))
        print(f'Image 0 of step {model.step}, from t=0 to t=1, in {args.out}')


def draw_images(
    args: argparse.Namespace,
    model: trained.Model,
    params: dict,
    conditioning: dict,
    truth: np.ndarray | None,
) -> None:
    """All images, written as they come where that can be. All processes draw, the first writes."""

    def picture(images):
        classes = model.config['classes'] if 'classes' in model.config else []
        kinds = held_out.kinds(model.config, args.num, args.seed) if truth is not None else []
        return preview.sheet(images, conditioning, truth, model.net, classes, kinds)

    kind = destination.kind(args.out)
    if kind == destination.GRID:
        images = destination.Grid(args.out, picture)
    elif kind == destination.ARCHIVE:
        images = destination.Archive(args.out, args.num)
    else:
        images = destination.Folder(args.out)
    settings = model.sampling(steps=args.steps, sampler=args.sampler, guidance=args.guidance)
    key, writes = jax.random.key(args.seed), jax.process_index() == 0
    batches = trained.draw(
        model, params, key, args.num, conditioning, settings, batch_size=args.batch
    )
    for batch in batches:
        if writes:
            with destination.writing(args.out, '--out'):
                images.add(batch)
    if writes:
        with destination.writing(args.out, '--out'):
            images.close()
        print(f'{args.num} images of step {model.step} in {args.out}')
