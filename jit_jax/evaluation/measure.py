"""Generates images and measures them, part by part: the one road of `jit-jax evaluate` and of a training run.

Every process takes part and ends with the same numbers. A part is made, looked at and let go, so memory does not grow
with the number of images, but for Inception features where a metric needs all of them.
"""

import hashlib
import os
from dataclasses import dataclass
from functools import partial
from itertools import islice

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from jit_jax import data, trained
from jit_jax.diffusion import conditions
from jit_jax.diffusion.generate import compiled_sampler, noise
from jit_jax.evaluation import (
    classifier,
    denoising,
    distances,
    image_scores,
    inception,
    lpips,
    preview,
)
from jit_jax.model.sharding import replicated, spread, to_device, whole_rows, within
from jit_jax.output import files
from jit_jax.output.images import to_uint8
from jit_jax.recipe import build

METRICS = ('classifier', 'fid', 'is', 'kid', 'precision_recall', 'truth', 'denoising')
WITH_INCEPTION = {'fid', 'is', 'kid', 'precision_recall'}
LEARNT_FROM = 10_000  # images, at most, that the classifier is trained and held against


def pictured(config: dict) -> bool:
    """Whether a run's condition has an image in it."""
    return bool(conditions.kinds(config['condition']['kind']) - {'class'})


def measurable(config: dict, inception: str = '') -> list[str]:
    """Names of METRICS for generated images, by the files at hand."""
    return (
        ['truth'] * pictured(config)
        + ['classifier'] * bool(config.get('classes'))
        + ['fid'] * bool(inception)
    )


def check(config: dict, names: list[str], inception: str, reference: str) -> list[str]:
    """The names, if a run can be measured by them. Raises ValueError or FileNotFoundError, in one sentence."""
    for name in names:
        if name not in METRICS:
            raise ValueError(f'--metrics: {name!r} is not one of {", ".join(METRICS)}.')
    if not names or (
        'data' not in config and not {*names} <= WITH_INCEPTION
    ):  # converted weights know no data set
        raise ValueError(
            'Without labels, condition images or a data set only --metrics=fid,is, with --inception and --reference, measure.'
        )
    if 'data' not in config and {*names} - {'is'} and not reference:
        raise ValueError(
            'These weights come without a data set; --reference names the images or statistics to compare with.'
        )
    if {*names} & WITH_INCEPTION and not inception:
        raise ValueError(
            f'--metrics={",".join(names)} needs --inception; jit-jax fetch downloads it.'
        )
    if inception and not os.path.exists(inception):
        raise FileNotFoundError(
            f'There are no Inception weights at {inception}; jit-jax fetch downloads them.'
        )
    if 'truth' in names and not pictured(config):
        raise ValueError(
            '--metrics=truth compares with the images that conditions were made from; this run has no condition image.'
        )
    if 'classifier' in names and not config.get('classes'):
        raise ValueError('--metrics=classifier needs labelled training images; this run has none.')
    return names


