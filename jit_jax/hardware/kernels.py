"""The kernels that a compiled program starts, loops counted, and what each of them moves."""

from collections.abc import Iterator
from dataclasses import dataclass

from jit_jax.hardware import fusions, trip_counts
from jit_jax.hardware.hlo import Computation, Instruction, Program
from jit_jax.hardware.matrix_products import Product, attention_kernel, products

COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
COLLECTIVES += ('ragged-all-to-all', 'collective-broadcast')

# Names, not work: nothing runs for them.
FREE = {'tuple', 'get-tuple-element', 'bitcast', 'parameter', 'constant', 'after-all'}
FREE |= {'partition-id', 'replica-id', 'opt-barrier', 'add-dependency', 'domain'}
FREE_CALLS = {'AllocateBuffer', 'ConcatBitcast', 'AsyncCollectiveStart', 'AsyncCollectiveDone'}

COPIES = {'copy', 'copy-start', 'slice', 'slice-start', 'dynamic-slice', 'dynamic-slice-start'}
COPIES |= {'dynamic-update-slice', 'dynamic-update-slice-start', 'transpose', 'concatenate', 'pad'}
COPIES |= {'reshape'}
ROWS = ('gather', 'scatter')
# In words, for tables.
KINDS = {
    'products': 'matrix products, with what is fused into them',
    'attention': 'fused attention',
    'elementwise': 'elementwise',
    'reductions': 'reductions, with what is fused into them',
    'stacks': 'slices into and out of stacked arrays',
    'fills': 'arrays filled with one number',
    'rows': 'gathers and scatters',
    'copies': 'copies and transposes',
    'collectives': 'collectives',
}

FILLS = ('broadcast', 'iota')
REDUCTIONS = ('reduce', 'reduce-window', 'sort')
NO_INPUT = ('iota', 'rng-bit-generator')


@dataclass(frozen=True)
class Kernel:
    """One kernel of a program. Bytes are of one run, in the device's main memory."""

    name: str  # as the program's text has it
    kind: str  # one of KINDS, or what a custom call calls
    call: str  # what a custom call calls, '' for anything else
    times: int  # how often it runs in one run of the program
    read: float
    written: float
    products: tuple[Product, ...]
    source: str  # the line of our code that it comes from, or ''
    path: str  # where JAX traced it

    @property
    def bytes(self) -> float:
        return self.read + self.written

    @property
    def moved(self) -> float:
        """Bytes of all its runs."""
        return self.bytes * self.times


def kernels(program: Program) -> list[Kernel]:
    """All kernels of a program, in order. Of a conditional, the branch that moves most counts."""
    return _kernels(program, program.entry, 1)


def collectives(program: Program) -> dict[str, tuple[int, int]]:
    """What a program sends: {kind: (count, bytes of the results)}, loops counted.

    A collective that runs beside others appears in several fusions under one channel: it counts
    once.
    """
    found: dict[str, tuple[int, int]] = {}
    seen = set()
    for instruction, times in _every(program, program.entry, 1):
        kind = instruction.op.removesuffix('-start')
        channel = instruction.attribute(r'channel_id=(\d+)')
        if kind not in COLLECTIVES or (channel and channel in seen):
            continue
        seen.add(channel)
        count, total = found.get(kind, (0, 0))
        found[kind] = count + times, total + times * result_bytes(instruction)
    return found


def result_bytes(collective: Instruction) -> int:
    """Bytes of what a collective returns, wherever it lies; its start names its operands too."""
    arrays, count = collective.shapes, len(collective.operands)
    if collective.op.endswith('-start') and len(arrays) > count:
        arrays = arrays[count : 2 * count]
    return sum(array.dense_bytes for array in arrays)


def _kernels(program: Program, computation: Computation, times: int) -> list[Kernel]:
    found = []
    for instruction in computation.values():
        if instruction.op == 'while':
            _, body = trip_counts.condition_and_body(program, instruction)
            found += _kernels(program, body, times * trip_counts.turns(program, instruction))
        elif instruction.op == 'conditional':
            branches = (program.computations[name] for name in _branches(instruction))
            ways = [_kernels(program, branch, times) for branch in branches]
            found += max(ways, key=_moved)
        elif instruction.op in ('call', 'async-start') and instruction.called:
            found += _kernels(program, program.computations[instruction.called], times)
        elif _runs(instruction):
            found.append(_kernel(program, instruction, computation, times))
    return found


def _moved(found: list[Kernel]) -> float:
    return sum(kernel.moved for kernel in found)


def _every(
    program: Program, computation: Computation, times: int
) -> Iterator[tuple[Instruction, int]]:
    """Every instruction that a computation runs, inside fusions and branches too, and how often."""
    for instruction in computation.values():
        yield instruction, times
        if instruction.op == 'while':
            _, body = trip_counts.condition_and_body(program, instruction)
            yield from _every(program, body, times * trip_counts.turns(program, instruction))
        names = _branches(instruction) if instruction.op == 'conditional' else []
        if instruction.called in program.computations:
            names.append(instruction.called)
        for name in names:
            yield from _every(program, program.computations[name], times)


