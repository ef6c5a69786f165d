"""Compiles the train step or the sampler for devices that need not be here: what fits, how fast.

examples:
  jit-jax compile --config=uncond:imagenet256_l16 --topology=h100:8
  jit-jax compile --config=uncond:imagenet256_l16 --topology=v5e:16x16 --json=l16.json
  jit-jax compile --config=uncond:imagenet256_b16 --topology=l4 --sample
  jit-jax compile --config=uncond                     # the devices of this machine
  jit-jax compile --all                               # every published size on pods and cards

It prints memory by kind, the bytes that kernels move, operations, collectives, the kernels that
move the most with the line of code they come from, and a roofline: what the card would take at
least. GPUs need `pip install 'jax[cuda12]'`, TPU pods `pip install 'jit_jax[tpu]'`, neither a
device.
"""

import argparse
import json

from jit_jax.commands import command_line

GIB = 2**30


def define_flags(parser: command_line.Parser) -> None:
    parser.define_config('uncond, cond or a file of your own, with :PRESET after it')
    parser.add_argument(
        '--topology',
        default='',
        help='GPUs such as h100:8, l4 or t4, or a TPU pod such as v5e:16x16; the devices of this '
        'machine by default',
    )
    parser.add_argument(
        '--sample',
        action='store_true',
        help='the sampler, for config.sample.num images, instead of the train step',
    )
    parser.add_argument('--json', metavar='FILE', help='where to write all numbers as JSON as well')
    parser.add_argument(
        '--all',
        action='store_true',
        help='every published size at 256×256 on pods and cards, as one table',
    )
    parser.add_argument('--sizes', default='blhg', help='with --all, which sizes: letters of blhg')


def main(args: argparse.Namespace) -> None:
    from jit_jax.hardware import topologies

    if args.topology or args.all:
        topologies.set_environment()
    if args.all:
        from jit_jax.commands import scaling

        for line in scaling.table(args.sizes):
            print(line, flush=True)
        return
    example = 'says what to compile, for example --config=uncond:imagenet256_l16.'
    command_line.required(args, 'config', example)
    from jit_jax.commands import lowering
    from jit_jax.output import destination
    from jit_jax.recipe import build, checks

    checks.check(args.config)
    if args.json:
        destination.check_writable(args.json, '--json')
    target = topologies.target(args.topology)
    run = build.programs(args.config, build.mesh(args.config, target.devices))
    print(f'Compiling for {target.name or "the devices of this machine"} …', flush=True)
    if args.sample:
        report = lowering.compile_sampler(run, target)
    else:
        report = lowering.compile_step(run, target)
    print(page(run, target, report))
    if args.json:
        write_json(args.json, run, target, report)
    raise SystemExit(1 if report.problem else 0)


def write_json(path: str, run, target, report) -> None:
    """All numbers of a report as one JSON object. Raises UserError where it cannot be written."""
    from jit_jax.commands.lowering import as_dict
    from jit_jax.output import destination, files

    with destination.writing(path, '--json'):
        files.write_whole(path, json.dumps(as_dict(run, target, report), indent=1).encode())


def page(run, target, report) -> str:
    """A report as Markdown: what was compiled, a table of one device's share, and a verdict."""
    config, mesh = run.config, dict(run.mesh.shape)
    size = config.model.image_size
    title = (
        f'{report.program.capitalize()} of JiT-{config.model.variant} at {size}×{size}, condition '
        f'{config.condition.kind}, {report.images} images'
    )
    how = (
        f'{run.mesh.size} × {target.devices[0].device_kind} as {mesh}, remat '
        f'{config.compute.remat}, accumulate {config.accumulate}; {run.remarks}'
    )
    rows = [*memory_rows(report), *work_rows(run, target, report)]
    lines = [title, how, '', '| of one device | |', '|---|---|']
    lines += [f'| {left} | {right} |' for left, right in rows]
    if report.analysis:
        lines += ['', *kinds_table(report.analysis), '', *largest_table(report.analysis), '']
        lines += roofline_lines(report.analysis)
    return '\n'.join([*lines, '', verdict(run, report)])