class Measure:
    """Draws `num` images, `batch` at a time, and measures them; set up once for many weights and settings.

    Labels go round the classes, so any multiple of their number is balanced; conditions are those of held-out images.
    Image i depends on (seed, i) alone. Raises ValueError or OSError for files that do not fit, before any compute.
    """

    def __init__(
        self,
        model: trained.Model,
        mesh,
        names,
        *,
        num,
        batch,
        seed,
        train,
        test,
        inception='',
        reference='',
        lpips='',
        cache='',
    ):
        self.model, self.mesh, self.names, self.num, self.batch, self.seed, self.test = (
            model,
            mesh,
            names,
            num,
            batch,
            seed,
            test,
        )
        self.size = whole_rows(min(batch, num), mesh)  # all devices draw; the rest is dropped
        self.eyes = []
        if 'truth' in names:
            self.eyes.append(TruthEye(model.net, lpips))
        if WITH_INCEPTION & {*names}:
            self.eyes.append(
                InceptionEye(
                    names, inception, reference or 'train', model.config, mesh, self.size, cache
                )
            )
        if 'classifier' in names:
            self.eyes.append(ClassifierEye(train, test))

    def __call__(
        self, params, settings=None, folder: str = '', progress=lambda done: None
    ) -> dict[str, float]:
        """The numbers of weights that lie on the mesh. settings: another way to sample; folder: where parts are kept and found again."""
        for eye in self.eyes:
            eye.begin()
        for start in range(0, self.num, self.batch):
            count = min(self.batch, self.num - start)
            part = self.part(params, settings or self.model.settings, folder, start)
            for eye in self.eyes:
                eye.see(*jax.tree.map(lambda rows: rows[:count], part))  # noqa: B023 used at once
            progress(start + count)
        return {name: float(value) for eye in self.eyes for name, value in eye.end().items()}

    def part(self, params, settings, folder: str, start: int) -> tuple:
        """(images, what the model was told, truth) from number `start` on; the images uint8, rounded as a PNG would be."""
        if self.model.config['condition']['kind'] == 'class':
            conditioning, truth = (
                {
                    'label': (start + np.arange(self.size, dtype=np.int32))
                    % self.model.net.num_classes
                },
                None,
            )
        else:
            conditioning, truth = preview.held_out(
                self.model.config, self.size, self.seed, self.test, start
            )
        path = os.path.join(folder, f'{start:06d}-{self.batch}.npz') if folder else ''
        if path and everyone_sees(path):
            return np.load(path)['arr_0'], conditioning, truth
        draw = compiled_sampler(
            self.model.net, self.model.diffusion, settings.sampler, settings.steps, self.mesh
        )
        z = noise(jax.random.key(self.seed), start, self.size, self.model.net)
        images = to_uint8(
            process_allgather(
                draw(
                    params,
                    *spread((z, conditioning), self.mesh),
                    settings.guidance,
                    settings.interval,
                ),
                tiled=True,
            )
        )
        if path and jax.process_index() == 0:
            files.save_npz(path, arr_0=images[: self.batch])
        return images, conditioning, truth


def everyone_sees(path: str) -> bool:
    """Whether a file is there for every process, so that all of them read it or none does."""
    return bool(np.all(process_allgather(np.asarray(os.path.exists(path)))))


class TruthEye:
    """PSNR, SSIM and, with weights, LPIPS against what conditions were made from; the same of a guess that takes no learning."""

    def __init__(self, net, weights: str):
        self.net, self.scores = net, {'psnr': image_scores.psnr, 'ssim': image_scores.ssim}
        if weights:
            look = partial(lpips.distance, jax.device_put(lpips.load_weights(weights)))
            self.scores['lpips'] = lambda a, b: look(rgb(a), rgb(b))

    def begin(self) -> None:
        self.rows = {f'{name}{whose}': [] for name in self.scores for whose in ('', '_baseline')}

    def see(self, images, conditioning, truth) -> None:
        guess = to_uint8(image_scores.guess(conditioning, self.net.image_size))
        for name, score in self.scores.items():
            self.rows[name].append(np.asarray(score(images, truth)))
            self.rows[f'{name}_baseline'].append(np.asarray(score(guess, truth)))

    def end(self) -> dict:
        return {name: np.mean(np.concatenate(rows)) for name, rows in self.rows.items()}


def frechet(a: distances.Moments, b: distances.Moments) -> float:
    return distances.frechet(a.mean, a.covariance, b.mean, b.covariance)


class ClassifierEye:
    """What a small classifier of the training split says, and the Fréchet distance to held-out images on its features."""

    def __init__(self, train, test):
        real, held = (self.some(source) for source in (train, test))
        self.net = classifier.Classifier(real['image'], real['label'])
        self.to_held = partial(frechet, self.net.moments(held['image']))
        readable = np.mean(self.net.confidence(held['image']) > 0.7)
        self.floor = {
            'readable_held_out': readable,
            'classifier_distance_train': self.to_held(self.net.moments(real['image'])),
        }

    @staticmethod
    def some(source) -> dict:
        rows = [
            source[i]
            for i in np.linspace(0, len(source) - 1, min(len(source), LEARNT_FROM)).astype(int)
        ]
        return {name: np.stack([row[name] for row in rows]) for name in ('image', 'label')}

    def begin(self) -> None:
        self.moments, self.readable = None, []

    def see(self, images, conditioning, truth) -> None:
        self.moments = self.net.moments(images, self.moments)
        self.readable.append(
            self.net.confidence(images) > 0.7
        )  # a share with more than 0.7 for one class

    def end(self) -> dict:
        readable = np.mean(np.concatenate(self.readable))
        return {
            'readable': readable,
            'classifier_distance': self.to_held(self.moments),
        } | self.floor


