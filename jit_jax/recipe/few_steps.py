"""What MeanFlow needs of a config, and what a run that learned it can be asked for."""

from jit_jax.diffusion import meanflow
from jit_jax.errors import UserError

SAMPLER = 'meanflow'  # the one of SAMPLERS that needs an end time


def check(config) -> None:
    """Raises UserError for a config whose parts of MeanFlow do not fit each other."""
    d, m = config['diffusion'], config['model']
    learns = d['objective'] == 'meanflow'
    if learns != m['end_time']:
        raise UserError(
            'config.diffusion.objective=meanflow and config.model.end_time=True go together; '
            'set both, or neither.'
        )
    low, high = d['guidance']
    if not 0 < low <= high:
        raise UserError(
            f'config.diffusion.guidance is (low, high) with 0 < low ≤ high; got {(low, high)}.'
        )
    if m['guidance'] != (low != high):
        raise UserError(
            'config.model.guidance=True and a range, such as config.diffusion.guidance=(1.0, 3.0), '
            'go together; set both, or neither.'
        )
    if m['guidance'] and (not learns or config['condition']['kind'] == 'none'):
        raise UserError(
            'config.model.guidance is of config.diffusion.objective=meanflow with a condition; '
            'leave it out.'
        )
    if d['adaptive'] and not learns:
        raise UserError(
            'config.diffusion.adaptive is of config.diffusion.objective=meanflow; leave it at 0.'
        )
    if learns:
        _check_rows(config)
    s = config['sample']
    check_asked(config, s['sampler'], s['guidance'], prefix='config.sample.')


def _check_rows(config) -> None:
    """One of so many rows has a step, in a batch and in all of its parts."""
    batch, parts = config['batch_size'], config['accumulate']
    every = config['diffusion']['mean_every']
    if batch % every:
        raise UserError(
            f'config.diffusion.mean_every={every} must divide config.batch_size={batch}; 1 always '
            'does.'
        )
    together = meanflow.group(batch, every)
    if together % parts:
        raise UserError(
            f'config.accumulate={parts}: with MeanFlow, a batch of {batch} rows goes through in a '
            f'power of two parts, at most {together}.'
        )


def check_asked(config, sampler: str | None, guidance: float | None, *, prefix: str = '') -> None:
    """Raises UserError for a sampler or a guidance that a run never learned; None is its own."""
    m = config['model']
    if sampler == SAMPLER and not m['end_time']:
        raise UserError(
            f'{prefix}sampler=meanflow needs a run that learned it '
            '(config.diffusion.objective=meanflow); use heun.'
        )
    if guidance is None or not m['guidance']:
        return
    low, high = config['diffusion']['guidance']
    if not low <= guidance <= high:
        raise UserError(
            f'{prefix}guidance: this run learned scales from {low:g} to {high:g}; got {guidance:g}.'
        )