def memory_rows(report) -> list[tuple[str, str]]:
    """Memory by kind, against what the device has."""
    rows = [(kind, f'{size / GIB:.2f} GiB') for kind, size in report.memory.items()]
    if not report.problem or report.analysis:
        limit = f' of {report.limit / GIB:.1f}' if report.limit else ''
        rows.append(('in all', f'{report.total / GIB:.2f} GiB{limit}'))
    if report.activations is not None:
        kept = f'{report.activations / GIB:.2f} GiB'
        rows.append(('of it, kept for the backward pass (by shapes)', kept))
    return rows


def work_rows(run, target, report) -> list[tuple[str, str]]:
    """Bytes, operations, collectives and times."""
    from jit_jax.commands.lowering import STEP

    found, card, rows = report.analysis, target.card, []
    formula = report.formula / run.mesh.size
    if found:
        rows.append(('bytes moved in its memory', f'{found.bytes / 1e9:.1f} GB'))
        rows.append(('kernels', f'{found.kernels}'))
        for dtype, products in found.products.items():
            done = f'{products.operations / 1e12:.3g} TFLOP in {products.kernels} kernels'
            rows.append((f'products in {dtype}', done))
        rows.append(('attention', attention(run, found)))
        for kind, sent in found.collectives.items():
            rows.append((kind, f'{sent.count}, {sent.bytes / GIB:.3g} GiB in all'))
    if report.sent and card:
        links = f'{report.sent / card.links * 1e3:.1f} ms, if nothing else runs'
        rows.append(('at the rate of its links', links))
    rows.append(('products by formula', f'{formula / 1e12:.3g} TFLOP'))
    if run.frozen and report.program == STEP:
        share = run.perceptual_flops * report.images / run.mesh.size
        rows.append(('of it, the perceptual loss', f'{share / 1e12:.3g} TFLOP'))
    if card:
        peak = formula / max(card.peak.values()) * 1e3
        rows.append(("at the device's peak, at half of it", f'{peak:.1f} ms, {2 * peak:.1f} ms'))
    estimate = f'{report.estimate * 1e3:.0f} ms' if report.estimate > 0 else 'none'
    rows.append(("the compiler's own estimate", estimate))
    rows.append(('compiled in', f'{report.seconds:.0f} s'))
    return rows


def attention(run, found) -> str:
    """The kernels of fused attention in the program, or that there is none."""
    if not found.attention:
        return f'{run.attention}: no fused kernel'
    return ', '.join(f'{name} ×{times}' for name, times in found.attention.items())


def kinds_table(found) -> list[str]:
    """What kernels move and take by what they do."""
    from jit_jax.hardware.kernels import KINDS

    lines = ['| kernels | GB moved | how many | roofline ms |', '|---|---|---|---|']
    for name, kind in found.kinds.items():
        ms = '–' if kind.ms is None else f'{kind.ms:.2f}'
        words = KINDS[name] if name in KINDS else name
        lines.append(f'| {words} | {kind.bytes / 1e9:.2f} | {kind.kernels} | {ms} |')
    return lines


def largest_table(found) -> list[str]:
    """The kernels that move the most, and where they come from."""
    lines = ['| largest kernels | GB moved | times | from |', '|---|---|---|---|']
    for kernel in found.largest:
        moved = f'{kernel.bytes / 1e9:.2f}'
        lines.append(
            f'| {kernel.name} ({kernel.kind}) | {moved} | {kernel.times} | {kernel.source or "–"} |'
        )
    return lines


def roofline_lines(found) -> list[str]:
    """The roofline in words; none for a device that is not described."""
    from jit_jax.hardware.roofline import ASSUMES

    if found.roofline_ms is None:
        return ['No roofline: no file of jit_jax/hardware/cards describes this device.']
    share = f'{found.share_of_products:.0%}'
    return [
        f'Roofline: {found.roofline_ms:.1f} ms, {share} of it in kernels with matrix products, '
        f'where {ASSUMES}.'
    ]


def verdict(run, report) -> str:
    if not report.problem:
        return 'Fits.'
    return f'Does not fit: {report.problem} Try {advice(run, report)}.'


def advice(run, report=None) -> str:
    """The next thing to try for memory, as a flag where there is one."""
    from jit_jax.commands.lowering import SAMPLER
    from jit_jax.recipe import build

    if report is not None and report.program == SAMPLER:
        return f'--config.sample.num={max(run.config.sample.num // 2, 1)}'
    for key, value in build.less_memory(run.config, run.mesh).items():
        return f'--config.{key}={value}'
    return 'more devices'