class InceptionEye:
    """FID, IS, KID, precision and recall. Inception runs on rows split over the mesh; each process adds up its own."""

    def __init__(
        self, names, weights: str, reference: str, config: dict, mesh, size: int, cache: str
    ):
        self.names, self.mesh, self.size, self.theirs = {*names}, mesh, size, None
        self.threads = config['data']['threads'] if 'data' in config else 0
        self.weights = jax.device_put(inception.load_weights(weights), replicated(mesh))
        self.features = jax.jit(inception.features)
        self.keep = ('2048',) * bool(
            self.names & {'kid', 'precision_recall'}
        )  # these need every row of both sides
        self.reference = (
            open_reference(reference, config, bool(self.keep))
            if self.names & (WITH_INCEPTION - {'is'})
            else []
        )
        about = repr(
            (reference, config.get('data'), config['model']['image_size'], os.path.getsize(weights))
        )
        self.cache = cache and os.path.join(
            cache, f'reference-{hashlib.sha256(about.encode()).hexdigest()[:12]}.npz'
        )

    def begin(self) -> None:
        self.ours = Features(self.keep + ('logits_unbiased',) * ('is' in self.names))

    def see(self, images, conditioning, truth) -> None:
        rows = np.arange(self.size)
        self.look(
            self.ours,
            spread({'image': images[rows % len(images)], 'weight': rows < len(images)}, self.mesh),
        )

    def look(self, features: 'Features', batch: dict) -> None:
        features.add(self.features(self.weights, rgb(batch['image'])), batch['weight'])

    def learn(self) -> tuple:
        """(mu, sigma, features or None) of the reference; for large ones mu and sigma are kept in a file."""
        if isinstance(self.reference, tuple):
            return *self.reference, None
        if not self.keep and self.cache and everyone_sees(self.cache):
            return *distances.load_stats(self.cache), None
        theirs, share = (
            Features(self.keep),
            {'process_index': jax.process_index(), 'process_count': jax.process_count()},
        )
        for source in self.reference:
            for batch in data.eval_batches(
                source, batch_size=self.size, threads=self.threads, **share
            ):
                self.look(
                    theirs,
                    to_device({'image': batch['image'], 'weight': batch['weight'] > 0}, self.mesh),
                )
        if self.cache and jax.process_index() == 0:
            distances.save_stats(self.cache, *theirs.stats())
        return *theirs.stats(), theirs.rows('2048') if self.keep else None

    def end(self) -> dict:
        results = {}
        if 'is' in self.names:
            results['is'], results['is_std'] = distances.inception_score(
                self.ours.rows('logits_unbiased')
            )
        if self.reference:
            self.theirs = self.theirs or self.learn()
            *stats, theirs = self.theirs
        if 'fid' in self.names:
            results['fid'] = distances.frechet(*stats, *self.ours.stats())
        if 'kid' in self.names:
            size = min(1000, self.ours.moments.count, len(theirs))
            results['kid'], results['kid_std'] = distances.kid(
                theirs, self.ours.rows('2048'), subset_size=size
            )
        if 'precision_recall' in self.names:
            results['precision'], results['recall'] = distances.precision_recall(
                theirs, self.ours.rows('2048')
            )
        return results


class Features:
    """Moments of this process's rows, and every row of the features that are kept by name."""

    def __init__(self, keep: tuple[str, ...]):
        self.moments, self.kept = distances.Moments(2048), {name: [] for name in keep}

    def add(self, found: dict, weight) -> None:
        self.moments.update(own(found['2048']), own(weight))
        for name, parts in self.kept.items():
            parts.append(
                process_allgather(found[name], tiled=True)[process_allgather(weight, tiled=True)]
            )

    def rows(self, name: str) -> np.ndarray:
        return np.concatenate(self.kept[name])

    def stats(self) -> tuple:
        total = self.moments.across_hosts()
        return total.mean, total.covariance


def own(array) -> np.ndarray:
    """The rows of a global array that lie with this process, each once."""
    parts = [np.asarray(shard.data) for shard in array.addressable_shards if shard.replica_id == 0]
    return np.concatenate(parts or [np.zeros((0, *array.shape[1:]))])


