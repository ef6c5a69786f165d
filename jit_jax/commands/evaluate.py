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
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import shutil

import numpy as np

from jit_jax.commands import command_line, environment
from jit_jax.hardware import compiler
from jit_jax.output.files import write_whole

GUIDED = 1.5  # beside a run that samples without guidance, the guidance that PSNR and SSIM are shown with
SCORES = {
    'fid': ('fid', min),
    'kid': ('kid', min),
    'is': ('is', max),
    'classifier': ('classifier_distance', min),
    'truth': ('psnr', max),
    'precision_recall': ('precision', max),
}


def sampler(name: str) -> str:
    from jit_jax.diffusion.samplers import SAMPLERS

    if name not in SAMPLERS:
        raise ValueError(name)
    return name


def sweep_axes(text: str, conditional: bool) -> dict[str, list]:
    """'ema=ema1,ema2 guidance=1:4:0.5' → values by name, ema first. Raises ValueError for what cannot be swept."""
    axes = {}
    for word in text.split():
        name, _, values = word.partition('=')
        kind = {'ema': str, 'sampler': sampler, 'guidance': float, 'steps': int}.get(name)
        try:
            if ':' in values:
                first, last, step = map(float, values.split(':'))
                axes[name] = [kind(round(x, 6)) for x in np.arange(first, last + step / 2, step)]
            else:
                axes[name] = [kind(value) for value in values.split(',') if value]
        except (TypeError, ValueError):
            axes[name] = []
        if not axes[name]:
            raise ValueError(
                f'--sweep: {word!r} is not ema=ema1,ema2 nor guidance=1.0:4.0:0.1 (first:last:step) nor sampler=heun,multistep nor steps=20,50.'
            )
    if not 1 <= len(axes) <= 2:
        raise ValueError('--sweep takes one or two of ema, guidance, sampler and steps.')
    if 'guidance' in axes and not conditional:
        raise ValueError(
            '--sweep: guidance does nothing in a run without a condition; sweep ema or steps.'
        )
    return dict(
        sorted(axes.items(), key=lambda axis: axis[0] != 'ema')
    )  # weights are read once for a row


