"""Compiles the train step for devices that need not be here, and says whether it fits before anybody queues for them.

examples:
  jit-jax compile --config=uncond:imagenet256_l16 --topology=v5e:16x16
  jit-jax compile --config=uncond                     # the devices of this machine
  jit-jax compile --all                               # every published size on TPU pods

A TPU pod needs only `pip install 'jit_jax[tpu]'`, no TPU: libtpu compiles, and refuses what does not fit.
"""

import argparse
import importlib.util
import math
import os
import re
import time
from dataclasses import dataclass, field

from jit_jax.commands import command_line

# Chips by generation: memory in GiB, bfloat16 TFLOP/s, and the links of a chip, both ways, in GB/s (vendor's tables).
CHIPS = {'v4': (32, 275, 300), 'v5e': (16, 197, 200), 'v5p': (95, 459, 600), 'v6e': (32, 918, 448)}
PODS = ('v4:4x4x4', 'v5e:4x4', 'v5e:16x16', 'v5p:4x4x4', 'v6e:16x16')
GIB = 2**30
WITHOUT_A_TPU = {  # libtpu must not look for one, nor mind other compilations beside this one
    'JAX_PLATFORMS': 'cpu',
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


@dataclass
class Report:
    """What the compiler said of a step. Bytes are of one chip; `problem` is its refusal, '' when it fits."""

    bytes: dict = field(default_factory=dict)
    collectives: dict = field(
        default_factory=dict
    )  # kind → (how often in a step, bytes of their results)
    estimate: float = 0.0  # the compiler's own, in seconds; ≤ 0 where it has none
    activations: int = 0  # bytes, of the temporaries or of what did not fit
    seconds: float = 0.0  # it took to compile
    problem: str = ''

    @property
    def sent(self) -> int:
        """Bytes of all collectives of a step."""
        return sum(size for _, size in self.collectives.values())


def devices(topology: str | None) -> list:
    """The devices of a topology. Raises ValueError, in one sentence, for one that is not known or not here."""
    import jax

    kind, _, shape = (topology or '').partition(':')
    if kind in CHIPS:
        from jax.experimental import topologies

        if importlib.util.find_spec('libtpu') is None:
            raise ValueError("--topology of a TPU needs libtpu: pip install 'jit_jax[tpu]'.")
        try:  # a v4 chip has two cores that work as one device
            more = {'chip_config_name': 'megacore'} if kind == 'v4' else {}
            return list(topologies.get_topology_desc(topology, platform='tpu', **more).devices)
        except Exception as problem:
            raise ValueError(
                f'--topology={topology} is not a pod that libtpu knows; try one like {", ".join(PODS)}.'
            ) from problem
    if kind and (kind != jax.default_backend() or shape != str(jax.device_count())):
        here = f'{jax.default_backend()}:{jax.device_count()}'
        raise ValueError(
            f'--topology={topology}: this machine has {here}, and only TPU pods ({", ".join(CHIPS)}) compile without one.'
        )
    return jax.devices()


def shapes_of_a_batch(config) -> dict:
    """A global batch as the data pipeline makes it."""
    import jax
    import numpy as np

    rows, side = config.batch_size, config.model.image_size
    image = jax.ShapeDtypeStruct((rows, side, side, config.model.channels), np.uint8)
    return {'image': image, 'label': jax.ShapeDtypeStruct((rows,), np.int32)} | (
        {'cond': image} if config.data.kind == 'pairs' else {}
    )


def compile_step(run) -> Report:
    """Compiles the train step of `build.programs` for the devices of its mesh."""
    import jax

    report, began = Report(activations=activations(run)), time.perf_counter()
    for name in ('params', 'ema', 'opt'):
        leaves = jax.tree.leaves(getattr(run.like, name))
        report.bytes[name] = sum(
            math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
            for x in leaves
            if x.sharding.memory_kind != 'pinned_host'
        )
    lowered = run.step.lower(
        run.like, shapes_of_a_batch(run.config), jax.eval_shape(lambda: jax.random.key(0))
    )
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as refused:
        if 'RESOURCE_EXHAUSTED' not in str(refused):
            raise
        report.problem = ' '.join(str(refused).split(' HLO module')[0].split(': ', 2)[-1].split())
    else:
        memory, cost = program.memory_analysis(), program.cost_analysis() or {}
        report.bytes['batch'] = memory.argument_size_in_bytes - sum(report.bytes.values())
        report.bytes['activations, gradients and temporaries'] = memory.temp_size_in_bytes
        report.bytes['results beside the state'] = (
            memory.output_size_in_bytes - memory.alias_size_in_bytes
        )
        report.bytes['program'] = memory.generated_code_size_in_bytes
        report.collectives = collectives(program.as_text())
        report.estimate = cost.get('optimal_seconds', 0.0)
    report.seconds = time.perf_counter() - began
    return report


def activations(run) -> int:
    """Bytes a chip that the forward pass keeps for the backward pass, by their shapes: the compiler may do with less.

    What grows with the batch, found from two of them, so that parameters and constants do not count.
    """
    import jax

    from jit_jax.training import step

    c = run.config
    split = run.mesh.shape['data'] * run.mesh.shape['fsdp']

    def kept(rows: int) -> int:
        batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), shapes_of_a_batch(c)
        )
        key = jax.eval_shape(lambda: jax.random.key(0))
        drawn = jax.eval_shape(lambda batch, key: step.draw(batch, key, run.recipe), batch, key)
        loss = lambda p, drawn, key: jax.vjp(
            lambda p: step.batch_loss(p, drawn, key, run.recipe), p
        )[1]
        with jax.sharding.use_abstract_mesh(run.mesh.abstract_mesh):
            return sum(
                x.size * x.dtype.itemsize
                for x in jax.tree.leaves(jax.eval_shape(loss, run.like.params, drawn, key))
            )

    return (kept(2 * split) - kept(split)) * (c.batch_size // c.accumulate // split) // split


_SHAPE = re.compile(r'\b(?:pred|[a-z]+(\d+))\w*\[([\d,]*)\]')  # bits and dimensions
_KINDS = 'all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute'


def collectives(hlo: str) -> dict[str, tuple[int, int]]:
    """What a compiled program sends: {kind: (count, bytes of the results)} in one run, loops counted as often as they turn.

    A collective that runs asynchronously appears in several fusions under one channel; it counts once.
    """
    _, *parts = re.split(r'^(?:ENTRY )?%([\w.-]+) \(', hlo, flags=re.M)
    bodies = dict(zip(parts[::2], parts[1::2], strict=True))
    found, seen = {}, set()

    def walk(name: str, times: int):
        for line in bodies[name].splitlines():
            if loop := re.search(r' while\(.*condition=%([\w.-]+), body=%([\w.-]+)', line):
                walk(loop[2], times * turns(bodies[loop[1]], bodies[loop[2]]))
                continue
            sent = re.search(rf' ({_KINDS})(?:-start)?\(.*channel_id=(\d+)', line)
            if sent and sent[2] not in seen:
                seen.add(sent[2])
                bits, dims = _SHAPE.search(line.partition(' = ')[2]).groups()
                size = math.prod(int(n) for n in dims.split(',') if n) * int(bits or 8) // 8
                count, total = found.get(sent[1], (0, 0))
                found[sent[1]] = (count + times, total + times * size)
            for called in re.findall(r'(?:calls|to_apply)=%([\w.-]+)', line):
                walk(called, times)

    walk(re.search(r'^ENTRY %([\w.-]+)', hlo, re.M)[1], 1)
    return found


def turns(condition: str, body: str) -> int:
    """How often a loop `counter < constant` turns; the body adds 1 to the counter, or 2 where the compiler unrolled it."""
    constants = lambda text: {
        name: int(value) for name, value in re.findall(r'%([\w.-]+) = \S+ constant\((\d+)\)', text)
    }
    index = re.search(r'get-tuple-element\(.*?index=(\d+)', condition)
    counter = index and re.search(
        rf'%([\w.-]+) = \S+ get-tuple-element\([^)]*\), index={index[1]}\b', body
    )
    known, limits = constants(body), constants(condition).values()
    added = (
        [
            known.get(name, 1)
            for name in re.findall(rf' add\(%{re.escape(counter[1])}, %([\w.-]+)\)', body)
        ]
        if counter
        else []
    )
    return max(limits, default=1) // max(min(max(added, default=1), 2), 1)


def chip(run) -> tuple[str, float, float, float]:
    """Its name, memory in bytes, bfloat16 FLOP/s and link bytes/s, from CHIPS; zeros where the table has none."""
    device = run.mesh.devices.flat[0]
    kinds = {'TPU v4': 'v4', 'TPU v5 lite': 'v5e', 'TPU v5': 'v5p', 'TPU v6 lite': 'v6e'}
    if device.device_kind in kinds:
        memory, rate, links = CHIPS[kinds[device.device_kind]]
        return device.device_kind, memory * GIB, rate * 1e12, links * 1e9
    return device.device_kind, (device.memory_stats() or {}).get('bytes_limit', 0), 0.0, 0.0


def advice(run) -> str | None:
    """The next thing to try for memory, as a flag; None when all has been tried."""
    from jit_jax.recipe import build

    return next(
        (
            f'--config.{key}={value}'
            for key, value in build.less_memory(run.config, run.mesh).items()
        ),
        None,
    )


def table(run, report: Report) -> str:
    """The report as lines of markdown."""
    c, (name, memory, rate, links) = run.config, chip(run)
    flops = run.flops * c.batch_size / run.mesh.size
    title = f'JiT-{c.model.variant} at {c.model.image_size}×{c.model.image_size}, condition {c.condition.kind}, batch {c.batch_size}'
    how = f'{run.mesh.size} × {name} as {dict(run.mesh.shape)}, remat {c.compute.remat}, accumulate {c.accumulate}; {run.remarks}'
    rows = [(kind, f'{size / GIB:.2f} GiB') for kind, size in report.bytes.items()]
    if not report.problem:
        rows += [
            (
                'in all',
                f'{sum(report.bytes.values()) / GIB:.2f} GiB'
                + (f' of {memory / GIB:.0f}' if memory else ''),
            )
        ]
    rows += [
        ('of it, kept for the backward pass (by shapes)', f'{report.activations / GIB:.2f} GiB')
    ]
    rows += [
        (f'{kind} a step', f'{count} of {size / GIB:.2f} GiB in all')
        for kind, (count, size) in report.collectives.items()
    ]
    if links:
        rows += [
            (
                'at the rate of its links',
                f'{report.sent / links * 1e3:.1f} ms, if nothing else runs',
            )
        ]
    rows += [('products of a step (formula)', f'{flops / 1e12:.2f} TFLOP')]
    if rate:
        rows += [
            (
                "at the chip's peak, at half of it",
                f'{flops / rate * 1e3:.0f} ms, {2 * flops / rate * 1e3:.0f} ms',
            )
        ]
    rows += [
        (
            "the compiler's own estimate",
            f'{report.estimate * 1e3:.0f} ms' if report.estimate > 0 else 'none',
        )
    ]
    rows += [('compiled in', f'{report.seconds:.0f} s')]
    lines = [
        title,
        how,
        '',
        '| of one chip | |',
        '|---|---|',
        *(f'| {left} | {right} |' for left, right in rows),
        '',
    ]
    verdict = (
        f'Does not fit: {report.problem} Try {advice(run) or "more chips"}.'
        if report.problem
        else 'Fits.'
    )
    return '\n'.join([*lines, verdict])


def published(topology: str, preset: str) -> tuple:
    """A published recipe on a pod, with as little rematerialisation as fits: (run, report)."""
    from jit_jax.configs import uncond
    from jit_jax.recipe import build

    config, pod = uncond.get_config(preset), devices(topology)
    config.mesh = (-1, min(16, len(pod)), 1)
    while True:
        run = build.programs(config, build.mesh(config, pod))
        report, less = compile_step(run), build.less_memory(config, run.mesh)
        if not report.problem or not less:
            return run, report
        config.update_from_flattened_dict(dict([*less.items()][:1]))


def line(topology: str, run, report: Report) -> str:
    """One row of the table of --all."""
    c, (_, memory, rate, links) = run.config, chip(run)
    flops = run.flops * c.batch_size / run.mesh.size
    days = 2 * flops / rate * c.steps / 86400
    mesh = '×'.join(str(n) for n in run.mesh.devices.shape)
    cells = [
        f'JiT-{c.model.variant}/{run.model.patch}',
        topology,
        mesh,
        c.compute.remat + f' ×{c.accumulate}' * (c.accumulate > 1),
        f'{sum(report.bytes.values()) / GIB:.1f} of {memory / GIB:.0f}',
        f'{flops / rate * 1e3:.0f}',
        f'{report.sent / links * 1e3:.0f}',
        f'{days:.1f}',
    ]
    return f'| {" | ".join(cells)} |'


def define_flags(parser: command_line.Parser) -> None:
    parser.define_config('uncond, cond or a file of your own, with :PRESET after it')
    parser.add_argument(
        '--topology',
        help='a TPU pod such as v5e:16x16, or gpu:8; the devices of this machine by default',
    )
    parser.add_argument(
        '--all',
        action='store_true',
        help='every published size at 256×256 on a pod of each kind, as one table',
    )


def main(args: argparse.Namespace) -> None:
    config, topology = args.config, args.topology
    if (topology or '').partition(':')[0] in CHIPS or args.all:
        os.environ.update(WITHOUT_A_TPU)  # no TPU is here: libtpu must not look for one
    from jit_jax.recipe import build, checks

    if args.all:
        print(
            '| size | pod | mesh | remat | GiB a chip | ms a step at peak | ms of links | days at half of peak |'
        )
        print('|---|---|---|---|---|---|---|---|')
        for variant in 'blhg':
            for pod in PODS:
                print(line(pod, *published(pod, f'imagenet256_{variant}16')), flush=True)
        return
    command_line.required(
        args, 'config', 'says what to compile, for example --config=uncond:imagenet256_l16.'
    )
    checks.check(config)
    run = build.programs(config, build.mesh(config, devices(topology)))
    print(
        f'Compiling for {topology or "the devices of this machine"}: a minute or two …', flush=True
    )
    report = compile_step(run)
    print(table(run, report))
    raise SystemExit(1 if report.problem else 0)
