"""Measures a trained run and writes `evaluation.json` beside it.

    python -m jit_jax.evaluate --workdir=runs/uncond --num=256                      # a small classifier's eye, offline
    python -m jit_jax.evaluate --workdir=runs/official --num=50000 --metrics=fid,is --inception=inception.pth --reference=stats.npz
    python -m jit_jax.evaluate --workdir=runs/cond                                  # PSNR and SSIM on held-out images

Generated images are kept in `<workdir>/evaluation/`, so a stopped evaluation goes on where it was.
"""

import hashlib
import json
import os

import numpy as np
from absl import flags

from jit_jax import cli

METRICS = ('classifier', 'fid', 'is', 'kid', 'precision_recall', 'truth', 'denoising')
WORKDIR = flags.DEFINE_string('workdir', None, 'A run folder.')
METRIC = flags.DEFINE_list('metrics', None, f'Some of {", ".join(METRICS)}; by default what needs no other file.')
NUM = flags.DEFINE_integer('num', 256, 'How many images.', lower_bound=2)
BATCH = flags.DEFINE_integer('batch', 64, 'How many at a time.', lower_bound=1)
SEED = flags.DEFINE_integer('seed', 0, 'Image i depends on the seed and i alone.', lower_bound=0)
STEPS = flags.DEFINE_integer('steps', None, "Sampler steps; the run's own by default.", lower_bound=1)
GUIDANCE = flags.DEFINE_float('guidance', None, "Classifier-free guidance; the run's own by default.")
EMA = flags.DEFINE_string('ema', None, 'Which weights: params, ema1, ema2; ema1 by default.')
INCEPTION = flags.DEFINE_string('inception', None, 'Weights of the FID Inception; see python -m jit_jax.fid.fetch.')
REFERENCE = flags.DEFINE_string('reference', None, "An .npz with mu and sigma; the run's training images by default.")


def chosen_metrics(model) -> tuple[str, ...]:
    """--metrics, or what this run can be measured by without another file. Raises ValueError for what does not go together."""
    kind = model.config['condition']['kind']
    names = METRIC.value or ['denoising', *(['truth'] if kind not in ('none', 'class') else []), *(['classifier'] if model.config.get('classes') else [])]
    if 'data' not in model.config:  # converted weights know no data set
        if not METRIC.value or not {'fid', 'is'} >= set(names) or ('fid' in names and not REFERENCE.value):
            raise ValueError('These weights come without a data set; use --metrics=fid,is with --reference=stats.npz.')
    for name in names:
        if name not in METRICS:
            raise ValueError(f'--metrics: {name!r} is not one of {", ".join(METRICS)}.')
    inception = {'fid', 'is', 'kid', 'precision_recall'} & set(names)
    if inception and not INCEPTION.value:
        raise ValueError(f'--metrics={",".join(sorted(inception))} needs --inception; python -m jit_jax.fid.fetch downloads it.')
    if 'truth' in names and kind in ('none', 'class'):
        raise ValueError('--metrics=truth compares with the images that conditions were made from; this run has no condition image.')
    if 'classifier' in names and not model.config.get('classes'):
        raise ValueError('--metrics=classifier needs labelled training images; this run has none.')
    return tuple(names)


