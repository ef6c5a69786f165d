"""How far each solver ends from where many small steps do, from the same noise.

    python -m benchmarks.solvers --workdir=runs/uncond

Rows have the same number of passes of the network, which is what sampling costs. A cell is the
median PSNR of the images against those of Heun with 200 steps, and is infinite where all pixels are
equal.
"""

import dataclasses
import sys

import jax
import numpy as np

from jit_jax import trained
from jit_jax.commands import command_line, environment
from jit_jax.evaluation import held_out, image_scores

FINE = 200  # Heun steps of the images that others are compared to
STEPS = {
    'euler': lambda passes: passes,
    'multistep': lambda passes: passes,
    'heun': lambda passes: (passes + 1) // 2,
}


def define_flags(parser):
    parser.add_argument('--workdir', help='a run folder')
    parser.add_argument(
        '--num', type=command_line.whole_number(1), default=64, help='how many images'
    )
    parser.add_argument(
        '--passes',
        type=command_line.words,
        default=['5', '9', '19', '39', '99'],
        help='passes of the network; odd, so that Heun can have as many',
    )


def main(args):
    environment.use_cpu_cores(args.num)
    command_line.required(
        args, 'workdir', 'says which run to sample from, for example --workdir=runs/uncond.'
    )
    model, params = trained.load(args.workdir)
    conditioning, _ = held_out.examples(model.config, args.num, 0)
    counts = [int(passes) for passes in args.passes]

    def draw(sampler, steps):
        settings = dataclasses.replace(model.settings, sampler=sampler, steps=steps)
        return trained.sample(
            model,
            params,
            jax.random.key(0),
            args.num,
            **dataclasses.asdict(settings),
            **conditioning,
        )

    fine = draw('heun', FINE)
    print(
        f'PSNR in dB of {args.num} images of {args.workdir}, step {model.step}, '
        f'against heun with {FINE} steps\n'
    )
    print(f'| passes of the network | {" | ".join(STEPS)} |\n|{"---|" * (len(STEPS) + 1)}')
    for passes in counts:
        cells = [
            np.median(image_scores.psnr(draw(name, steps(passes)), fine))
            for name, steps in STEPS.items()
        ]
        print(f'| {passes} | {" | ".join(f"{cell:.1f}" for cell in cells)} |', flush=True)


if __name__ == '__main__':
    environment.restart_with_variables()
    command_line.run(sys.modules[__name__], sys.argv[1:], 'python -m benchmarks.solvers')
