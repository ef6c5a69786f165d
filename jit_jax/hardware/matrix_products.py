"""Matrix products in a compiled program: how many operations, in which dtype."""

import math
import re
from dataclasses import dataclass

from jit_jax.hardware.hlo import Computation, Instruction, Program, Shape

DTYPES = {'f64': 'float64', 'f32': 'float32', 'bf16': 'bfloat16', 'f16': 'float16', 's8': 'int8'}

# Products of [S, K] and [S, K] matrices in a kernel of splash attention, by its name. The
# forward pass has two; the backward pass computes the logits again and has four more, but is two
# kernels that both need the logits and their gradient.
FUSED_ATTENTION = {'splash_mha_dkv': 4, 'splash_mha_dq': 3, 'splash_mha_fwd': 2}


@dataclass(frozen=True)
class Product:
    operations: float  # multiplications and additions
    dtype: str  # of its wider operand


def products(program: Program, c: Instruction, caller: Computation) -> list[Product]:
    """The matrix products of one kernel, which is an instruction of the computation `caller`."""
    if c.op == 'fusion':
        body = program.computations[c.called]
        return [p for inner in body.values() for p in products(program, inner, body)]
    if c.op == 'dot':
        return [_dot(c, caller, c.numbers('lhs_contracting_dims'))]
    if c.op == 'convolution':
        return [_convolution(c, caller)]
    if c.op == 'custom-call':
        return _custom_call(c, caller)
    return []


def attention_kernel(c: Instruction) -> str:
    """What a kernel of fused attention is called, without the compiler's numbers; '' for others."""
    if 'fmha' in c.target:
        return c.target.strip('_')
    return next((name for name in FUSED_ATTENTION if name in c.name), '')


def _operand(c: Instruction, place: int, caller: Computation) -> Shape:
    return caller[c.operands[place]].shapes[0]


def _dtype(*shapes: Shape) -> str:
    widest = max(shapes, key=lambda shape: (shape.dtype == 'f32', shape.dtype == 'f64')).dtype
    return DTYPES.get(widest, widest)


def _dot(c: Instruction, caller: Computation, contracted: tuple[int, ...]) -> Product:
    left, right = _operand(c, 0, caller), _operand(c, 1, caller)
    inner = math.prod(left.dims[dimension] for dimension in contracted)
    return Product(2.0 * c.shapes[0].elements * inner, _dtype(left, right))


def _custom_call(c: Instruction, caller: Computation) -> list[Product]:
    if 'cublas' in c.target:
        listed = c.attribute(r'"lhs_contracting_dimensions": ?\[([^\]]*)\]') or ''
        contracted = tuple(int(number) for number in re.findall(r'\d+', listed))
        return [_dot(c, caller, contracted)]
    if 'fmha' in c.target:
        return [_cudnn_attention(c, caller)]
    if '__cudnn$conv' in c.target:
        return [_cudnn_convolution(c, caller)]
    for name, count in FUSED_ATTENTION.items():
        if name in c.name:
            return [_splash_attention(c, caller, count)]
    return []


def _cudnn_attention(c: Instruction, caller: Computation) -> Product:
    """Its logits are [B, H, S, T]; the forward pass is two products, the backward pass five."""
    listed = c.attribute(r'"intermediate_tensor_shape": ?\{.*?"dimensions": ?\[([^\]]*)\]') or ''
    logits = [int(number) for number in re.findall(r'\d+', listed)]
    query = _operand(c, 0, caller)
    width = query.elements // math.prod(logits[:3])
    count = 5 if 'Backward' in c.target else 2
    return Product(2.0 * count * math.prod(logits) * width, _dtype(query))


def _splash_attention(c: Instruction, caller: Computation, count: int) -> Product:
    """Queries [B, H, S, K] come first among its operands, then keys [B, H, T, K]."""
    operands = (caller[name].shapes[0] for name in c.operands)
    query, key, *_ = (shape for shape in operands if shape.dtype in ('bf16', 'f32'))
    return Product(2.0 * count * query.elements * key.dims[-2], _dtype(query))


def _convolution(c: Instruction, caller: Computation) -> Product:
    """Without products with padding: a TPU's compiler writes batched products as padded windows."""
    left, right = _operand(c, 0, caller), _operand(c, 1, caller)
    inputs, kernel, outputs = _labels(c)
    result = c.shapes[0]
    count = float(right.dims[kernel.index('i')])
    for label in ('b', 'f'):
        count *= result.dims[outputs.index(label)]
    for place, label in enumerate(sorted(set(kernel) - set('io'))):
        sides = left.dims[inputs.index(label)], result.dims[outputs.index(label)]
        count *= _pairs(_window(c, place), *sides)
    return Product(2.0 * count, _dtype(left, right))


def _cudnn_convolution(c: Instruction, caller: Computation) -> Product:
    """A convolution or one of its gradients, which take as many operations as it does."""
    left, right, result = _operand(c, 0, caller), _operand(c, 1, caller), c.shapes[0]
    inputs, kernel, outputs = _labels(c)
    window = math.prod(int(n) for n in (c.attribute(r'size=([\dx]+)') or '1').split('x'))
    if 'Filter' in c.target:
        count = right.elements * result.dims[kernel.index('i')]
    elif 'Input' in c.target:
        count = left.elements * result.dims[inputs.index('f')]
    else:
        count = result.elements * right.dims[kernel.index('i')]
    return Product(2.0 * count * window, _dtype(left, right))


def _labels(c: Instruction) -> tuple[str, str, str]:
    """What each dimension of input, kernel and output is: `bf_io->bf`."""
    found = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', c.attributes)
    return found[1], found[2], found[3]


@dataclass(frozen=True)
class Window:
    """How a kernel moves over one dimension of its input."""

    size: int = 1
    stride: int = 1
    padding: int = 0  # before the first element
    input_dilation: int = 1
    kernel_dilation: int = 1


def _window(c: Instruction, place: int) -> Window:
    """Of dimension number `place`; the whole attribute is `{size=3x3 pad=1_1x1_1 stride=2x2}`."""
    text = c.attribute(r'window=\{([^}]*)\}') or ''
    fields = dict(part.split('=') for part in text.split())
    names = {'size': 'size', 'stride': 'stride', 'pad': 'padding'}
    names |= {'lhs_dilate': 'input_dilation', 'rhs_dilate': 'kernel_dilation'}
    numbers = {}
    for written, name in names.items():
        if written in fields:
            numbers[name] = int(fields[written].split('x')[place].split('_')[0])
    return Window(**numbers)


def _pairs(window: Window, inputs: int, outputs: int) -> int:
    """Pairs of an output and a place of the kernel that meet an element, not padding."""
    count = 0
    reach = (inputs - 1) * window.input_dilation
    for output in range(outputs):
        first = output * window.stride - window.padding
        for step in range(window.size):
            at = first + step * window.kernel_dilation
            count += 0 <= at <= reach and at % window.input_dilation == 0
    return count
