"""How well images come back that were degraded otherwise than in training: PSNR by training.

    python -m benchmarks.degradations                    # three runs, minutes each on two CPU cores

Each row is a run on 32×32 patches of scikit-learn's two photographs: conditioned on images of fewer
pixels alone (bicubic), on images degraded once, and twice. Columns are how patches of other parts
of the photographs were degraded. A cell is the mean PSNR in dB of x̂ at t = 0, the expected image,
and of samples in 5 steps. The first row is the degraded image itself.
"""

import os
import sys

import jax
import numpy as np
from sklearn.datasets import load_sample_images

import jit_jax
from jit_jax.commands import command_line, environment
from jit_jax.configs import uncond
from jit_jax.diffusion import conditions, degradations
from jit_jax.evaluation.image_scores import psnr
from jit_jax.output.images import to_uint8
from jit_jax.recipe import kinds

SIDE, TRAIN = 32, 4000  # of a patch in pixels, and how many are trained on
VARIANT = 'depth=4,width=64,heads=1,bottleneck=32,class_tokens=8,class_start=2,dropout=0.0'
ROWS = {
    'bicubic': {'kind': 'bicubic', 'module': 'benchmarks.degradations'},
    'degraded': {'kind': 'degraded'},
    'degraded twice': {'kind': 'degraded', 'degradations': 2},
}
COLUMNS = {
    'bicubic': {'kind': 'bicubic'},
    'degraded, 0 to 1': {'kind': 'degraded'},
    'degraded, 1 to 1.5': {'kind': 'degraded', 'strength': (1.0, 1.5)},
    'twice, 1 to 1.5': {'kind': 'degraded', 'degradations': 2, 'strength': (1.0, 1.5)},
}


def bicubic(x, batch, key):
    """x made up to 4 times smaller and as large as before, by cubic weights."""

    def one(x, key):
        size = x.shape[0]
        count = (size / jax.random.uniform(key, minval=1.0, maxval=4.0)).round()
        down = degradations.resampling(size, size, count, True)
        up = degradations.resampling(size, count, size, True)
        return degradations.einsum('ih,hwc,jw->ijc', up @ down, x, up @ down)

    return {'cond': jax.vmap(one)(x, jax.random.split(key, len(x))).clip(-1, 1)}


conditions.KINDS['bicubic'] = bicubic


def define_flags(parser):
    count = command_line.whole_number(1)
    parser.add_argument('--workdir', default='runs/degradations', help='where the runs go')
    parser.add_argument('--steps', type=count, default=700, help='of training, for each run')
    parser.add_argument('--num', type=count, default=128, help='held-out patches')
    parser.add_argument('--rows', type=command_line.words, default=list(ROWS), help='which runs')


def main(args):
    environment.use_cpu_cores(8)
    train, test = patches(args.num)
    for name in args.rows:
        folder = os.path.join(args.workdir, name.replace(' ', '_'))
        jit_jax.train(config_of(ROWS[name], args.steps), folder, images=train)
    print('| | ' + ' | '.join(COLUMNS) + ' |')
    print('|---' * (len(COLUMNS) + 1) + '|')
    asked = {name: degraded(test, condition) for name, condition in COLUMNS.items()}
    cells = [f'{psnr(to_uint8(cond), test).mean():.2f}' for cond in asked.values()]
    print('| the image as it is | ' + ' | '.join(cells) + ' |')
    for name in args.rows:
        folder = os.path.join(args.workdir, name.replace(' ', '_'))
        model, params = jit_jax.load(folder)
        cells = [scores(model, params, cond, test) for cond in asked.values()]
        print(f'| {name} | ' + ' | '.join(cells) + ' |', flush=True)


def config_of(condition: dict, steps: int):
    """A small model for two CPU cores with this condition."""
    config = uncond.get_config('folder_cpu')
    config.condition.update(condition)
    config.model.variant = VARIANT
    config.steps, config.evaluate.denoise_every = steps, 0
    config.sample.num, config.sample.steps = 4, 5
    return config


def patches(num: int) -> tuple[np.ndarray, np.ndarray]:
    """Patches uint8 [N, 32, 32, 3]: to train on, and of the right quarter of each photograph."""
    random = np.random.default_rng(0)
    photographs = load_sample_images().images

    def some(count, first, last):
        found = []
        for i in range(count):
            image = photographs[i % len(photographs)]
            width = image.shape[1]
            top = random.integers(0, image.shape[0] - SIDE + 1)
            left = random.integers(int(first * width), int(last * width) - SIDE + 1)
            found.append(image[top : top + SIDE, left : left + SIDE])
        return np.stack(found)

    return some(TRAIN, 0, 0.75), some(num, 0.75, 1)


def degraded(images: np.ndarray, condition: dict) -> np.ndarray:
    """The condition images of patches, the same each time."""
    section = uncond.get_config('folder_cpu').condition.to_dict() | condition
    make = kinds.condition({'condition': section})
    rows = np.arange(len(images))
    return np.asarray(kinds.each_row({'image': images}, jax.random.key(0), rows, make)['cond'])


def scores(model, params, cond, truth) -> str:
    """The PSNR of x̂ at t = 0 and of samples, in a cell."""
    found = []
    how = {'cond': cond, 'sampler': 'euler'}
    for steps in (1, 5):
        images = jit_jax.sample(model, params, jax.random.key(1), len(truth), steps=steps, **how)
        found.append(f'{psnr(images, truth).mean():.2f}')
    return ', '.join(found)


if __name__ == '__main__':
    environment.restart_with_variables()
    command_line.run(sys.modules[__name__], sys.argv[1:], 'python -m benchmarks.degradations')