class Command:
    """One evaluation of a run: measures cells of (weights, settings, number) and keeps the numbers in evaluation.json."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        import jax

        from jit_jax import trained
        from jit_jax.evaluation import measure
        from jit_jax.model import sharding
        from jit_jax.recipe import build

        @functools.lru_cache(1)
        def weights(ema):
            model, params = trained.load(self.args.workdir, ema)
            return model, jax.device_put(params, sharding.replicated(self.mesh))

        self.mesh, self.weights = sharding.make_mesh((-1, 1, 1)), weights
        self.model, _ = weights(self.args.ema)
        config, known = self.model.config, 'data' in self.model.config
        names = (
            self.args.metrics
            or measure.measurable(config, self.args.inception) + ['denoising'] * known
        )
        self.names = measure.check(config, names, self.args.inception, self.args.reference)
        self.train, self.test = (
            build.source(config, split) if known else None for split in ('train', 'test')
        )
        chosen = {
            name: getattr(args, name)
            for name in ('steps', 'guidance')
            if getattr(args, name) is not None
        }
        self.settings = dataclasses.replace(self.model.settings, **chosen)
        self.path, self.folder = (
            os.path.join(self.args.workdir, name) for name in ('evaluation.json', 'evaluation')
        )
        self.known = json.load(open(self.path)) if os.path.exists(self.path) else {}
        self.axes = (
            sweep_axes(' '.join(self.args.sweep), config['condition']['kind'] != 'none')
            if self.args.sweep
            else {}
        )
        self.first = next((name for name in self.names if name in SCORES), None)
        if self.axes and not self.first:
            raise ValueError(
                f'--sweep compares generated images; --metrics names one of {", ".join(SCORES)} first.'
            )
        self.alone = jax.process_index() == 0  # speaks and writes
        self.measure = self.measures(self.args.num, [self.first] if self.axes else self.names)

    def measures(self, num: int, names: list[str]) -> object:
        from jit_jax.evaluation import measure

        files = {
            'inception': self.args.inception,
            'reference': self.args.reference,
            'lpips': self.args.lpips,
            'cache': self.folder,
        }
        how = {
            'num': num,
            'batch': self.args.batch,
            'seed': self.args.seed,
            'train': self.train,
            'test': self.test,
        }
        return measure.Measure(self.model, self.mesh, names, **how, **files)

    def say(self, text: str, end: str = '\n') -> None:
        if self.alone:
            print(text, end=end, flush=True)

    def images(self, ema, settings) -> str:
        """The folder of the images of these weights and settings: however many, they are the same."""
        what = {
            'step': self.model.step,
            'ema': ema,
            'seed': self.args.seed,
            'settings': dataclasses.asdict(settings),
        }
        return os.path.join(self.folder, tag(what))

    def cell(self, measure, ema, settings) -> dict:
        """The numbers of one cell, from evaluation.json where a sweep has left them."""
        what = {
            'step': self.model.step,
            'ema': ema,
            'seed': self.args.seed,
            'num': measure.num,
            'settings': dataclasses.asdict(settings),
        }
        what |= {
            'metrics': measure.names,
            'inception': self.args.inception,
            'reference': self.args.reference,
            'lpips': self.args.lpips,
        }
        key = tag(what)
        if self.axes and key in self.known:
            return self.known[key]
        progress = lambda done: self.say(
            f'\r{done}/{measure.num} images', '' if done < measure.num else '\n'
        )
        _, params = self.weights(ema)
        results = (
            measure(params, settings, self.images(ema, settings), progress) if measure.eyes else {}
        )
        if 'truth' in measure.names and not self.axes:
            results |= self.other_guidance(measure.num, params, ema, settings)
        if 'denoising' in measure.names:
            results |= self.denoising(measure.num, params)
        self.known[key] = what | {name: round(value, 6) for name, value in results.items()}
        if self.alone:
            write_whole(self.path, json.dumps(self.known, indent=1).encode())
        return self.known[key]

    def other_guidance(self, num: int, params, ema, settings) -> dict:
        """PSNR, SSIM and LPIPS without guidance, for settings that have it, and with it for others."""
        other = dataclasses.replace(settings, guidance=GUIDED if settings.guidance == 1 else 1.0)
        found = self.measures(num, ['truth'])(params, other, self.images(ema, other))
        return {
            f'{name}_guidance_{other.guidance}': found[name]
            for name in ('psnr', 'ssim', 'lpips')
            if name in found
        }

    def denoising(self, num: int, params) -> dict:
        from jit_jax.evaluation import measure

        how = {'num': num, 'batch': self.args.batch, 'seed': self.args.seed}
        return measure.Denoising(self.model, self.mesh, self.test, **how)(params)

    def sweep(self) -> tuple:
        """Measures every cell, draws the heat map, and returns the (ema, settings) of the best."""
        from jit_jax.output import charts
        from jit_jax.output.images import save_png

        score, better = SCORES[self.first]
        names, values, best = list(self.axes), {}, None
        for point in itertools.product(*self.axes.values()):
            change = dict(zip(names, point))
            ema = change.pop('ema', self.args.ema)
            cell = (ema, dataclasses.replace(self.settings, **change))
            values[cell] = self.cell(self.measure, *cell)[score]
            self.say(
                f'{" ".join(f"{name}={value}" for name, value in zip(names, point)):32} {score} {values[cell]:.4f}'
            )
            best, previous = better(values, key=values.get), best
            for finished in {cell, previous} - {
                best,
                None,
            }:  # of all images, those of the best cell stay
                shutil.rmtree(self.images(*finished), ignore_errors=True) if self.alone else None
        rows, columns = ([''], *self.axes.values()) if len(names) == 1 else self.axes.values()
        table = np.reshape(list(values.values()), (len(rows), len(columns)))
        at = np.unravel_index(list(values).index(best), table.shape)
        title = f'{score} of {self.args.num} images: {" by ".join(names)}'
        path = os.path.join(self.folder, f'sweep-{"-".join(names)}-{score}.png')
        if self.alone:
            save_png(
                path,
                charts.heat_map(
                    table, [str(r) for r in rows], [str(c) for c in columns], title, at
                ),
            )
        ema, settings = best
        where = f'ema={ema or "ema1"} guidance={settings.guidance} steps={settings.steps}'
        self.say(f'Best: {score} {values[best]:.4f} with {where}; heat map in {path}')
        return best

    def run(self) -> None:
        ema, settings, measure = self.args.ema, self.settings, self.measure
        if self.axes:
            ema, settings = self.sweep()
            self.axes = {}
            if not self.args.final_num:
                return
            measure = self.measures(self.args.final_num, self.names)
        found = self.cell(measure, ema, settings)
        numbers = {name: value for name, value in found.items() if isinstance(value, float)}
        for name, value in numbers.items():
            self.say(f'{name:28} {value:.4f}')
        cells = {
            'run': self.args.workdir,
            'step': self.model.step,
            'ema': ema or 'ema1',
            'images': measure.num,
        }
        cells |= {name: f'{value:.4g}' for name, value in numbers.items()}
        for line in (cells, ['---'] * len(cells), cells.values()):
            self.say('| ' + ' | '.join(map(str, line)) + ' |')


def tag(what: dict) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def define_flags(parser: command_line.Parser) -> None:
    count = command_line.whole_number(1)
    add = parser.add_argument
    add('--workdir', help='a run folder')
    add(
        '--metrics',
        type=command_line.words,
        help='some of classifier, fid, is, kid, precision_recall, truth, denoising; by default what the files at hand allow',
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
    add(
        '--guidance',
        type=command_line.finite_number,
        help="classifier-free guidance; the run's own by default",
    )
    add('--ema', help='which weights: params, ema1, ema2 …; ema1 by default')
    add('--inception', default='', help='weights of the FID Inception; see jit-jax fetch')
    add(
        '--reference',
        default='',
        help="an .npz (mu and sigma, or arr_0), a folder of images or a split; the run's training images by default",
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
        help='one or two of ema=…, guidance=…, sampler=…, steps=…, values a,b,c or first:last:step; measures every cell by the first metric',
    )
    add(
        '--final_num',
        type=command_line.whole_number(2),
        help='after --sweep, measure its best cell with so many images',
    )
    environment.define_flags(parser)


def main(args: argparse.Namespace) -> None:
    environment.use_cpu_cores(args.batch)
    compiler.configure()
    command_line.required(
        args, 'workdir', 'says which run to measure, for example --workdir=runs/uncond.'
    )
    environment.join_processes(args)
    Command(args).run()
