"""A config's train step or sampler, compiled for devices that need not be here, and what that says.

Nothing is computed: arrays are shapes, and programs are compiled and read, not run.
"""

import math
import time
from dataclasses import dataclass, field

import jax
import numpy as np
from ml_collections import ConfigDict

from jit_jax.data import condition_names
from jit_jax.diffusion import generate
from jit_jax.diffusion.conditions import from_uint8
from jit_jax.hardware.analysis import Analysis, analyse
from jit_jax.hardware.roofline import ASSUMES
from jit_jax.hardware.topologies import Target
from jit_jax.model import sharding
from jit_jax.recipe import kinds
from jit_jax.recipe.build import Programs
from jit_jax.recipe.checks import PAIRED
from jit_jax.training import step

STEP, SAMPLER = 'train step', 'sampler'


@dataclass
class Report:
    """What a compiler said of a program. Bytes and operations are of one device."""

    program: str  # STEP or SAMPLER
    images: int  # of one run of it, over all devices
    formula: float  # operations in matrix products of one run, over all devices
    memory: dict[str, int] = field(default_factory=dict)  # kind → bytes
    limit: int = 0  # bytes that the device has; 0 where that is not known
    activations: int | None = None  # bytes kept for the backward pass, by their shapes
    estimate: float = 0.0  # the compiler's own, in seconds; ≤ 0 where it has none
    seconds: float = 0.0  # it took to compile
    problem: str = ''  # why it does not fit; '' when it does
    analysis: Analysis | None = None  # None where the compiler refused

    @property
    def total(self) -> int:
        """Bytes of memory in all."""
        return sum(self.memory.values())

    @property
    def state_is_too_large(self) -> bool:
        """Whether what a run keeps between steps does not fit, so that nothing else was tried."""
        return self.analysis is None and 0 < self.limit < self.total

    @property
    def sent(self) -> int:
        """Bytes of the results of all collectives."""
        if self.analysis is None:
            return 0
        return sum(sent.bytes for sent in self.analysis.collectives.values())


def as_dict(run: Programs, target: Target, report: Report) -> dict:
    """All of it, for JSON."""
    config, card = run.config, target.card
    return {
        'program': report.program,
        'jax': jax.__version__,
        'topology': target.name,
        'device': target.devices[0].device_kind,
        'devices': run.mesh.size,
        'mesh': dict(run.mesh.shape),
        'variant': config.model.variant,
        'image_size': config.model.image_size,
        'condition': config.condition.kind,
        'images': report.images,
        'remat': config.compute.remat,
        'accumulate': config.accumulate,
        'remarks': run.remarks,
        'memory': report.memory,
        'memory_limit': report.limit,
        'fits': not report.problem,
        'problem': report.problem,
        'activations_by_shapes': report.activations,
        'operations_by_formula': report.formula,
        'compile_seconds': report.seconds,
        'compiler_estimate_ms': 1e3 * report.estimate if report.estimate > 0 else None,
        'roofline_assumes': ASSUMES if card else None,
        **(report.analysis.as_dict() if report.analysis else {}),
    }


def compile_step(run: Programs, target: Target) -> Report:
    """Compiles the train step of `build.programs` for the devices of its mesh."""
    report = Report(STEP, run.config.batch_size, float(run.flops * run.config.batch_size))
    report.activations = activations(run)
    for name in ('params', 'ema', 'opt'):
        report.memory[name] = bytes_of_a_device(getattr(run.like, name))
    if run.frozen:
        report.memory['LPIPS'] = bytes_of_a_device(run.frozen)
    report.limit = _limit(target)
    if report.state_is_too_large:
        report.problem = f'{_takes(report, target)} for parameters, averages and optimizer alone.'
        return report
    began = time.perf_counter()
    batch, key = shapes_of_a_batch(run.config), shape_of_a_key()
    lowered = run.step.lower(run.like, batch, key, *run.frozen)
    names = ('batch', 'activations, gradients and temporaries', 'results beside the state')
    _compile(lowered, target, report, names)
    report.seconds = time.perf_counter() - began
    return report


def compile_sampler(run: Programs, target: Target) -> Report:
    """Compiles `diffusion.generate` as config.sample says, for config.sample.num images."""
    rows = sharding.whole_rows(run.config.sample.num, run.mesh)
    passes = float(rows * run.forward_flops * passes_of_the_network(run))
    report = Report(SAMPLER, rows, passes)
    began = time.perf_counter()
    lowered = lower_sampler(run, rows)
    report.limit = _limit(target)
    report.memory['weights'] = bytes_of_a_device(_weights(run))
    _compile(lowered, target, report, ('noise and condition', 'temporaries', 'images'))
    report.seconds = time.perf_counter() - began
    return report


