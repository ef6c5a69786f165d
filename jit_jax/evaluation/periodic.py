"""Measures a run while it trains, as `jit-jax evaluate` does afterwards."""

from collections.abc import Callable
from contextlib import nullcontext

from jit_jax import trained
from jit_jax.errors import UserError
from jit_jax.evaluation.denoising import DenoisingScore
from jit_jax.evaluation.image_parts import ImageParts
from jit_jax.evaluation.measure import Files, Measure, check, make_metrics, measurable
from jit_jax.recipe import build


class PeriodicEvaluation:
    """Measures denoising and generated images at the steps that config.evaluate names.

    Its randomness is its own. Raises UserError at once for what could not be measured; reads images
    and files when they are first due.
    """

    def __init__(self, run: build.Run):
        self._run, self._config = run, run.config.evaluate
        self._denoising = self._measure = None
        files = self._files()
        self._names = measurable(run.record, files.inception)
        if self._config.every and not self._names:
            raise UserError(
                'config.evaluate.every: without labels or condition images generated images are '
                'measured by FID alone; set config.evaluate.inception, or every to 0.'
            )
        if self._config.every:
            check(run.record, self._names, files, self._config.num)

    def due(self, step: int) -> bool:
        """Whether something is measured after this step."""
        return self._is_due(self._config.denoise_every, step) or self._is_due(
            self._config.every, step
        )

    def __call__(self, state, step: int, pause: Callable = nullcontext) -> dict[str, float]:
        """What is due after `step`, by names such as `evaluate/fid`. Collective; writes nothing.

        pause('denoise') and pause('measure') are entered around the two.
        """
        params, found = state.ema['ema1'], {}
        if self._is_due(self._config.denoise_every, step):
            with pause('denoise'):
                self._denoising = self._denoising or self._make_denoising()
                found |= self._denoising(params)
        if self._is_due(self._config.every, step):
            with pause('measure'):
                self._measure = self._measure or self._make_measure()
                found |= self._measure(params, self._run.settings)
        return {f'evaluate/{name}': value for name, value in found.items()}

    def _is_due(self, every: int, step: int) -> bool:
        last = step == self._run.config.steps
        return bool(every) and (step % every == 0 or last)

    def _model(self) -> trained.Model:
        run = self._run
        return trained.Model(run.model, run.diffusion, run.settings, run.record, 0)

    def _files(self) -> Files:
        return Files(inception=self._config.inception, reference=self._config.reference)

    def _make_denoising(self) -> DenoisingScore:
        run = self._run
        return DenoisingScore(
            self._model(),
            run.mesh,
            run.test,
            num=self._config.denoise_num,
            batch=run.config.batch_size,
            seed=run.config.seed,
        )

    def _make_measure(self) -> Measure:
        run, model = self._run, self._model()
        num, batch = self._config.num, self._config.batch
        parts = ImageParts(
            model, run.mesh, num=num, batch=batch, seed=run.config.seed, test=run.test
        )
        metrics = make_metrics(
            self._names,
            model,
            run.mesh,
            rows=min(num, batch),
            train=run.train,
            test=run.test,
            files=self._files(),
        )
        return Measure(parts, metrics)
