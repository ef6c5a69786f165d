"""What the benchmarks of the network share: flags, rows, alternating rounds, one table.

A row is a change of the config, or several.
"""

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jit_jax.commands import command_line
from jit_jax.errors import UserError

# Changes that mean the same in training and in sampling.
CHANGES = {
    'config': {},
    'scanned': {'compute.scan': True},
    'unscanned': {'compute.scan': False},
    'float32': {'compute.dtype': 'float32'},
    'bfloat16': {'compute.dtype': 'bfloat16'},
} | {name: {'compute.attention': name} for name in ('xla', 'cudnn', 'splash')}

# Of square matrices, for the ceiling, by JAX's backend: sizes, and how many follow each other.
PRODUCTS = {'cpu': ((1024, 2048), 2), 'gpu': ((4096, 8192, 16384), 16)}
PRODUCTS['tpu'] = PRODUCTS['gpu']


def define_flags(parser: command_line.Parser) -> None:
    """The flags of every benchmark."""
    count = command_line.whole_number(1)
    add = parser.add_argument
    parser.define_config('a file of configs/, with :PRESET after it; its data is not needed')
    add('--batch', type=count, help="images at a time; the config's own by default")
    add('--steps', type=count, help='training steps in a round (5), or sampler steps (50)')
    add('--rounds', type=count, default=7, help='every round runs each row once')
    add(
        '--rows',
        type=command_line.words,
        help='which rows, the first being what the others are compared to; a+b makes both changes',
    )
    add('--variant', help="a size of the network instead of the config's own")
    add('--depth', type=count, help='blocks, instead of all of the size, where those take too long')


@dataclass
class Program:
    """A compiled row."""

    run: Callable  # does the work once, and returns when it is done
    images: int  # that the work makes, or learns from
    flops: float  # for one image, by formula
    dtype: str
    memory: int  # bytes on one device
    compiling: float  # seconds
    least: float | None = None  # seconds of the work by the roofline; None where no card is known


def configured(args):
    """The config with --batch, --variant and --depth in place, and the size's name.

    Raises UserError for what cannot be.
    """
    import jax

    from jit_jax.model.sizes import size

    jax.config.update('jax_enable_compilation_cache', False)  # the seconds of compiling are shown
    command_line.required(args, 'config', 'names one, for example --config=configs/uncond.py.')
    config = args.config
    config.batch_size = args.batch or config.batch_size
    config.model.variant = variant = args.variant or config.model.variant
    sizes = size(variant)
    if args.depth:
        sizes |= {'depth': args.depth, 'class_start': min(sizes['class_start'], args.depth - 1)}
        config.model.variant = ','.join(f'{name}={value}' for name, value in sizes.items())
    return config, variant


def rows(config, changes: dict, names: list[str] | None, default: list[str]) -> dict:
    """Configs by row: of `names`, or of those in `default` whose keys the config has.

    Raises UserError for other names.
    """
    found = {}

    def has(name):
        keys = [key.split('.') for key in changes[name]]
        return all(key in config[room] for room, key in keys)

    for name in names or filter(has, default):
        found[name] = config.copy_and_resolve_references()
        for part in name.split('+'):
            if part not in changes or not has(part):
                raise UserError(
                    f'--rows: there is no {part!r}; there are {", ".join(filter(has, changes))}.'
                )
            with found[name].ignore_type():  # 'auto' and True are both values of a key
                found[name].update_from_flattened_dict(changes[part])
    return found


def noise(config) -> dict:
    """A batch of images of noise, as the data's: 'image' uint8 [B, S, S, C], 'label' int32 [B]."""
    random, B, m = np.random.default_rng(0), config.batch_size, config.model
    image = random.integers(0, 256, (B, m.image_size, m.image_size, m.channels), np.uint8)
    return {'image': image, 'label': random.integers(0, max(m.num_classes, 1), B, np.int32)}


def compiled(lowered: Callable):
    """() → a lowered program; returns it compiled, and of it the fields of a `Program` by name."""
    start = time.perf_counter()
    program = lowered().compile()
    seconds, m = time.perf_counter() - start, program.memory_analysis()
    bytes_ = (
        m.argument_size_in_bytes
        + m.temp_size_in_bytes
        + m.output_size_in_bytes
        - m.alias_size_in_bytes
    )
    return program, dict(memory=bytes_, compiling=seconds, least=least(program))


def least(program) -> float | None:
    """Seconds of one run of a compiled program by the roofline, on the first device here."""
    import jax

    from jit_jax.hardware import cards
    from jit_jax.hardware.analysis import analyse

    card = cards.of_kind(jax.devices()[0].device_kind)
    return None if card is None else analyse(program.as_text(), card).roofline_ms / 1e3


