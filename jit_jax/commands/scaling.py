"""The table of docs/scaling.md: every published size on pods and cards, as the compilers see it."""

from collections.abc import Iterator

from jit_jax.commands import lowering
from jit_jax.configs import uncond
from jit_jax.errors import UserError
from jit_jax.hardware import topologies
from jit_jax.hardware.cards import cards
from jit_jax.hardware.topologies import PODS, Target
from jit_jax.recipe import build

# Images at a time where a pod would share the published batch: a card by itself takes fewer.
GPUS = {'h100': 128, 'h100:8': 1024, 'a100': 128, 'l4': 32}
GIB = 2**30
COLUMNS = (
    'size',
    'devices',
    'mesh',
    'batch',
    'remat',
    'GiB each',
    'GB moved',
    'roofline ms (products)',
    'ms at peak',
    'ms of links',
    'days at half of peak',
)


def table(sizes: str = 'blhg') -> Iterator[str]:
    """Its lines, one by one as they are compiled, which takes minutes each.

    Below it, a sentence for each kind of device whose compiler is not installed.
    """
    targets, missing = compilers()
    yield f'| {" | ".join(COLUMNS)} |'
    yield f'|{"---|" * len(COLUMNS)}'
    for size in sizes:
        for target in targets:
            yield row(target, *published(target, f'imagenet256_{size}16'))
    if missing:
        yield from ['', *missing]


def compilers() -> tuple[list[Target], list[str]]:
    """What can be compiled for here, and a sentence for each compiler that is missing."""
    targets, missing = [], {}
    for name in (*GPUS, *PODS):
        try:
            targets.append(topologies.target(name))
        except UserError as problem:
            missing.setdefault(cards()[name.partition(':')[0]].platform, str(problem))
    return targets, list(missing.values())


def published(target: Target, preset: str) -> tuple[build.Programs, lowering.Report]:
    """A published recipe on a target, with as little rematerialisation as fits."""
    config = uncond.get_config(preset)
    config.batch_size = GPUS.get(target.name, config.batch_size)
    config.mesh = (-1, min(16, len(target.devices)), 1)
    while True:
        run = build.programs(config, build.mesh(config, target.devices))
        report, less = lowering.compile_step(run, target), build.less_memory(config, run.mesh)
        if not report.problem or not less or report.state_is_too_large:
            return run, report
        key = next(iter(less))
        config.update_from_flattened_dict({key: less[key]})


def row(target: Target, run: build.Programs, report: lowering.Report) -> str:
    """One row of the table."""
    config, card, found = run.config, target.card, report.analysis
    peak = max(card.peak.values())
    at_peak = report.formula / run.mesh.size / peak
    recipe = config.steps * at_peak  # seconds of all steps, which follow the batch size
    cells = [
        f'JiT-{config.model.variant}/{run.model.patch}',
        target.name,
        '×'.join(str(side) for side in run.mesh.devices.shape),
        str(config.batch_size),
        remat(config),
        memory(report),
        f'{found.bytes / 1e9:.0f}' if found else '–',
        f'{found.roofline_ms:.0f} ({found.share_of_products:.0%})' if found else '–',
        f'{at_peak * 1e3:.0f}',
        f'{report.sent / card.links * 1e3:.0f}',
        f'{2 * recipe / 86400:.1f}',
    ]
    return f'| {" | ".join(cells)} |'


def memory(report: lowering.Report) -> str:
    """GiB of those that there are, or that they do not suffice."""
    limit = f'{report.limit / GIB:.0f}'
    if report.problem:
        return f'more than {limit}'
    return f'{report.total / GIB:.1f} of {limit}'


def remat(config) -> str:
    """What saves memory: 'dots ×4' is rematerialisation of all but products, in four parts."""
    if config.accumulate == 1:
        return config.compute.remat
    return f'{config.compute.remat} ×{config.accumulate}'
