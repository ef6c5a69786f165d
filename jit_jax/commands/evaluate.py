"""Measures a trained run and writes `evaluation.json` beside it; see docs/evaluation.md.

examples:
  jit-jax evaluate --workdir=runs/uncond       # a small classifier, offline
  jit-jax evaluate --workdir=runs/cond         # PSNR and SSIM, with and without guidance
  jit-jax evaluate --workdir=runs/official --num=50000 \\
      --metrics=fid,is --inception=inception.pth --reference=stats.npz
  jit-jax evaluate --workdir=runs/class --num=8000 --final_num=50000 \\
      --sweep ema=ema1,ema2 guidance=1.0:4.0:0.1

Generated images are kept in `<workdir>/evaluation/`, so a stopped evaluation goes on where it was.
On several hosts, run it on each.
"""

import argparse
import os
import sys
from collections.abc import Callable

import jax

from jit_jax.commands import command_line, environment
from jit_jax.diffusion.samplers import SAMPLERS
from jit_jax.errors import UserError
from jit_jax.evaluation import measure
from jit_jax.evaluation.results import Cell, CellMeasure, MeasuredRun, Remembered
from jit_jax.evaluation.sweep import SCORES, Sweep, parse_axes
from jit_jax.hardware import compiler
from jit_jax.model.sizes import size
from jit_jax.recipe import few_steps, inputs


def define_flags(parser: command_line.Parser) -> None:
    count = command_line.whole_number(1)
    add = parser.add_argument
    add('--workdir', help='a run folder')
    add(
        '--metrics',
        type=command_line.words,
        help='some of classifier, fid, is, kid, precision_recall, truth, seams, denoising; by '
        'default what the files at hand allow',
    )
    add('--num', type=command_line.whole_number(2), default=256, help='how many images')
    add('--batch', type=count, default=64, help='how many at a time, over all devices')
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
        help="classifier-free guidance; the run's own by default",
    )
    add(
        '--t_eps',
        type=command_line.below_one,
        help="least 1 − t that the sampler divides by, 0 ends on x̂; the run's own by default",
    )
    command_line.define_skip(add)
    add('--ema', help='which weights: params, ema1, ema2 …; ema1 by default')
    add('--inception', default='', help='weights of the FID Inception; see jit-jax fetch')
    add(
        '--reference',
        default='',
        help='an .npz (mu and sigma, or arr_0), a folder of images or a split; by default the '
        "run's training images",
    )
    add(
        '--lpips',
        default='',
        help='weights of LPIPS (AlexNet, 0.1), .pth or .npz; adds it to PSNR and SSIM',
    )
    add(
        '--sweep',
        nargs='+',
        metavar='NAME=VALUES',
        help='one or two of ema=…, guidance=…, sampler=…, steps=…, t_eps=…, values a,b,c or '
        'first:last:step; measures every cell by the first metric',
    )
    add(
        '--final_num',
        type=command_line.whole_number(2),
        help='after --sweep, measure its best cell with so many images',
    )
    parser.define_import()
    environment.define_flags(parser)


def main(args: argparse.Namespace) -> None:
    environment.use_cpu_cores(args.batch)
    compiler.configure()
    command_line.required(
        args, 'workdir', 'says which run to measure, for example --workdir=runs/uncond.'
    )
    if args.final_num and not args.sweep:
        raise UserError('--final_num measures the best cell of a --sweep; without one, give --num.')
    axes = parse_axes(' '.join(args.sweep)) if args.sweep else {}
    environment.join_processes(args)
    evaluate(args, axes)


def evaluate(args: argparse.Namespace, axes: dict[str, list]) -> None:
    """Measures the cells that flags name, and prints the numbers of the last."""
    emas = axes.get('ema', [args.ema])
    run = MeasuredRun(args.workdir, emas)
    check_guidance(args, axes, run.model.config)
    check_learned(args, axes, run.model.config)
    files = measure.Files(
        inception=args.inception,
        reference=args.reference,
        lpips=args.lpips,
        cache=os.path.join(args.workdir, 'evaluation'),
    )
    names = chosen_metrics(args, run.model.config, files)
    say_what_to_know(args, run, names)
    remembered = Remembered(os.path.join(args.workdir, 'evaluation.json'))

    def cells(names: list[str], num: int, tell: Callable | None = None) -> CellMeasure:
        how = {'num': num, 'batch': args.batch, 'seed': args.seed, 'files': files, 'say': tell}
        return CellMeasure(run, remembered, names, **how)

    cell = Cell(emas[0], run.model.sampling(**command_line.sampler_changes(args)))
    num = args.final_num if axes else args.num
    say(f'Measuring {", ".join(names)} of {args.workdir}, step {run.model.step} …')
    # What the last cell needs is opened before a sweep, so that nothing is found wrong after it.
    last = cells(names, num, say) if num else None
    if axes:
        swept = cells([swept_metric(names)], args.num)
        cell = Sweep(axes, cell, swept, say).run(progress_of(args.num))
    if last:
        entry = last(cell, other_guidance=True, progress=progress_of(num))
        show(args.workdir, entry, as_table=bool(axes))