def told_for(model, num: int, source):
    """What the model is told for images 0 … num − 1: balanced classes, held-out conditions, or nothing; and the truth."""
    from jit_jax import preview

    if model.config['condition']['kind'] == 'class':
        return {'label': np.arange(num, dtype=np.int32) * model.net.num_classes // num}, None
    return preview.held_out(model.config, num, SEED.value, source)


def generate(model, params, told: dict, folder: str, settings: dict) -> np.ndarray:
    """`api.sample` in batches, each kept in `folder`: uint8 [num, H, W, C]."""
    import jax

    from jit_jax import api

    os.makedirs(folder, exist_ok=True)
    images = []
    for start in range(0, NUM.value, BATCH.value):
        path = os.path.join(folder, f'{start:06d}-{BATCH.value}.npz')
        if not os.path.exists(path):
            rows = np.arange(start, start + BATCH.value) % NUM.value
            key, part = jax.random.key(SEED.value), {name: v[rows] for name, v in told.items()}
            batch = api.sample(model, params, key, BATCH.value, start=start, batch_size=BATCH.value, **part, **settings)
            np.savez(path + '.tmp.npz', arr_0=batch)
            os.replace(path + '.tmp.npz', path)
        images.append(np.load(path)['arr_0'])
        print(f'\r{min(start + BATCH.value, NUM.value)}/{NUM.value} images', end='', flush=True)
    print()
    return np.concatenate(images)[: NUM.value]


def with_classifier(images, train, test) -> dict:
    """Verdict and features of a small classifier on generated, and for the floor on held-out images."""
    from jit_jax import evaluation

    rows = lambda source: [source[i] for i in range(len(source))]
    real, held = ({k: np.stack([row[k] for row in rows(s)]) for k in ('image', 'label')} for s in (train, test))
    eye = evaluation.Classifier(real['image'], real['label'])
    return {
        'readable': np.mean(eye.confidence(images) > 0.7),  # share with more than 0.7 for one class
        'readable_held_out': np.mean(eye.confidence(held['image']) > 0.7),
        'classifier_distance': evaluation.frechet(eye.features(images), eye.features(held['image'])),
        'classifier_distance_train': evaluation.frechet(eye.features(real['image']), eye.features(held['image'])),
    }


def with_inception(images, names, train) -> dict:
    """FID, IS, KID, precision and recall from the FID Inception, whole batches at a time."""
    import jax

    from jit_jax.fid import distance, inception

    weights, run = inception.load_weights(INCEPTION.value), jax.jit(inception.features)

    def look(batches):
        out = {'2048': [], 'logits_unbiased': []}
        for batch in batches:
            found = run(weights, batch)
            for name in out:
                out[name].append(np.asarray(found[name]))
        return {name: np.concatenate(rows) for name, rows in out.items()}

    ours = look(np.array_split(images, max(1, len(images) // BATCH.value)))
    results = {}
    if 'is' in names:
        results['is'], results['is_std'] = distance.inception_score(ours['logits_unbiased'])
    if {'fid', 'kid', 'precision_recall'} & set(names):
        if REFERENCE.value:
            mu, sigma, theirs = *distance.load_stats(REFERENCE.value), None
        else:
            from jit_jax import data

            batches = (b['image'][b['weight'] > 0] for b in data.eval_batches(train, batch_size=BATCH.value))
            theirs = look(batches)['2048']
            mu, sigma = theirs.mean(0), np.cov(theirs, rowvar=False)
        if 'fid' in names:
            results['fid'] = distance.frechet(mu, sigma, ours['2048'].mean(0), np.cov(ours['2048'], rowvar=False))
        if theirs is None and {'kid', 'precision_recall'} & set(names):
            raise ValueError('kid and precision_recall need reference images, not statistics; leave --reference out.')
        if 'kid' in names:
            size = min(1000, len(images), len(theirs))
            results['kid'], results['kid_std'] = distance.kid(theirs, ours['2048'], subset_size=size)
        if 'precision_recall' in names:
            results['precision'], results['recall'] = distance.precision_recall(theirs, ours['2048'])
    return results


def with_truth(images, told, truth, model) -> dict:
    """PSNR and SSIM against the images that the conditions were made from, and of a guess that takes no learning."""
    from jit_jax import evaluation, metrics

    trivial = metrics.to_uint8(evaluation.guess(told, model.net.image_size))
    return {
        'psnr': np.mean(evaluation.psnr(images, truth)), 'psnr_baseline': np.mean(evaluation.psnr(trivial, truth)),
        'ssim': np.mean(evaluation.ssim(images, truth)), 'ssim_baseline': np.mean(evaluation.ssim(trivial, truth)),
    }  # fmt: skip


def with_noise(model, params, test) -> dict:
    """MSE and v-loss of x̂ on held-out images at a few times."""
    import jax

    from jit_jax import build, data, evaluation

    batch = next(iter(data.eval_batches(test, batch_size=min(256, len(test)))))
    batch.pop('weight')
    told = build.condition(model.config)
    found = evaluation.denoising(params, batch, jax.random.key(SEED.value), model=model.net, d=model.diffusion, condition=told)
    return {f'{name}_t{t}': found[name][i] for name in found for i, t in enumerate(evaluation.TIMES)}


def main():
    cli.restart_with()
    cli.parse()
    from jit_jax import api, build

    cli.use_cpu_cores(BATCH.value)
    with cli.one_sentence():
        if not WORKDIR.value:
            raise ValueError('--workdir says which run to measure, for example --workdir=runs/uncond.')
        model, params = api.load(WORKDIR.value, EMA.value)
        names = chosen_metrics(model)
        train, test = (build.source(model.config, split) if 'data' in model.config else None for split in ('train', 'test'))
    settings = {k: f.value for k, f in (('steps', STEPS), ('guidance', GUIDANCE)) if f.value is not None}
    told, truth = told_for(model, NUM.value, test)
    what = {'step': model.step, 'ema': EMA.value, 'seed': SEED.value, 'num': NUM.value, **settings}
    tag = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
    images = generate(model, params, told, os.path.join(WORKDIR.value, 'evaluation', tag), settings)
    results = {}
    if 'denoising' in names:
        results |= with_noise(model, params, test)
    if 'classifier' in names:
        results |= with_classifier(images, train, test)
    if 'truth' in names:
        results |= with_truth(images, told, truth, model)
    if {'fid', 'is', 'kid', 'precision_recall'} & set(names):
        results |= with_inception(images, names, train)
    results = {name: round(float(value), 6) for name, value in results.items()}
    path = os.path.join(WORKDIR.value, 'evaluation.json')
    known = json.load(open(path)) if os.path.exists(path) else {}
    with open(path + '.tmp', 'w') as file:
        json.dump(known | {tag: what | results}, file, indent=1)
    os.replace(path + '.tmp', path)
    for name, value in results.items():
        print(f'{name:28} {value:.4f}')


if __name__ == '__main__':
    main()