def lower_sampler(run: Programs, rows: int) -> jax.stages.Lowered:
    """The sampler for so many rows, which all devices share evenly, traced and not yet compiled."""
    how, side = run.settings, run.config.model.image_size
    place = sharding.batch_sharding(run.mesh)
    noise = jax.ShapeDtypeStruct((rows, side, side, run.config.model.channels), np.float32)
    conditioning = jax.eval_shape(
        run.condition,
        jax.eval_shape(from_uint8, shapes_of_a_batch(run.config, rows)['image']),
        shapes_of_a_batch(run.config, rows),
        shape_of_a_key(),
    )
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), (noise, conditioning)
    )
    program = generate.sampling_program(
        run.model, run.diffusion, how.sampler, how.steps, how.t_eps, run.mesh, how.skip
    )
    guidance = generate.guidance_arguments(how.guidance, how.interval) if conditioning else ()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), guidance)
    return program.lower(_weights(run), *placed, *shapes)


def passes_of_the_network(run: Programs) -> int:
    """Of the conditional branch in one run of the sampler: Heun's method has two a step."""
    how = run.settings
    return 2 * how.steps - 1 if how.sampler == 'heun' else how.steps


def shapes_of_a_batch(config: ConfigDict, rows: int | None = None) -> dict:
    """A global batch as the data pipeline makes it, or one of `rows` rows."""
    rows, side = rows or config.batch_size, config.model.image_size
    image = jax.ShapeDtypeStruct((rows, side, side, config.model.channels), np.uint8)
    batch = {'image': image, 'label': jax.ShapeDtypeStruct((rows,), np.int32)}
    if config.data.kind in PAIRED:
        for name in condition_names(config.condition.paired):
            batch[name] = image
    if kinds.text_tokens(config):
        batch |= kinds.shapes_of_a_text(config, rows)
    return batch


def shape_of_a_key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))


def bytes_of_a_device(shapes) -> int:
    """Of arrays (any tree of shapes with shardings), the part in one device's own memory."""
    total = 0
    for x in jax.tree.leaves(shapes):
        if x.sharding.memory_kind != 'pinned_host':
            total += math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return total


def activations(run: Programs) -> int:
    """Bytes a device that the forward pass keeps for the backward pass, by their shapes.

    The compiler may do with less. What grows with the batch, found from two of them, so that
    parameters and constants do not count.
    """
    split = run.mesh.shape['data'] * run.mesh.shape['fsdp']
    rows = run.config.batch_size // run.config.accumulate // split
    return (_kept(run, 2 * split) - _kept(run, split)) * rows // split


def _kept(run: Programs, rows: int) -> int:
    """Bytes that the gradient of the loss of so many rows keeps, parameters and all."""

    def draw(batch, key):
        return step.draw(batch, key, run.recipe)

    def backward(params, drawn, key, *frozen):
        def loss(params):
            return step.batch_loss(params, drawn, key, run.recipe, *frozen)[0]

        return jax.vjp(loss, params)[1]

    key = shape_of_a_key()
    drawn = jax.eval_shape(draw, shapes_of_a_batch(run.config, rows), key)
    with jax.sharding.use_abstract_mesh(run.mesh.abstract_mesh):
        kept = jax.eval_shape(backward, run.like.params, drawn, key, *run.frozen)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))


def _weights(run: Programs):
    """What samples are drawn with: the first average, in the device's memory."""
    first = next(iter(run.like.ema.values()))
    places = sharding.shardings(run.like.params, run.mesh)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), first, places
    )


def _compile(lowered, target: Target, report: Report, names: tuple[str, str, str]) -> None:
    """Compiles, and adds to a report that has the bytes of what stays on the device.

    names: of the other arguments, of temporaries, and of results that are not written over
    arguments.
    """
    try:
        program = lowered.compile(compiler_options=target.options or None)
    except jax.errors.JaxRuntimeError as refused:
        if 'RESOURCE_EXHAUSTED' not in str(refused):
            raise
        said = str(refused).split(' HLO module')[0].split(': ', 2)[-1]
        report.problem = ' '.join(said.split())
        return
    memory, cost = program.memory_analysis(), program.cost_analysis() or {}
    arguments, temporaries, results = names
    report.memory[arguments] = memory.argument_size_in_bytes - report.total
    report.memory[temporaries] = memory.temp_size_in_bytes
    report.memory[results] = memory.output_size_in_bytes - memory.alias_size_in_bytes
    report.memory['program'] = memory.generated_code_size_in_bytes
    report.estimate = cost.get('optimal_seconds', 0.0)
    report.analysis = analyse(program.as_text(), target.card)
    if report.limit and report.total > report.limit:  # a GPU's compiler does not refuse
        report.problem = f'{_takes(report, target)}.'


def _takes(report: Report, target: Target) -> str:
    total, limit = (f'{size / 2**30:.1f} GiB' for size in (report.total, report.limit))
    return f'it takes {total} of the {limit} that {target.devices[0].device_kind} has'


def _limit(target: Target) -> int:
    """Bytes of memory that one device has, or 0."""
    if target.card is not None:
        return target.card.memory
    return (target.devices[0].memory_stats() or {}).get('bytes_limit', 0)
