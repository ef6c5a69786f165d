"""The bytes that a fused kernel moves: of every operand the part that its results need.

What is needed is followed back from the results, as XLA's own cost model does: through a slice
only the slice, through a gather only the rows, and a result that changes an operand in place is
written where it changes. Every needed element is read once and every result written once. That is
a lower bound: tiles that are read again and reductions that are split are not in it.
"""

from collections import defaultdict

from jit_jax.hardware.hlo import Computation, Instruction, Program, Shape

SECTOR = 32  # bytes: a GPU's memory comes in sectors of so many
SLICES = ('slice', 'dynamic-slice', 'gather')
WHOLE = ('dot', 'convolution', 'reduce-window', 'sort', 'custom-call')  # need all of an operand
ADDS = ('add', 'multiply', 'maximum', 'minimum')


def traffic(program: Program, fusion: Instruction, caller: Computation) -> tuple[float, float]:
    """(bytes read, bytes written) of a fusion instruction of the computation `caller`."""
    body = program.computations[fusion.called]
    results = _results(body)
    outer = fusion.shapes if len(fusion.shapes) == len(results) else [None] * len(results)
    written, in_place = 0.0, set()
    for result, shape in zip(results, outer, strict=True):
        writer = _behind_bitcasts(body, result)
        written += _bytes_written(program, body, result, writer, shape or result.shapes[0])
        if writer.op in ('dynamic-update-slice', 'scatter'):
            in_place.add(writer.name)
    need = needed(program, body, {r.name: float(r.elements) for r in results}, in_place)
    read = 0.0
    for place, name in enumerate(fusion.operands):
        size = caller[name].shapes[0]
        if size.elements and name in caller:
            share = min(need[place] / size.elements, 1.0)
            read += share * size.traffic
    return read, written


def needed(
    program: Program, body: Computation, want: dict[str, float], in_place=frozenset()
) -> dict[int, float]:
    """Elements of each parameter, by its number, that `want` elements of some instructions need.

    in_place: instructions whose first operand is not read, as they change it where it lies.
    """
    need, seen = defaultdict(float, want), set()
    parameters = defaultdict(float)
    for instruction in reversed(body.values()):
        wanted = min(need[instruction.name], instruction.elements)
        if instruction.op == 'parameter':
            parameters[int(instruction.arguments)] = wanted
        if not wanted or instruction.op in ('parameter', 'tuple'):
            continue
        shares = _shares(program, body, instruction, wanted, in_place=instruction.name in in_place)
        for place, (name, elements) in enumerate(zip(instruction.operands, shares, strict=True)):
            if place == 0 and instruction.op in SLICES:
                # Slices of one operand add up, each counted once; what is pointwise overlaps.
                key = name, instruction.op, instruction.operands[1:], _window_text(instruction)
                need[name] += 0 if key in seen else elements
                seen.add(key)
            else:
                need[name] = max(need[name], elements)
    return parameters


def window_bytes(instruction: Instruction, source: Shape) -> float:
    """Bytes that a slice, dynamic-slice or gather brings in from an operand in main memory."""
    if not source.elements:
        return 0.0
    touched = _touched(instruction, source, instruction.elements)
    return touched * source.traffic / source.elements


def scatter_bytes(program: Program, scatter: Instruction, update: Instruction) -> float:
    """Bytes that an in-place scatter writes, and reads where it adds to what is there."""
    shape = scatter.shapes[0]
    size = shape.bytes / max(shape.elements, 1)
    side_by_side = shape.layout[0] in scatter.numbers('scatter_dims_to_operand_dims')
    spread = max(1.0, SECTOR / size) if side_by_side and size else 1.0
    bytes_ = size * min(shape.elements, update.elements * spread)
    combined = program.computations.get(scatter.called or '', {}).values()
    return bytes_ * (2 if any(c.op in ADDS for c in combined) else 1)


def _results(body: Computation) -> list[Instruction]:
    """The arrays that a computation returns, tuples opened."""
    waiting = [next(c for c in body.values() if c.root)]
    found = []
    while waiting:
        result = waiting.pop(0)
        if result.op == 'tuple':
            waiting = [body[name] for name in result.operands] + waiting
        else:
            found.append(result)
    return found


def _behind_bitcasts(body: Computation, instruction: Instruction) -> Instruction:
    while instruction.op == 'bitcast' and instruction.operands[0] in body:
        instruction = body[instruction.operands[0]]
    return instruction


def _bytes_written(program, body, result: Instruction, writer: Instruction, shape: Shape) -> float:
    """Bytes of one result; `shape` says where it lies, `writer` makes it."""
    if shape.space or writer.op == 'parameter':
        return 0.0
    if writer.op == 'dynamic-update-slice':
        return float(body[writer.operands[1]].bytes)
    if writer.op == 'scatter':
        return scatter_bytes(program, writer, body[writer.operands[-1]])
    return float(shape.traffic)


def _shares(
    program: Program, body: Computation, c: Instruction, want: float, *, in_place: bool
) -> list[float]:
    """Elements of each operand of `c` that `want` elements of it need."""
    sizes = [body[name].elements if name in body else 0 for name in c.operands]
    share = want / max(c.elements, 1)
    if c.op in SLICES:
        first = _touched(c, body[c.operands[0]].shapes[0], want)
        return [first] + [min(size, want) for size in sizes[1:]]
    if c.op == 'dynamic-update-slice':
        kept = 0.0 if in_place else sizes[0] - sizes[1]
        return [kept] + [min(size, want) for size in sizes[1:]]
    if c.op == 'scatter':
        return [0.0 if in_place else sizes[0]] + [min(size, want) for size in sizes[1:]]
    if c.op == 'concatenate':
        return [size * share for size in sizes]
    if c.op == 'reduce':
        values = len(sizes) // 2  # then as many starting values
        return [size * min(share, 1.0) for size in sizes[:values]] + sizes[values:]
    if c.op == 'fusion':
        inner = program.computations[c.called]
        whole = {result.name: float(result.elements) for result in _results(inner)}
        need = needed(program, inner, whole)
        return [need[place] * min(share, 1.0) for place in range(len(sizes))]
    if c.op in WHOLE:
        return sizes
    return [min(size, want) for size in sizes]


def _touched(c: Instruction, source: Shape, want: float) -> float:
    """Elements of `source` that a slice brings in for `want` of its own, in whole sectors."""
    sizes, strides = _window(c, source)
    run = 1  # elements that lie side by side
    for dimension in source.layout:
        if strides[dimension] > 1:
            break
        run *= sizes[dimension]
        if sizes[dimension] != source.dims[dimension]:
            break
    size = max(source.bytes / max(source.elements, 1), 1)
    return min(source.elements, want * max(1.0, SECTOR / (run * size)))


def _window(c: Instruction, source: Shape) -> tuple[list[int], list[int]]:
    """(sizes, strides) of what a slice, dynamic-slice or gather takes of its operand at a time."""
    if c.op != 'slice':
        name = 'dynamic_slice_sizes' if c.op == 'dynamic-slice' else 'slice_sizes'
        return list(c.numbers(name)), [1] * len(source.dims)
    sizes, strides = [], []
    for part in (c.attribute(r'slice=\{([^}]*)\}') or '').split(','):
        first, last, *stride = (int(number) for number in part.strip(' []').split(':'))
        sizes.append(last - first)
        strides.append(stride[0] if stride else 1)
    return sizes, strides


def _window_text(c: Instruction) -> str:
    return c.attributes.partition('metadata')[0]
