"""Generates images and measures them part by part, afterwards or while a run trains.

A metric has `reset()`, `update(images, conditioning, truth)` and `compute() -> dict[str, float]`. A
part is made, given to every metric and let go, so memory does not grow with the number of images,
but for Inception's features where a score needs all of them. Every process takes part and ends with
the same numbers.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from jit_jax import trained
from jit_jax.diffusion.generate import Settings
from jit_jax.errors import UserError, nearest_first
from jit_jax.evaluation import inception_scores
from jit_jax.evaluation.classifier import ClassifierMetric
from jit_jax.evaluation.image_parts import ImageParts
from jit_jax.evaluation.image_scores import TruthMetric
from jit_jax.evaluation.inception_scores import InceptionMetric, open_network
from jit_jax.evaluation.kept_files import statistics_file
from jit_jax.evaluation.reference import Statistics, open_reference
from jit_jax.evaluation.seams import SeamsMetric
from jit_jax.model.sequence import patch_size
from jit_jax.model.sharding import whole_rows
from jit_jax.recipe import kinds
from jit_jax.training.processes import every_process

METRICS = ('classifier', 'fid', 'is', 'kid', 'precision_recall', 'truth', 'seams', 'denoising')
NUMBERS = {  # that people ask for by name: the metric that says them
    'psnr': 'truth',
    'ssim': 'truth',
    'lpips': 'truth',
    'readable': 'classifier',
    'classifier_distance': 'classifier',
    'precision': 'precision_recall',
    'recall': 'precision_recall',
    'border_steps': 'seams',
    'mse': 'denoising',
    'v_loss': 'denoising',
}
LEAST = {'is': 10, 'precision_recall': 4}  # images; two are enough for the others


@dataclass(frozen=True)
class Files:
    """Files that metrics need, '' for none, and where statistics of a reference are kept."""

    inception: str = ''
    reference: str = ''
    lpips: str = ''
    cache: str = ''


def has_condition_image(config: dict) -> bool:
    """Whether a run's condition has an image in it that lies over the target."""
    return any('cond' in shapes for shapes in kinds.options(config).values())


def measurable(config: dict, inception: str = '') -> list[str]:
    """Names of METRICS for generated images, by what a run has and the files at hand."""
    names = []
    if has_condition_image(config):
        names.append('truth')
    if config.get('classes'):
        names.append('classifier')
    if inception:
        names.append('fid')
    if names and 'data' in config and _has_inside(config):
        names.append('seams')
    return names


def _has_inside(config: dict) -> bool:
    """Whether a patch has more than one pixel."""
    return patch_size(config['model']['image_size']) > 1


def check(config: dict, names: list[str], files: Files, num: int) -> None:
    """Raises UserError unless a run can be measured by these names with so many images."""
    for name in names:
        if name not in METRICS:
            raise UserError(_no_such_metric(name))
    _check_data(config, names, files)
    _check_files(names, files)
    if 'truth' in names and not has_condition_image(config):
        raise UserError(
            '--metrics=truth compares with the images that conditions were made from; this run '
            'has no condition image.'
        )
    if 'classifier' in names and not config.get('classes'):
        raise UserError('--metrics=classifier needs labelled training images; this run has none.')
    if 'seams' in names and not _has_inside(config):
        raise UserError('--metrics=seams needs patches of more than a pixel: images of 32 or more.')
    for name in names:
        if num < LEAST.get(name, 2):
            raise UserError(f'--metrics={name} needs --num={LEAST.get(name, 2)} or more.')


def _no_such_metric(name: str) -> str:
    if name in NUMBERS:
        metric = NUMBERS[name]
        return f'--metrics: {name} is a number of {metric}; give --metrics={metric}.'
    there = f'there are {", ".join(METRICS)}'
    return nearest_first(f'--metrics: there is no {name!r}', name, METRICS, there)


def _check_data(config: dict, names: list[str], files: Files) -> None:
    """Converted weights know no data set."""
    from_inception = set(names) <= set(inception_scores.SCORES)
    if not names or ('data' not in config and not from_inception):
        raise UserError(
            'Without labels, condition images or a data set only --metrics=fid,is measure, with '
            '--inception and --reference.'
        )
    if 'data' not in config and set(names) != {'is'} and not files.reference:
        raise UserError(
            'These weights come without a data set; --reference names the images or statistics '
            'to compare with.'
        )


def _check_files(names: list[str], files: Files) -> None:
    needed = [name for name in names if name in inception_scores.SCORES]
    if needed and not files.inception:
        raise UserError(
            f'--metrics={",".join(needed)} needs --inception; jit-jax fetch downloads it.'
        )
    if files.inception and not os.path.exists(files.inception):
        raise UserError(
            f'There are no Inception weights at {files.inception}; jit-jax fetch downloads them.'
        )


def make_metrics(
    names: list[str], model: trained.Model, mesh, *, rows: int, train, test, files: Files
) -> list:
    """The metrics of these names for generated images, set up once for many weights and settings.

    rows: how many images Inception takes at a time, at most; train and test: the run's
    `data.Source`s, or None. Reads all files and all images but those of the reference. Raises
    UserError. Collective.
    """
    metrics = []
    if 'truth' in names:
        make = partial(TruthMetric, model.net.image_size, files.lpips)
        metrics.append(every_process(make))
    if 'classifier' in names:
        metrics.append(every_process(partial(ClassifierMetric, train, test)))
    if 'seams' in names:
        metrics.append(every_process(partial(SeamsMetric, test)))
    if set(names) & set(inception_scores.SCORES):
        metrics.append(_inception_metric(names, model, mesh, rows, files))
    return metrics


def _inception_metric(names, model, mesh, rows: int, files: Files) -> InceptionMetric:
    reference, cache = every_process(partial(_open_reference, names, model.config, files))
    network = open_network(files.inception, mesh)
    threads = model.config['data']['threads'] if 'data' in model.config else 0
    how = {'rows': whole_rows(rows, mesh), 'threads': threads, 'cache': cache}
    return InceptionMetric(names, network, reference, mesh, **how)


def _open_reference(names, config: dict, files: Files) -> tuple[Statistics | list, str]:
    """The reference, and where its statistics are kept, '' for nowhere."""
    if not set(names) & set(inception_scores.WITH_REFERENCE):
        return [], ''
    with_images = bool(set(names) & set(inception_scores.WITH_IMAGES))
    name = files.reference or 'train'
    reference = open_reference(name, config, with_images=with_images)
    if isinstance(reference, Statistics) or not files.cache:
        return reference, ''
    return reference, statistics_file(files.cache, name, reference, config, files.inception)


class Measure:
    """Draws the images of `parts` and gives them to metrics."""

    def __init__(self, parts: ImageParts, metrics: list):
        self.parts, self.metrics = parts, metrics

    def __call__(
        self,
        params,
        settings: Settings,
        folder: str = '',
        progress: Callable[[int], None] | None = None,
    ) -> dict[str, float]:
        """The numbers of weights that lie on the mesh. Collective.

        folder: where parts are kept and found again, '' for nowhere. progress: called with the
        number of images done.
        """
        for metric in self.metrics:
            metric.reset()
        for start in self.parts.starts():
            part = self.parts.part(params, settings, start, folder)
            for metric in self.metrics:
                metric.update(*part)
            if progress:
                progress(start + len(part.images))
        found = {}
        for metric in self.metrics:
            found |= metric.compute()
        return {name: float(value) for name, value in found.items()}
