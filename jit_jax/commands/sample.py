"""Draws images from a trained run.

    jit-jax sample --workdir=runs/uncond --num=64 --out=samples.png
    jit-jax sample --workdir=runs/cond --num=16 --out=cond.png         # condition | result | truth
    jit-jax sample --workdir=runs/cond --cond=photo.png --out=out.png  # transparent patches are filled in
    jit-jax sample --workdir=runs/uncond --num=50000 --out=images/     # 000000.png, 000001.png …
    jit-jax sample --workdir=runs/uncond --trajectory=10 --out=way.png  # one image on its way from noise

`--out` ending in .png is a grid; .npz holds uint8 `arr_0` [N, H, W, C], as the evaluator of ADM reads it; a folder, one file an image.
"""

import os

import numpy as np
from absl import flags

from jit_jax.commands import cli

WORKDIR = flags.DEFINE_string(
    'workdir', None, 'A run folder, a step folder, or an exported or converted checkpoint.'
)
OUT = flags.DEFINE_string(
    'out',
    'samples.png',
    'Where the images go: .png (a grid), .npz (arr_0) or folder/ (one .png each).',
)
NUM = flags.DEFINE_integer('num', 16, 'How many images.', lower_bound=1)
BATCH = flags.DEFINE_integer('batch', 64, 'How many at a time.', lower_bound=1)
SEED = flags.DEFINE_integer('seed', 0, 'Image i depends on the seed and i alone.', lower_bound=0)
STEPS = flags.DEFINE_integer(
    'steps', None, "Sampler steps; the run's own by default.", lower_bound=1
)
SAMPLER = flags.DEFINE_enum(
    'sampler', None, ['heun', 'euler', 'multistep'], "The run's own by default."
)
GUIDANCE = flags.DEFINE_float(
    'guidance', None, "Classifier-free guidance; 1 is none; the run's own by default."
)
LABEL = flags.DEFINE_list('label', None, 'Classes by number or name, taken in turn.')
COND = flags.DEFINE_list(
    'cond', None, 'Condition images, taken in turn; transparent patches count as missing.'
)
EMA = flags.DEFINE_string('ema', None, 'Which weights: params, ema1, ema2; ema1 by default.')
TRAJECTORY = flags.DEFINE_integer(
    'trajectory',
    None,
    'Draw one image at so many times on its way: z_t above, x̂ below.',
    lower_bound=2,
)


def load_condition(paths, num: int, net) -> dict:
    """Image files → cond float32 [num, Hc, Wc, C] and, where patches are transparent, cond_valid bool [num, n]."""
    from PIL import Image, ImageOps

    from jit_jax.model.sequence import condition_grid, patchify

    images = []
    for path in paths:
        if not os.path.exists(path):
            raise FileNotFoundError(f'--cond: there is no file {path}.')
        images.append(ImageOps.exif_transpose(Image.open(path)).convert('RGBA'))
    if len({image.size for image in images}) > 1:
        raise ValueError('--cond: all condition images must have one size.')
    rgba = np.stack([np.asarray(images[i % len(images)], np.float32) for i in range(num)])
    condition_grid(rgba.shape, net.patch)
    rgb, alpha = rgba[..., :3] / 127.5 - 1, rgba[..., 3:]
    if net.channels == 1:
        rgb = rgb.mean(-1, keepdims=True)
    valid = (np.asarray(patchify(alpha, net.patch)) == 255).all(-1)
    return {'cond': rgb} if valid.all() else {'cond': rgb, 'cond_valid': valid}


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


def main() -> None:
    cli.restart_with()
    cli.parse()
    import jax

    from jit_jax import trained
    from jit_jax.evaluation import preview
    from jit_jax.output.images import save_png

    cli.use_cpu_cores(BATCH.value)
    with cli.one_sentence():
        if not WORKDIR.value:
            raise ValueError(
                '--workdir says which run to sample from, for example --workdir=runs/uncond.'
            )
        kind = (
            'folder'
            if OUT.value.endswith(os.sep) or os.path.isdir(OUT.value)
            else os.path.splitext(OUT.value)[1]
        )
        if kind not in ('.png', '.npz', 'folder') or (TRAJECTORY.value and kind != '.png'):
            raise ValueError(
                f'--out must end in .png, or without --trajectory in .npz or / for a folder; got {OUT.value}.'
            )
        cli.join_processes()
        model, params = trained.load(WORKDIR.value, EMA.value)
        conditioning, truth = {}, None
        if COND.value:
            conditioning |= load_condition(COND.value, NUM.value, model.net)
        if LABEL.value:
            conditioning['label'] = load_labels(LABEL.value, NUM.value, model)
        if not conditioning and model.config['condition']['kind'] == 'class':
            conditioning['label'] = np.arange(NUM.value, dtype=np.int32) % model.net.num_classes
        elif not conditioning:
            conditioning, truth = preview.held_out(model.config, NUM.value, SEED.value)
    chosen = {'steps': STEPS.value, 'sampler': SAMPLER.value, 'guidance': GUIDANCE.value}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    key, classes = jax.random.key(SEED.value), model.config.get('classes', [])
    if TRAJECTORY.value:
        path = trained.trajectory(
            model, params, key, **{name: rows[:1] for name, rows in conditioning.items()}, **chosen
        )
        save_png(OUT.value, preview.strip(path, TRAJECTORY.value))
        return print(f'Image 0 of step {model.step}, from t=0 to t=1, in {OUT.value}')
    images = []
    for start in range(0, NUM.value, BATCH.value):
        rows = np.arange(
            start, start + min(BATCH.value, NUM.value)
        )  # always as many: one program serves all
        part = {name: v[rows % NUM.value] for name, v in conditioning.items()}
        batch = trained.sample(
            model, params, key, len(rows), start=start, batch_size=BATCH.value, **part, **chosen
        )[: NUM.value - start]
        if kind == 'folder':  # written at once: memory does not grow with the number of images
            for i, image in zip(rows, batch if jax.process_index() == 0 else ()):
                save_png(os.path.join(OUT.value, f'{i:06d}.png'), image.squeeze())
        else:
            images.append(batch)
    if jax.process_index():
        return  # all of them draw, the first one writes
    if kind == '.npz':
        np.savez(OUT.value, arr_0=np.concatenate(images))
    elif kind == '.png':
        save_png(
            OUT.value,
            preview.sheet(np.concatenate(images), conditioning, truth, model.net, classes),
        )
    print(f'{NUM.value} images of step {model.step} in {OUT.value}')


if __name__ == '__main__':
    main()
