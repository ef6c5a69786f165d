"""Draws images from a trained run.

examples:
  jit-jax sample --workdir=runs/uncond --num=64 --out=samples.png
  jit-jax sample --workdir=runs/cond --num=16 --out=cond.png         # condition | result | truth
  jit-jax sample --workdir=runs/cond --cond=holed.png --out=out.png  # fills in what is transparent
  jit-jax sample --workdir=runs/cond --cond=holed.png --keep_known   # the rest bit for bit
  jit-jax sample --workdir=runs/cond --from=photo.jpg --out=out.png  # cuts the hole, then fills it
  jit-jax sample --workdir=runs/uncond --from=photo.jpg --start=0.4  # begins from a noised photo
  jit-jax sample --workdir=runs/cond-digits_text --text="a seven or a two"
  jit-jax sample --workdir=runs/cond-omniglot --reference=a.png,b.png   # two pictures, one result
  jit-jax sample --workdir=runs/uncond --num=50000 --out=images/     # 000000.png, 000001.png …
  jit-jax sample --workdir=runs/uncond --trajectory=10 --out=path.png   # one image, from noise

`--out` ending in .png is a grid; .npz holds uint8 `arr_0` [N, H, W, C], as ADM's evaluator reads
it; a folder gets one file an image. One missing folder is made for them, not several.
"""

import argparse
from functools import partial

import jax

from jit_jax import trained
from jit_jax.commands import command_line, environment, origins
from jit_jax.diffusion.samplers import SAMPLERS
from jit_jax.errors import UserError
from jit_jax.evaluation import preview
from jit_jax.hardware import compiler
from jit_jax.output import destination
from jit_jax.output.images import save_png, to_uint8
from jit_jax.recipe import arguments, few_steps, inputs, known, photographs
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
        type=command_line.whole_number(0, arguments.SEEDS),
        default=0,
        help='image i depends on the seed and on i alone',
    )
    origins.define_flags(parser)
    define_sampler(parser)
    parser.define_import()
    environment.define_flags(parser)


def define_sampler(parser: command_line.Parser) -> None:
    """The flags that say how images are drawn."""
    add = parser.add_argument_group('how they are drawn').add_argument
    count = command_line.whole_number(1)
    add('--ema', help='which weights: params, ema1, ema2 …; ema1 by default')
    add('--steps', type=count, help="sampler steps; the run's own by default")
    add('--sampler', choices=sorted(SAMPLERS), help="the run's own by default")
    add(
        '--guidance',
        type=command_line.finite_number,
        help="classifier-free guidance, 1 is none; the run's own by default",
    )
    add(
        '--t_eps',
        type=command_line.below_one,
        help="least 1 − t that the sampler divides by, 0 ends on x̂; the run's own by default",
    )
    command_line.define_skip(add)
    add(
        '--trajectory',
        type=command_line.whole_number(2),
        metavar='TIMES',
        help='draw one image at so many times on its way: z_t above, x̂ below',
    )


def main(args: argparse.Namespace) -> None:
    command_line.required(
        args, 'workdir', 'says which run to sample from, for example --workdir=runs/uncond.'
    )
    check_out(args)
    origins.check_start(args)
    environment.use_cpu_cores(args.batch)
    compiler.configure()
    environment.join_processes(args)
    model, params = trained.load(args.workdir, args.ema)
    asked = origins.asked_for(args, model)
    inputs.check_guidance(model.config, args.guidance, asked.conditioning, prefix='--')
    if args.keep_known:
        known.check_known(model.config, asked.conditioning, args.kind, photographs.FLAGS)
    few_steps.check_asked(model.config, args.sampler, args.guidance, prefix='--')
    if args.skip_blocks is not None:
        inputs.check_blocks('--skip_blocks', args.skip_blocks, model.net.depth)
    first_process(partial(destination.check_writable, args.out, '--out'))
    if asked.said and jax.process_index() == 0:
        print(asked.said)
    if args.trajectory:
        draw_trajectory(args, model, params, asked)
    else:
        draw_images(args, model, params, asked)


def check_out(args: argparse.Namespace) -> None:
    """Raises UserError unless --out ends in what can be written."""
    kind = destination.kind(args.out)
    if args.trajectory and kind != destination.GRID:
        raise UserError(f'--out must end in .png with --trajectory; got {args.out}.')
    if args.trajectory and args.keep_known:
        raise UserError('--trajectory draws what the model draws; leave --keep_known out.')
    if kind is None:
        raise UserError(f'--out must end in .png, .npz or / for a folder; got {args.out}.')


def draw_trajectory(
    args: argparse.Namespace, model: trained.Model, params: dict, asked: origins.Asked
) -> None:
    """One image on its way from noise, as one picture."""
    begin = None
    if asked.begin:
        t, images = asked.begin
        begin = (t, images[:1])
    path = trained.trajectory(
        model,
        params,
        jax.random.key(args.seed),
        **jax.tree.map(_first_row, asked.conditioning),
        **command_line.sampler_changes(args),
        begin=begin,
    )
    if jax.process_index() == 0:
        with destination.writing(args.out, '--out'):
            save_png(args.out, preview.strip(path, args.trajectory))
        print(f'Image 0 of step {model.step}, from t={args.start or 0:g} to t=1, in {args.out}')


def _first_row(rows):
    return rows[:1]


def draw_images(
    args: argparse.Namespace, model: trained.Model, params: dict, asked: origins.Asked
) -> None:
    """All images, written as they come where that can be. All processes draw, the first writes."""

    def picture(images):
        classes = model.config['classes'] if 'classes' in model.config else []
        begun_from = to_uint8(asked.begin[1]) if asked.begin else None
        rest = {'classes': classes, 'kinds': asked.kinds, 'begun_from': begun_from}
        rest['said'] = asked.captions
        return preview.sheet(images, asked.conditioning, asked.truth, model.net, **rest)

    kind = destination.kind(args.out)
    if kind == destination.GRID:
        images = destination.Grid(args.out, picture)
    elif kind == destination.ARCHIVE:
        images = destination.Archive(args.out, args.num)
    else:
        images = destination.Folder(args.out)
    settings = model.sampling(**command_line.sampler_changes(args))
    key, writes = jax.random.key(args.seed), jax.process_index() == 0
    batches = trained.draw(
        model,
        params,
        key,
        args.num,
        asked.conditioning,
        settings,
        batch_size=args.batch,
        begin=asked.begin,
    )
    if args.keep_known:
        batches = known.keeping_known(batches, asked.conditioning)
    for batch in batches:
        if writes:
            with destination.writing(args.out, '--out'):
                images.add(batch)
    if writes:
        with destination.writing(args.out, '--out'):
            images.close()
        print(f'{args.num} images of step {model.step} in {args.out}')
