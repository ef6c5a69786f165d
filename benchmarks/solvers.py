"""How far each solver ends from where many small steps do, from the same noise: python -m benchmarks.solvers --workdir=runs/uncond

Rows have the same number of passes of the network, which is what sampling costs. A cell is the median PSNR of the
images against those of Heun with 200 steps, and is infinite where all pixels are equal.
"""

import dataclasses

import numpy as np
from absl import flags
from absl.flags import FLAGS

from jit_jax.commands import cli

FINE = 200  # Heun steps of the images that others are compared to
STEPS = {
    'euler': lambda passes: passes,
    'multistep': lambda passes: passes,
    'heun': lambda passes: (passes + 1) // 2,
}


def main():
    flags.DEFINE_string('workdir', None, 'A run folder.')
    flags.DEFINE_integer('num', 64, 'How many images.', lower_bound=1)
    flags.DEFINE_list(
        'passes',
        ['5', '9', '19', '39', '99'],
        'Passes of the network; odd, so that Heun can have as many.',
    )
    cli.restart_with()
    cli.parse()
    cli.use_cpu_cores(FLAGS.num)
    with cli.one_sentence():
        if not FLAGS.workdir:
            raise ValueError(
                '--workdir says which run to sample from, for example --workdir=runs/uncond.'
            )
        import jax

        from jit_jax import trained
        from jit_jax.evaluation import image_scores, preview

        model, params = trained.load(FLAGS.workdir)
        conditioning, _ = preview.held_out(model.config, FLAGS.num, 0)
        counts = [int(passes) for passes in FLAGS.passes]

    def draw(sampler, steps):
        settings = dataclasses.replace(model.settings, sampler=sampler, steps=steps)
        return trained.sample(
            model,
            params,
            jax.random.key(0),
            FLAGS.num,
            **dataclasses.asdict(settings),
            **conditioning,
        )

    fine = draw('heun', FINE)
    print(
        f'PSNR in dB of {FLAGS.num} images of {FLAGS.workdir}, step {model.step}, against heun with {FINE} steps\n'
    )
    print(f'| passes of the network | {" | ".join(STEPS)} |\n|{"---|" * (len(STEPS) + 1)}')
    for passes in counts:
        cells = [
            np.median(image_scores.psnr(draw(name, steps(passes)), fine))
            for name, steps in STEPS.items()
        ]
        print(f'| {passes} | {" | ".join(f"{cell:.1f}" for cell in cells)} |', flush=True)


if __name__ == '__main__':
    main()