def check_guidance(args: argparse.Namespace, axes: dict, config: dict) -> None:
    """Raises UserError where guidance is asked of a run that has nothing to be guided by."""
    guided = 'guidance' in axes or args.guidance not in (None, 1.0)
    if guided and config['condition'].get('drop') == 0:
        raise UserError(
            'This run never learned to go without its condition (config.condition.drop=0), so '
            'guidance means nothing; leave it out of --guidance and --sweep.'
        )
    if config['condition']['kind'] != 'none':
        return
    if 'guidance' in axes:
        raise UserError(
            '--sweep: guidance does nothing in a run without a condition; sweep ema or steps.'
        )
    if args.guidance not in (None, 1.0):
        raise UserError('--guidance does nothing in a run without a condition; leave it out.')


def check_learned(args: argparse.Namespace, axes: dict, config: dict) -> None:
    """Raises UserError for a sampler or a guidance that needs a run that learned it, and for blocks
    that its network lacks.
    """
    if args.skip_blocks is not None:
        depth = size(config['model']['variant'])['depth']
        inputs.check_blocks('--skip_blocks', args.skip_blocks, depth)
    few_steps.check_asked(config, args.sampler, args.guidance, prefix='--')
    for sampler in axes.get('sampler', [None]):
        few_steps.check_asked(config, sampler, None, prefix='--sweep ')
    for guidance in axes.get('guidance', [None]):
        few_steps.check_asked(config, None, guidance, prefix='--sweep ')


def chosen_metrics(args: argparse.Namespace, config: dict, files: measure.Files) -> list[str]:
    """By --metrics, or by what the run and the files allow. Raises UserError for what cannot be."""
    names = args.metrics
    if not names:
        names = measure.measurable(config, files.inception)
        if 'data' in config:
            names = [*names, 'denoising']
    measure.check(config, names, files, min(args.num, args.final_num or args.num))
    return names


def swept_metric(names: list[str]) -> str:
    """The first metric that a sweep can compare cells by."""
    for name in names:
        if name in SCORES:
            return name
    raise UserError(
        f'--sweep compares generated images; --metrics names one of {", ".join(SCORES)} first.'
    )


def say_what_to_know(args: argparse.Namespace, run: MeasuredRun, names: list[str]) -> None:
    """Says what the numbers do not say about themselves."""
    if not args.metrics and names == ['denoising']:
        say(
            'This run has neither labels nor condition images, so how it denoises held-out images '
            'is measured instead of what it generates; for FID add --metrics=fid '
            '--inception=FILE (jit-jax fetch downloads it).'
        )
    if run.test is None:
        return
    num, held_out = max(args.num, args.final_num or 0), len(run.test)
    generates = names != ['denoising']
    if num > held_out and generates and measure.has_condition_image(run.model.config):
        say(
            f'{num} images of {held_out} held-out conditions: when these are used up they come '
            'again, with other noise.'
        )
    if num > held_out and 'denoising' in names:
        say(f'Denoising is measured on all {held_out} held-out images.')


def say(text: str, end: str = '\n') -> None:
    """Prints in the first process."""
    if jax.process_index() == 0:
        print(text, end=end, flush=True)


def progress_of(num: int) -> Callable[[int], None]:
    """A function of the number of images done, which on a terminal writes one line again and
    again, elsewhere a line each time.
    """
    in_place = sys.stdout.isatty()

    def progress(done: int) -> None:
        start, end = ('\r', '' if done < num else '\n') if in_place else ('', '\n')
        say(f'{start}{done}/{num} images', end=end)

    return progress


def show(workdir: str, entry: dict, *, as_table: bool) -> None:
    """The numbers of a cell, a line each; or of a sweep's best cell, as a Markdown table."""
    numbers = {name: value for name, value in entry.items() if isinstance(value, float)}
    if not as_table:
        for name, value in numbers.items():
            say(f'{name:28} {value:.4f}')
        return
    cells = {
        'run': workdir,
        'step': entry['step'],
        'ema': entry['ema'] or 'ema1',
        'images': entry['num'],
    }
    cells |= {name: f'{value:.4g}' for name, value in numbers.items()}
    for line in (cells, ['---'] * len(cells), cells.values()):
        say('| ' + ' | '.join(map(str, line)) + ' |')