def _branches(conditional: Instruction) -> list[str]:
    listed = conditional.attribute(r'branch_computations=\{([^}]*)\}')
    if listed:
        return [name.strip(' %') for name in listed.split(',')]
    names = (conditional.attribute(rf'{way}_computation=%?([\w.\-]+)') for way in ('true', 'false'))
    return [name for name in names if name]


def _runs(instruction: Instruction) -> bool:
    """Whether a kernel starts for it; what ends an asynchronous one does not count again."""
    if instruction.op in FREE or instruction.op.endswith(('-done', '-update')):
        return False
    return instruction.target not in FREE_CALLS


def _kernel(program: Program, c: Instruction, caller: Computation, times: int) -> Kernel:
    read, written = _traffic(program, c, caller)
    multiplied = tuple(products(program, c, caller))
    return Kernel(
        name=c.name,
        kind=_kind(program, c, multiplied),
        call=attention_kernel(c) or c.target,
        times=times,
        read=read,
        written=written,
        products=multiplied,
        source=_source(program, c, caller),
        path=c.path,
    )


def _source(program: Program, c: Instruction, caller: Computation) -> str:
    """The line of our code that a kernel comes from, of a fusion the last one that has a line.

    For what the compiler added without saying where: the line of what uses it; or ''.
    """
    body = program.computations[c.called].values() if c.op == 'fusion' else ()
    for instruction in (c, *reversed(body)):
        source = program.source(instruction)
        if source:
            return source
    return _source_of_user(program, c.name, caller)


def _source_of_user(program: Program, name: str, caller: Computation) -> str:
    source = ''
    while not source:
        user = next((other for other in caller.values() if name in other.operands), None)
        if user is None:
            return ''
        name, source = user.name, program.source(user)
    return f'for {source}'


def _kind(program: Program, c: Instruction, multiplied: tuple) -> str:
    """What a kernel does, in a word."""
    if c.op.removesuffix('-start') in COLLECTIVES:
        return 'collectives'
    if attention_kernel(c):
        return 'attention'
    if multiplied:
        return 'products'
    if c.op in COPIES:
        return 'copies'
    if c.op in ROWS:
        return 'rows'
    if c.op in FILLS:
        return 'fills'
    if c.op in REDUCTIONS:
        return 'reductions'
    if c.op != 'fusion':
        return c.target or 'elementwise'
    return _kind_of_fusion(program.computations[c.called])


def _kind_of_fusion(body: Computation) -> str:
    """Fills write one number everywhere; stacks put arrays into larger ones, or take them out."""
    ops = {c.op for c in body.values()} - FREE
    if ops <= set(FILLS):
        return 'fills'
    if 'dynamic-update-slice' in ops or ops <= {'dynamic-slice', 'slice', 'convert', 'copy'}:
        return 'stacks'
    if not ops.isdisjoint(ROWS):
        return 'rows'
    if not ops.isdisjoint(REDUCTIONS):
        return 'reductions'
    return 'copies' if ops <= {'transpose', 'copy', 'concatenate', 'pad'} else 'elementwise'


def _traffic(program: Program, c: Instruction, caller: Computation) -> tuple[float, float]:
    """(bytes read, bytes written) of one run of a kernel."""
    operands = [caller[name] for name in dict.fromkeys(c.operands) if name in caller]
    if c.op == 'fusion':
        return fusions.traffic(program, c, caller)
    if c.op == 'dynamic-update-slice':
        return (float(operands[1].bytes),) * 2
    if c.op in ('slice', 'dynamic-slice', 'gather'):
        rest = sum(operand.traffic for operand in operands[1:])
        return fusions.window_bytes(c, operands[0].shapes[0]) + rest, float(c.traffic)
    if c.op == 'scatter':
        written = fusions.scatter_bytes(program, c, operands[-1])
        return sum(operand.traffic for operand in operands[1:]), written
    if c.op.endswith('-start'):
        return _traffic_of_start(c, operands)
    read = 0 if c.op in NO_INPUT else sum(operand.traffic for operand in operands)
    return float(read), float(c.traffic - _workspace(c))


def _traffic_of_start(c: Instruction, operands: list[Instruction]) -> tuple[float, float]:
    """An asynchronous copy or collective, whose result names its operands too."""
    if c.op == 'copy-start':
        target, source, *_ = c.shapes
        return float(source.traffic), float(target.traffic)
    if c.op == 'slice-start' or c.op == 'dynamic-slice-start':
        source, target = c.shapes[0], c.shapes[1]
        return float(0 if source.space else target.dense_bytes), float(target.traffic)
    read = sum(operand.traffic for operand in operands)
    if c.op.removesuffix('-start') in COLLECTIVES:
        return float(read), float(result_bytes(c))
    return float(read), float(c.traffic)


def _workspace(c: Instruction) -> int:
    """The last result of a library's kernel is memory it may use: reserved, not written."""
    if not c.target.startswith(('__cublas', '__cudnn')):
        return 0
    return sum(shape.traffic for shape in c.shapes[-1:] if shape.dtype in ('s8', 'u8'))