def built(configs: dict, build: Callable) -> dict[str, Program]:
    """build(config) → Program, run once to warm up.

    A row that cannot be here costs one printed line.
    """
    import jax

    programs = {}
    for name, config in configs.items():
        try:
            programs[name] = build(config)
            programs[name].run()
        except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
            programs.pop(name, None)
            print(f'No row {name}: {str(error).strip().splitlines()[0]}')
    if not programs:
        raise UserError('No row could run.')
    return programs


def alternate(runs: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run in each round.

    Rounds alternate, so that whatever else the machine does hits all alike.
    """
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values) -> str:
    """Median and quartiles, as '3.05 (3.01–3.12)'."""
    low, middle, high = values * 3 if len(values) == 1 else _quartiles(values)
    return f'{number(middle)} ({number(low)}–{number(high)})'


def _quartiles(values) -> list[float]:
    return statistics.quantiles(values, method='inclusive')


def number(value: float) -> str:
    """Three digits or more, without an exponent."""
    return f'{value:.0f}' if abs(value) >= 100 else f'{value:.3g}'


def ceiling(dtype: str) -> float:
    """FLOP/s of products of square matrices in `dtype` on all devices at once.

    The best of several sizes, dtypes of the sums, and tries.
    """
    import jax
    import jax.numpy as jnp

    from jit_jax.model import sharding

    mesh = sharding.make_mesh((-1, 1, 1))
    sizes, loops = PRODUCTS[jax.default_backend()]

    def matrix(rows, n, place):
        # Random, as a chip draws less power, and runs faster, on numbers that are all alike.
        return jax.jit(
            lambda: (jax.random.normal(jax.random.key(0), (rows, n)) / n**0.5).astype(dtype),
            out_shardings=place,
        )()

    def chain(x, w, sums):
        return jax.lax.fori_loop(
            0, loops, lambda i, x: jnp.dot(x, w, preferred_element_type=sums).astype(dtype), x
        )

    best = 0.0
    for n, sums in itertools.product(sizes, {dtype, 'float32'}):
        x, w = (
            matrix(mesh.size * n, n, sharding.batch_sharding(mesh)),
            matrix(n, n, sharding.replicated(mesh)),
        )
        run = jax.jit(chain, static_argnums=2).lower(x, w, sums).compile()
        run(x, w).block_until_ready()
        (seconds,) = alternate(
            {'': lambda run=run, x=x, w=w: run(x, w).block_until_ready()}, 3
        ).values()
        best = max(best, loops * 2 * mesh.size * n**3 / min(seconds))
    return best


def report(programs: dict[str, Program], rounds: int):
    """Measures and prints: one Markdown table, and what it was measured against."""
    import jax

    ceilings = {program.dtype: ceiling(program.dtype) for program in programs.values()}
    seconds = alternate({name: program.run for name, program in programs.items()}, rounds)
    for dtype, before in ceilings.items():  # the machine may be calmer by now
        ceilings[dtype] = max(before, ceiling(dtype))
    speeds = {
        name: [program.images / s for s in seconds[name]] for name, program in programs.items()
    }
    first = next(iter(speeds))
    columns = ['row', 'images/s', f'× {first}', 'TFLOP/s', 'of ceiling', 'GiB', 'compile s']
    predicted = any(program.least for program in programs.values())
    columns += ['of roofline'] if predicted else []
    print(f'\n| {" | ".join(columns)} |\n|{"---|" * len(columns)}')
    for name, p in programs.items():
        flops = p.flops * statistics.median(speeds[name])
        ratio = [a / b for a, b in zip(speeds[name], speeds[first], strict=True)]
        cells = [
            name,
            spread(speeds[name]),
            spread(ratio),
            number(flops / 1e12),
            f'{flops / ceilings[p.dtype]:.1%}',
            number(p.memory / 2**30),
            number(p.compiling),
        ]
        if predicted:  # the roofline's time over the measured one: 100% is as fast as can be
            cells.append(f'{p.least / statistics.median(seconds[name]):.1%}')
        print(f'| {" | ".join(cells)} |')
    print(
        f'\nMedians (and quartiles) of {rounds} alternating rounds. TFLOP/s counts the matrix '
        'products of the program, by formula.'
    )
    for dtype, best in ceilings.items():
        print(
            f'Ceiling, the best product of square matrices in {dtype} before or after: '
            f'{number(best / 1e12)} TFLOP/s.'
        )
    peak = (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
    if peak:
        print(f'The device itself saw a peak of {number(peak / 2**30)} GiB over all rows.')


def title(args, variant: str, what: str) -> str:
    """The first line; `variant` is the name of the size, which --depth has taken apart."""
    import jax

    shortened, m = f', only {args.depth} of its blocks,' if args.depth else '', args.config.model
    device = f'{jax.device_count()} × {jax.devices()[0].device_kind} ({jax.default_backend()})'
    size = f'{m.image_size}×{m.image_size}'
    return f'JiT-{variant}{shortened} at {size}, {what}, on {device}, jax {jax.__version__}'