def rgb(images) -> jax.Array:
    return images if images.shape[-1] == 3 else images.repeat(3, -1)


@dataclass(frozen=True)
class Stored:
    """Images in memory, uint8 [N, H, W, 3], as a source of examples."""

    images: np.ndarray

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {'image': self.images[index]}

    load = __getitem__


def open_reference(text: str, config: dict, with_images: bool) -> tuple | list:
    """What --reference names: (mu, sigma), or a list of sources.

    text: an .npz with mu and sigma or ADM's arr_0, a folder of images, or a split of the run's own data. with_images:
    statistics will not do. Raises FileNotFoundError or ValueError, in one sentence.
    """
    if text.endswith('.npz') and os.path.exists(text):
        with np.load(text, allow_pickle=False) as file:
            if 'arr_0' in file.files and (with_images or 'mu' not in file.files):
                return [Stored(file['arr_0'])]
        if with_images:
            raise ValueError(
                f'{text} holds statistics; kid and precision_recall need reference images.'
            )
        return distances.load_stats(text)
    side = {'image_size': config['model']['image_size'], 'channels': config['model']['channels']}
    if os.path.isdir(text):
        return [
            data.open_source('folder', path=text, split=split, **side)
            for split in ('train', 'test')
        ]
    if os.sep in text or text.endswith('.npz') or 'data' not in config:
        raise FileNotFoundError(
            f'--reference: there is no {text}; name an .npz, a folder of images, or a split of the data set.'
        )
    return [build.source(config, split=text)]


class Denoising:
    """`evaluation.denoising` on the first `num` held-out images: cheap enough for every thousand steps."""

    def __init__(self, model: trained.Model, mesh, test, *, num, batch, seed):
        size = whole_rows(min(batch, num, len(test)), mesh)
        share = {'process_index': jax.process_index(), 'process_count': jax.process_count()}
        rows = islice(data.eval_batches(test, batch_size=size, **share), -(-num // size))
        self.batches, self.key = [to_device(batch, mesh) for batch in rows], jax.random.key(seed)
        condition = build.condition(model.config)
        self.run = jax.jit(
            within(
                mesh,
                partial(
                    denoising.denoising, model=model.net, d=model.diffusion, condition=condition
                ),
            )
        )

    def __call__(self, params) -> dict[str, float]:
        look = lambda i, batch: jax.device_get(
            self.run(params, batch, jax.random.fold_in(self.key, i))
        )
        sums = [look(i, batch) for i, batch in enumerate(self.batches)]
        return {name: float(value) for name, value in denoising.denoised(sums).items()}


class Watch:
    """The same numbers while a run trains, at the steps that config.evaluate names; its randomness is its own."""

    def __init__(self, run: build.Run):
        self.run, self.at = run, run.config.evaluate
        self.names = []
        if self.at.every:
            self.names = check(
                run.record,
                measurable(run.record, self.at.inception),
                self.at.inception,
                self.at.reference,
            )
        self.measure = self.denoising = None  # set up when they are first due

    def due(self, step: int) -> bool:
        """Whether anything is measured after `step`."""
        every = [n for n in (self.at.denoise_every, self.at.every) if n]
        return bool(every) and (step == self.run.config.steps or any(step % n == 0 for n in every))

    def look(self, state, step: int, writer) -> None:
        """Writes what is due after `step`; every process takes part, the first one writes."""
        c, at, run, values = self.run.config, self.at, self.run, {}
        due = lambda every: every and (step % every == 0 or step == c.steps)
        model = trained.Model(run.model, run.diffusion, run.settings, run.record, step)
        with writer.clock.pause():
            if due(at.denoise_every):
                how = {'num': at.denoise_num, 'batch': c.batch_size, 'seed': c.seed}
                self.denoising = self.denoising or Denoising(model, run.mesh, run.test, **how)
                values |= self.denoising(state.ema['ema1'])
            if due(at.every):
                how = {name: at[name] for name in ('num', 'batch', 'inception', 'reference')}
                self.measure = self.measure or Measure(
                    model, run.mesh, self.names, seed=c.seed, train=run.train, test=run.test, **how
                )
                values |= self.measure(state.ema['ema1'])
        if values:
            writer.scalars(step, {f'evaluate/{name}': value for name, value in values.items()})
