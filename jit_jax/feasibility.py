"""What a machine can bear: a run that would take a CPU days, and a device that is out of memory."""

import contextlib
from collections.abc import Callable, Iterator

import jax

from jit_jax.errors import UserError
from jit_jax.recipe.build import less_memory

PATIENCE = 86400  # seconds of a CPU that a run may take without --yes


def check_patience(config, seconds: float) -> None:
    """Raises UserError for a run that would take this CPU longer than anyone waits."""
    if seconds > PATIENCE:
        raise UserError(
            f'On this CPU, {config.steps} steps of JiT-{config.model.variant} at batch '
            f'{config.batch_size} take at least {seconds / 86400:,.0f} days; run it on an '
            'accelerator, lower --config.steps, learn the digits (--config=configs/uncond.py), '
            'or start it all the same with --yes.'
        )


@contextlib.contextmanager
def enough_memory(advise: Callable[[], str]) -> Iterator[None]:
    """Within it, a device that is out of memory, compiling or running, is a UserError that says
    what to change.

    advise: makes that sentence.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        raise UserError(advise()) from error


def training_advice(config, mesh) -> str:
    """One sentence: what else computes the same training in less memory, and then what does not."""
    tries, parts = less_memory(config, mesh), []
    if 'accumulate' in tries:
        rows = config.batch_size // tries['accumulate']
        parts.append(f'--config.accumulate={tries["accumulate"]} ({rows} images at a time)')
    if 'compute.remat' in tries:
        again = 'computes again what it need not keep'
        parts.append(f'--config.compute.remat={tries["compute.remat"]} ({again})')
    if config.batch_size > 1:
        parts.append(f'--config.batch_size={config.batch_size // 2} (another training)')
    rows = config.batch_size // config.accumulate
    return f'{_device()} is out of memory with {rows} images at a time; try {", or ".join(parts)}.'


def preview_advice(config) -> str:
    """One sentence: how a grid of samples takes less memory."""
    return (
        f'{_device()} is out of memory drawing {config.sample.num} samples; '
        'the run goes on with a lower --config.sample.num.'
    )


def evaluation_advice(config) -> str:
    """One sentence: how an evaluation takes less memory."""
    return (
        f'{_device()} is out of memory evaluating; the run goes on with a lower '
        f'--config.evaluate.batch than {config.evaluate.batch}.'
    )


def _device() -> str:
    return jax.local_devices()[0].device_kind
