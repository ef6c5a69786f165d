"""One run of `unification.py`: a training run of the package's recipe, measured as it goes."""

import functools
import time
from dataclasses import dataclass, replace

import jax

from benchmarks import few_pairs
from configs import uncond
from jit_jax import data, trained
from jit_jax.evaluation.classifier import ClassifierMetric
from jit_jax.evaluation.image_parts import ImageParts
from jit_jax.evaluation.image_scores import TruthMetric
from jit_jax.evaluation.measure import Measure
from jit_jax.model import sharding
from jit_jax.model.sizes import forward_multiply_adds
from jit_jax.recipe import build

VARIANT = 'depth=4,width=48,heads=1,bottleneck=16,class_tokens=0,class_start=1,dropout=0.0'


def recipe_of(kind: str, factor: int, null: str, seed: int):
    """The digits' recipe for a smaller network and a constant learning rate.

    A constant rate makes every point of a curve the end of a run of that length.
    """
    config = uncond.get_config()
    config.seed = seed
    config.mesh = (1, 1, 1)
    config.model.variant, config.model.channels, config.model.num_classes = VARIANT, 1, 0
    config.model.null = null
    config.condition.kind, config.condition.factor = kind, factor
    config.optimizer.schedule, config.optimizer.warmup = 'constant', 30
    config.ema.decays = (0.99,)
    config.sample.sampler, config.sample.steps = 'multistep', 8
    return config


@dataclass(frozen=True)
class Measured:
    """How many images a measurement draws."""

    num: int = 96
    before: int = 48  # `full_from`
    full_from: int = 150  # the step


class Bench:
    """A condition, or none, with one way to say that there is none: its programs, compiled once."""

    def __init__(self, task: str, null: str, measured: Measured, *, conditioned: bool):
        about = few_pairs.TASKS[task]
        kind = about['kind'] if conditioned else 'none'
        self.config = recipe_of(kind, about['factor'], null, 0)
        self.images = few_pairs.images(about['images'])
        self.mesh = build.mesh(self.config)
        recipe = build.step_recipe(self.config, jax.devices()[0])
        if conditioned:
            row_by_row = few_pairs.condition(kind, about['factor'], recipe.model.patch)
            recipe = replace(recipe, condition=row_by_row, drop=0.0)
        self.recipe = recipe
        places = build.state_places(self.config, build.state_shapes(recipe), self.mesh)
        self.init = jax.jit(build.initial(recipe), out_shardings=places)
        self.start = build.jit_start(recipe, places)
        self.step = build.jit_step(recipe, self.mesh, places)
        slots = about['slots'] if conditioned else 0
        if null == 'token':
            slots = 256  # the learned token fills them
        rows = self.config.batch_size
        self.flops = 6 * rows * forward_multiply_adds(recipe.model, slots, labelled=False)
        self.conditioned, self._measured = conditioned, measured

    def rows(self, pairs: int | None, drop: float, seed: int, *, mixed: bool):
        """What training sees: all images, or `pairs` of them (None: all) with their conditions."""
        if not self.conditioned:
            return self.images.train
        count = len(self.images.train) if pairs is None else pairs
        return few_pairs.SomeWithCondition(self.images.train, count, drop, seed, mixed=mixed)

    def train(self, params, rows, seed: int, steps: list[int]):
        """Trains from `params` (None: fresh ones) and yields (step, averaged weights) at `steps`.

        steps: ascending.
        """
        key = jax.random.key(seed)
        state = self.init(key) if params is None else self.start(params)
        batches = data.train_batches(
            rows,
            batch_size=self.config.batch_size,
            seed=seed,
            start_step=0,
            flip=False,
            threads=0,
            prefetch=0,
        )
        for step in range(1, steps[-1] + 1):
            batch = sharding.to_device(next(batches), self.mesh)
            state, _ = self.step(state, batch, key)
            if step in steps:
                yield step, state.ema['ema1']

    def measure(self, params, num: int, *, with_condition: bool) -> dict[str, float]:
        """PSNR, SSIM and the classifier's distance of `num` images of held-out conditions, or the
        distance alone of images without a condition.
        """
        record = self.config.to_dict()
        metrics = [classifier(self.images)]
        if with_condition:
            metrics.append(TruthMetric(self.recipe.model.image_size))
        else:
            record['condition']['kind'] = 'none'
        settings = build.settings(self.config)
        model = trained.Model(self.recipe.model, self.recipe.diffusion, settings, record, 0)
        parts = ImageParts(
            model, self.mesh, num=num, batch=self._measured.before, seed=0, test=self.images.test
        )
        params = jax.device_put(params, sharding.replicated(self.mesh))
        found = Measure(parts, metrics)(params, settings)
        return {name: round(value, 4) for name, value in found.items()}

    def curve(self, params, rows, seed: int, steps: list[int]) -> tuple[dict, dict]:
        """Trains and measures.

        Returns {'curve': [{'step': …, 'psnr': …}, …], …} and the averaged weights.
        """
        began, curve, spent = time.process_time(), [], 0.0
        for step, weights in self.train(params, rows, seed, steps):
            last = step == steps[-1]
            before = time.process_time()
            early = step < self._measured.full_from
            num = self._measured.before if early else self._measured.num
            point = {'step': step}
            if self.conditioned:
                point |= self.measure(weights, num, with_condition=True)
            if last or not self.conditioned:
                alone = self.measure(weights, num, with_condition=False)
                point |= {f'unconditional_{name}': value for name, value in alone.items()}
            curve.append(point)
            spent += time.process_time() - before
        training = time.process_time() - began - spent
        found = {
            'curve': curve,
            'petaflop': round(steps[-1] * self.flops / 1e15, 6),
            'training_seconds': round(training, 1),
            'measuring_seconds': round(spent, 1),
        }
        return found, jax.device_get(weights)


@functools.cache
def classifier(images: few_pairs.Images) -> ClassifierMetric:
    """The metric of a data set, whose classifier is trained once."""
    return ClassifierMetric(images.train, images.test)
