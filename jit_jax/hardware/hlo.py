"""The text of an optimised XLA program, parsed: computations of instructions with their shapes.

    program = hlo.parse(compiled.as_text())
    program.entry                      # the computation that runs first, by instruction name
    program.source(instruction)        # the Python line it comes from

Nothing here knows what an instruction costs: `fusions.py`, `matrix_products.py` and `kernels.py`
do.
"""

import math
import re
from dataclasses import dataclass

SIZES = {'f64': 8, 's64': 8, 'u64': 8, 'c64': 8, 'c128': 16, 'f32': 4, 's32': 4, 'u32': 4}
SIZES |= {'bf16': 2, 'f16': 2, 's16': 2, 'u16': 2, 's8': 1, 'u8': 1, 'pred': 1, 's4': 1, 'u4': 1}
SIZES |= {'f8e4m3fn': 1, 'f8e5m2': 1, 'f8e4m3': 1, 'f8e4m3b11fnuz': 1}

_SHAPE = re.compile(r'\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?')
_HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$')
_INSTRUCTION = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$', re.S)


@dataclass(frozen=True)
class Shape:
    """One array: `bf16[256,12,64]{2,1,0:T(8,128)S(1)}`."""

    dtype: str
    dims: tuple[int, ...]
    layout: tuple[int, ...]  # its dimensions, the one whose neighbours lie side by side first
    tile: tuple[int, ...] = ()  # a TPU keeps the last dimensions in tiles, padded to whole ones
    space: int = 0  # 0 is the device's main memory; 1 is a TPU's VMEM, beside its units

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def dense_bytes(self) -> int:
        """Without padding."""
        return self.elements * SIZES[self.dtype]

    @property
    def bytes(self) -> int:
        """As it lies, tiles padded."""
        padded = list(self.dims)
        for dimension, side in zip(self.layout, reversed(self.tile), strict=False):
            padded[dimension] = -(-padded[dimension] // side) * side
        return math.prod(padded) * SIZES[self.dtype]

    @property
    def traffic(self) -> int:
        """Bytes that main memory moves to read or write it: none for what lies elsewhere."""
        return 0 if self.space else self.bytes


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    op: str  # fusion, custom-call, dot …
    shapes: tuple[Shape, ...]  # of its result; of a tuple, those of all its arrays in order
    operands: tuple[str, ...]  # names, in the same computation
    arguments: str  # the text between its parentheses
    attributes: str  # the text after them
    root: bool  # whether it is the computation's result

    @property
    def elements(self) -> int:
        return sum(shape.elements for shape in self.shapes)

    @property
    def bytes(self) -> int:
        return sum(shape.bytes for shape in self.shapes)

    @property
    def traffic(self) -> int:
        return sum(shape.traffic for shape in self.shapes)

    @property
    def target(self) -> str:
        """What a custom call calls, '' for anything else."""
        return self.attribute(r'custom_call_target="([^"]*)"') or ''

    @property
    def called(self) -> str | None:
        """The computation that a fusion, a call or an asynchronous start runs."""
        return self.attribute(r'\b(?:calls|to_apply)=%?([\w.\-]+)')

    @property
    def path(self) -> str:
        """Where JAX traced it: `jit(step)/jvp(JiT)/Block/w12/dot_general`, or ''."""
        return self.attribute(r'op_name="([^"]*)"') or ''

    def attribute(self, pattern: str) -> str | None:
        """The first group of a regular expression over its attributes."""
        found = re.search(pattern, self.attributes)
        return found and found[1]

    def numbers(self, name: str) -> tuple[int, ...]:
        """An attribute that is a list: `slice_sizes={1,256}` is (1, 256); () where it has none."""
        found = self.attribute(rf'\b{name}=\{{([\d,]*)\}}')
        return tuple(int(number) for number in (found or '').split(',') if number)


Computation = dict[str, Instruction]


@dataclass(frozen=True)
class Frame:
    """A line of Python that was running when an instruction was traced."""

    file: str
    line: int
    function: str


@dataclass(frozen=True)
class Program:
    """All computations of a program by name, and the Python lines that they come from."""

    computations: dict[str, Computation]
    entry_name: str
    frames: dict[int, tuple[Frame, int]]  # number → the frame and the number of its caller

    @property
    def entry(self) -> Computation:
        return self.computations[self.entry_name]

    def stack(self, instruction: Instruction) -> list[Frame]:
        """The lines it was traced in, the innermost first; [] where the program does not say."""
        line = instruction.attribute(r'source_line=(\d+)')
        if line:
            file = instruction.attribute(r'source_file="([^"]*)"')
            return [Frame(file or '', int(line), '')]
        number = int(instruction.attribute(r'stack_frame_id=(\d+)') or 0)
        found = []
        while number in self.frames:
            frame, caller = self.frames[number]
            found.append(frame)
            number = caller if caller < number else 0  # callers come first in the table
        return found

    def source(self, instruction: Instruction, package: str = 'jit_jax') -> str:
        """The innermost line inside a package: `jit_jax/model/jit.py:94`, or ''."""
        for frame in self.stack(instruction):
            _, inside, rest = frame.file.rpartition(f'/{package}/')
            if inside:
                return f'{package}/{rest}:{frame.line}'
        return ''


def parse(text: str) -> Program:
    """The text of `compiled.as_text()`. Raises ValueError for one without an entry computation."""
    computations, entry, current = {}, '', None
    for line in _lines(text):
        head = _HEAD.match(line)
        if head:
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif current is not None and line.startswith(' '):
            instruction = _instruction(line)
            if instruction is not None:
                current[instruction.name] = instruction
    if not entry:
        raise ValueError('This is not the text of a compiled program: it has no ENTRY.')
    return Program(computations, entry, _frames(text))


def shapes(text: str) -> tuple[Shape, ...]:
    """Every array shape in a text, in order."""
    found = []
    for dtype, dims, how in _SHAPE.findall(text):
        if dtype in SIZES:
            found.append(_shape(dtype, dims, how))
    return tuple(found)


def _lines(text: str) -> list[str]:
    """Lines, where an instruction that a line break in its attributes splits is one of them."""
    joined = []
    for line in text.splitlines():
        starts = re.match(r'\s+(ROOT )?%?[\w.\-]+ = ', line)
        if starts or not joined or re.match(r'[\w%}]', line) and not joined[-1].startswith(' '):
            joined.append(line)
        elif _HEAD.match(line) or line.strip() in ('', '}'):
            joined.append(line)
        else:
            joined[-1] += '\n' + line
    return joined


def _instruction(line: str) -> Instruction | None:
    found = _INSTRUCTION.match(line)
    if found is None:
        return None
    root, name, shape, op, rest = found.groups()
    arguments, attributes = _parentheses(rest)
    operands = tuple(re.findall(r'%([\w.\-]+)', arguments))
    return Instruction(name, op, shapes(shape), operands, arguments, attributes, bool(root))


def _parentheses(text: str) -> tuple[str, str]:
    """What stands before the parenthesis that closes an open one, and what stands after it."""
    depth = 1
    for place in re.finditer(r'[()]', text):
        depth += 1 if place[0] == '(' else -1
        if depth == 0:
            return text[: place.start()], text[place.end() :]
    return text, ''


def _shape(dtype: str, dims: str, how: str) -> Shape:
    """`how` is what stands in braces: `1,0:T(8,128)(2,1)S(1)`."""
    sizes = tuple(int(size) for size in dims.split(',') if size)
    order, _, rest = how.partition(':')
    layout = tuple(int(place) for place in order.split(',') if place)
    tile = re.search(r'T\(([\d,]+)\)', rest)
    space = re.search(r'S\((\d+)\)', rest)
    return Shape(
        dtype,
        sizes,
        layout or tuple(reversed(range(len(sizes)))),
        tuple(int(side) for side in tile[1].split(',')) if tile else (),
        int(space[1]) if space else 0,
    )


def _frames(text: str) -> dict[int, tuple[Frame, int]]:
    """The stack frames of a program's head: tables of files, functions, locations and frames."""
    files = dict(re.findall(r'^(\d+) "(.*)"$', _table(text, 'FileNames'), re.M))
    functions = dict(re.findall(r'^(\d+) "(.*)"$', _table(text, 'FunctionNames'), re.M))
    locations = {}
    where = r'^(\d+) \{file_name_id=(\d+) function_name_id=(\d+) line=(\d+)'
    for number, file, function, line in re.findall(where, _table(text, 'FileLocations'), re.M):
        locations[number] = Frame(files[file], int(line), functions[function])
    frames = {}
    link = r'^(\d+) \{file_location_id=(\d+) parent_frame_id=(\d+)'
    for number, location, caller in re.findall(link, _table(text, 'StackFrames'), re.M):
        # Callers are counted from 1, and 1 is nobody: frame 4 with caller 3 was called by frame 2.
        frames[int(number)] = locations[location], int(caller) - 1
    return frames


def _table(text: str, name: str) -> str:
    found = re.search(rf'^{name}\n(.*?)\n\s*$', text, re.M | re.S)
    return found[1] if found else ''
