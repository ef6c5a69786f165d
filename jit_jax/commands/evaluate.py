"""Measures a trained run and writes `evaluation.json` beside it; see docs/evaluation.md.

    jit-jax evaluate --workdir=runs/uncond                       # a small classifier's eye, offline
    jit-jax evaluate --workdir=runs/cond                         # PSNR and SSIM, with and without guidance
    jit-jax evaluate --workdir=runs/official --num=50000 --metrics=fid,is --inception=inception.pth --reference=stats.npz
    jit-jax evaluate --workdir=runs/class --sweep="ema=ema1,ema2 guidance=1.0:4.0:0.1" --num=8000 --final_num=50000

Generated images are kept in `<workdir>/evaluation/`, so a stopped evaluation goes on where it was. On several hosts, run it on each.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import shutil
import sys

import numpy as np
from absl import flags

from jit_jax.commands import cli
from jit_jax.output.files import write_whole

WORKDIR = flags.DEFINE_string('workdir', None, 'A run folder.')
METRICS = flags.DEFINE_list(
    'metrics',
    None,
    'Some of classifier, fid, is, kid, precision_recall, truth, denoising; by default what the files at hand allow.',
)
NUM = flags.DEFINE_integer('num', 256, 'How many images.', lower_bound=2)
BATCH = flags.DEFINE_integer('batch', 64, 'How many at a time, over all devices.', lower_bound=1)
SEED = flags.DEFINE_integer('seed', 0, 'Image i depends on the seed and i alone.', lower_bound=0)
STEPS = flags.DEFINE_integer(
    'steps', None, "Sampler steps; the run's own by default.", lower_bound=1
)
GUIDANCE = flags.DEFINE_float(
    'guidance', None, "Classifier-free guidance; the run's own by default."
)
EMA = flags.DEFINE_string('ema', None, 'Which weights: params, ema1, ema2; ema1 by default.')
INCEPTION = flags.DEFINE_string('inception', '', 'Weights of the FID Inception; see jit-jax fetch.')
REFERENCE = flags.DEFINE_string(
    'reference',
    '',
    "An .npz (mu and sigma, or arr_0), a folder of images or a split; the run's training images by default.",
)
LPIPS = flags.DEFINE_string(
    'lpips', '', 'Weights of LPIPS (AlexNet, 0.1), .pth or .npz; adds it to PSNR and SSIM.'
)
SWEEP = flags.DEFINE_string(
    'sweep',
    None,
    'One or two of ema=…, guidance=…, sampler=…, steps=…, values a,b,c or first:last:step; measures every cell by the first metric.',
)
FINAL_NUM = flags.DEFINE_integer(
    'final_num', None, 'After --sweep, measure its best cell with so many images.', lower_bound=2
)

GUIDED = 1.5  # beside a run that samples without guidance, the guidance that PSNR and SSIM are shown with
SCORES = {
    'fid': ('fid', min),
    'kid': ('kid', min),
    'is': ('is', max),
    'classifier': ('classifier_distance', min),
    'truth': ('psnr', max),
    'precision_recall': ('precision', max),
}


def glued(argv: list[str]) -> list[str]:
    """`--sweep a=1,2 b=3:4:1` as one argument, as it would be in quotes."""
    if '--sweep' not in argv:
        return argv
    at = argv.index('--sweep')
    end = next((i for i in range(at + 1, len(argv)) if argv[i].startswith('-')), len(argv))
    return [*argv[:at], '--sweep=' + ' '.join(argv[at + 1 : end]), *argv[end:]]


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

    def __init__(self):
        import jax

        from jit_jax import trained
        from jit_jax.evaluation import measure
        from jit_jax.model import sharding
        from jit_jax.recipe import build

        @functools.lru_cache(1)
        def weights(ema):
            model, params = trained.load(WORKDIR.value, ema)
            return model, jax.device_put(params, sharding.replicated(self.mesh))

        self.mesh, self.weights = sharding.make_mesh((-1, 1, 1)), weights
        self.model, _ = weights(EMA.value)
        config, known = self.model.config, 'data' in self.model.config
        names = METRICS.value or measure.measurable(config, INCEPTION.value) + ['denoising'] * known
        self.names = measure.check(config, names, INCEPTION.value, REFERENCE.value)
        self.train, self.test = (
            build.source(config, split) if known else None for split in ('train', 'test')
        )
        chosen = {
            name: flag.value
            for name, flag in (('steps', STEPS), ('guidance', GUIDANCE))
            if flag.value is not None
        }
        self.settings = dataclasses.replace(self.model.settings, **chosen)
        self.path, self.folder = (
            os.path.join(WORKDIR.value, name) for name in ('evaluation.json', 'evaluation')
        )
        self.known = json.load(open(self.path)) if os.path.exists(self.path) else {}
        self.axes = (
            sweep_axes(SWEEP.value, config['condition']['kind'] != 'none') if SWEEP.value else {}
        )
        self.first = next((name for name in self.names if name in SCORES), None)
        if self.axes and not self.first:
            raise ValueError(
                f'--sweep compares generated images; --metrics names one of {", ".join(SCORES)} first.'
            )
        self.alone = jax.process_index() == 0  # speaks and writes
        self.measure = self.measures(NUM.value, [self.first] if self.axes else self.names)

    def measures(self, num: int, names: list[str]) -> object:
        from jit_jax.evaluation import measure

        files = {
            'inception': INCEPTION.value,
            'reference': REFERENCE.value,
            'lpips': LPIPS.value,
            'cache': self.folder,
        }
        how = {
            'num': num,
            'batch': BATCH.value,
            'seed': SEED.value,
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
            'seed': SEED.value,
            'settings': dataclasses.asdict(settings),
        }
        return os.path.join(self.folder, tag(what))

    def cell(self, measure, ema, settings) -> dict:
        """The numbers of one cell, from evaluation.json where a sweep has left them."""
        what = {
            'step': self.model.step,
            'ema': ema,
            'seed': SEED.value,
            'num': measure.num,
            'settings': dataclasses.asdict(settings),
        }
        what |= {
            'metrics': measure.names,
            'inception': INCEPTION.value,
            'reference': REFERENCE.value,
            'lpips': LPIPS.value,
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

        how = {'num': num, 'batch': BATCH.value, 'seed': SEED.value}
        return measure.Denoising(self.model, self.mesh, self.test, **how)(params)

    def sweep(self) -> tuple:
        """Measures every cell, draws the heat map, and returns the (ema, settings) of the best."""
        from jit_jax.output import charts
        from jit_jax.output.images import save_png

        score, better = SCORES[self.first]
        names, values, best = list(self.axes), {}, None
        for point in itertools.product(*self.axes.values()):
            change = dict(zip(names, point))
            ema = change.pop('ema', EMA.value)
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
        title = f'{score} of {NUM.value} images: {" by ".join(names)}'
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
        ema, settings, measure = EMA.value, self.settings, self.measure
        if self.axes:
            ema, settings = self.sweep()
            self.axes = {}
            if not FINAL_NUM.value:
                return
            measure = self.measures(FINAL_NUM.value, self.names)
        found = self.cell(measure, ema, settings)
        numbers = {name: value for name, value in found.items() if isinstance(value, float)}
        for name, value in numbers.items():
            self.say(f'{name:28} {value:.4f}')
        cells = {
            'run': WORKDIR.value,
            'step': self.model.step,
            'ema': ema or 'ema1',
            'images': measure.num,
        }
        cells |= {name: f'{value:.4g}' for name, value in numbers.items()}
        for line in (cells, ['---'] * len(cells), cells.values()):
            self.say('| ' + ' | '.join(map(str, line)) + ' |')


def tag(what: dict) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def main() -> None:
    cli.restart_with()
    cli.parse(glued(sys.argv))
    cli.use_cpu_cores(BATCH.value)
    with cli.one_sentence():
        if not WORKDIR.value:
            raise ValueError(
                '--workdir says which run to measure, for example --workdir=runs/uncond.'
            )
        cli.join_processes()
        command = Command()
    command.run()


if __name__ == '__main__':
    main()
