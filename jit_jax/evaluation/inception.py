"""The InceptionV3 that FID is defined by: Google's graph of 2015-12-05.

Its weights circulate as a PyTorch file. It differs from the Inception of the paper ("Rethinking the
Inception Architecture", arXiv 1512.00567) in ways that change the number: images are resized as
TensorFlow 1 did, averages at a border divide by the pixels that exist, the last block pools with a
maximum, and there are 1008 logits. Batch norm is folded into the convolutions on loading.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import avg_pool, max_pool

from jit_jax.errors import UserError
from jit_jax.model.array_files import read_state_dict

_SIDE = 299  # the network's input, in pixels
_CLASSES = 1008
_BN_EPSILON = 1e-3
# Float32 everywhere, or TPU and GPU would disagree with published numbers.
_EXACT = jax.lax.Precision.HIGHEST


@dataclass(frozen=True)
class Conv:
    """Convolution, batch norm and ReLU; `name` is the prefix of its tensors in the weights file."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = 'SAME'


_convolve = partial(
    jax.lax.conv_general_dilated, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), precision=_EXACT
)

# A plan is a Conv, a pool, a tuple (one after another) or a list (side by side, channels joined).
_average = partial(avg_pool, window_shape=(3, 3), padding='SAME', count_include_pad=False)
_maximum = partial(max_pool, window_shape=(3, 3), padding='SAME')
_halve = partial(max_pool, window_shape=(3, 3), strides=(2, 2))
_SQUARE, _ROW, _COLUMN = (3, 3), (1, 7), (7, 1)


def _chain(name: str, *steps):
    """Convs numbered from 1, one after another; a step is what follows the name in `Conv`."""
    return tuple(Conv(f'{name}_{i}', *step) for i, step in enumerate(steps, 1))


def _block35(name: str, pool_width: int):
    """35×35 pixels."""
    b = f'{name}.branch'
    return [
        Conv(f'{b}1x1', 64),
        _chain(f'{b}5x5', (48,), (64, (5, 5))),
        _chain(f'{b}3x3dbl', (64,), (96, _SQUARE), (96, _SQUARE)),
        (_average, Conv(f'{b}_pool', pool_width)),
    ]


def _shrink35(name: str):
    """35×35 → 17×17 pixels."""
    b = f'{name}.branch'
    return [
        Conv(f'{b}3x3', 384, _SQUARE, 2, 'VALID'),
        _chain(f'{b}3x3dbl', (64,), (96, _SQUARE), (96, _SQUARE, 2, 'VALID')),
        _halve,
    ]


def _block17(name: str, width: int):
    """17×17 pixels; a 7×7 convolution is a row and a column."""
    b = f'{name}.branch'
    return [
        Conv(f'{b}1x1', 192),
        _chain(f'{b}7x7', (width,), (width, _ROW), (192, _COLUMN)),
        _chain(
            f'{b}7x7dbl', (width,), (width, _COLUMN), (width, _ROW), (width, _COLUMN), (192, _ROW)
        ),
        (_average, Conv(f'{b}_pool', 192)),
    ]


def _shrink17(name: str):
    """17×17 → 8×8 pixels."""
    b = f'{name}.branch'
    return [
        _chain(f'{b}3x3', (192,), (320, _SQUARE, 2, 'VALID')),
        _chain(f'{b}7x7x3', (192,), (192, _ROW), (192, _COLUMN), (192, _SQUARE, 2, 'VALID')),
        _halve,
    ]


def _block8(name: str, pool):
    """8×8 pixels; the row and the column of a 3×3 stand side by side, not one after another."""
    b = f'{name}.branch'

    def fork(step):
        return [Conv(f'{b}{step}a', 384, (1, 3)), Conv(f'{b}{step}b', 384, (3, 1))]

    return [
        Conv(f'{b}1x1', 320),
        (*_chain(f'{b}3x3', (384,)), fork('3x3_2')),
        (*_chain(f'{b}3x3dbl', (448,), (384, _SQUARE)), fork('3x3dbl_3')),
        (pool, Conv(f'{b}_pool', 192)),
    ]


_STAGES = {  # each stage ends where FID reads a feature, named by its width
    '64': (
        Conv('Conv2d_1a_3x3', 32, _SQUARE, 2, 'VALID'),
        Conv('Conv2d_2a_3x3', 32, _SQUARE, 1, 'VALID'),
        Conv('Conv2d_2b_3x3', 64, _SQUARE),
        _halve,
    ),
    '192': (Conv('Conv2d_3b_1x1', 80), Conv('Conv2d_4a_3x3', 192, _SQUARE, 1, 'VALID'), _halve),
    '768': (
        *(_block35(f'Mixed_5{letter}', width) for letter, width in zip('bcd', (32, 64, 64))),
        _shrink35('Mixed_6a'),
        *(
            _block17(f'Mixed_6{letter}', width)
            for letter, width in zip('bcde', (128, 160, 160, 192))
        ),
    ),
    '2048': (_shrink17('Mixed_7a'), _block8('Mixed_7b', _average), _block8('Mixed_7c', _maximum)),
}
_NETWORK = tuple(_STAGES.values())


def features(weights, images) -> dict[str, jax.Array]:
    """The six features of each image.

    weights: what `load_weights` returns. images: uint8 [B, H, W, 3] in [0, 255], any H and W (256
    for published FID). Returns float32 arrays: '64', '192', '768', '2048' (spatial means of four
    depths; FID, KID and precision/recall use '2048'), 'logits_unbiased' [B, 1008] (no bias: what
    the Inception score uses) and 'logits' [B, 1008]. Made for `jax.jit(features)`: rows are
    independent, so a batch sharded over devices stays so. Raises ValueError for other image types,
    because floats in [-1, 1] would give plausible nonsense.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != jnp.uint8:
        raise ValueError(
            f'Inception takes uint8 images [B, H, W, 3], not {images.dtype} {list(images.shape)}.'
        )
    x = (_resize(images) - 128) / 128
    found = {}
    for name, plan in _STAGES.items():
        x = _run(plan, x, weights)
        found[name] = x.mean((1, 2))
    found['logits_unbiased'] = jnp.matmul(found['2048'], weights['fc']['kernel'], precision=_EXACT)
    found['logits'] = found['logits_unbiased'] + weights['fc']['bias']
    return found


def _run(plan, x, weights):
    """One plan on x [B, h, w, C]."""
    match plan:
        case Conv():
            kernel, bias = weights[plan.name]['kernel'], weights[plan.name]['bias']
            return jax.nn.relu(
                _convolve(x, kernel, (plan.stride, plan.stride), plan.padding) + bias
            )
        case tuple():
            for step in plan:
                x = _run(step, x, weights)
            return x
        case list():
            return jnp.concatenate([_run(branch, x, weights) for branch in plan], axis=-1)
        case pool:
            return pool(x)


def _resize(images):
    """uint8 [B, H, W, 3] → float32 [B, 299, 299, 3] in [0, 255]."""
    rows, columns = (_interpolation(size) for size in images.shape[1:3])
    return jnp.einsum(
        'yh,xw,bhwc->byxc', rows, columns, images.astype(jnp.float32), precision=_EXACT
    )


def _interpolation(size: int) -> np.ndarray:
    """[299, size]: TensorFlow 1's bilinear weights, which read pixel i at i · size / 299.

    No half-pixel centres and no antialiasing: the picture shifts and aliases, and published FIDs
    contain that.
    """
    place = np.arange(_SIDE) * (size / _SIDE)
    low = place.astype(int)
    high = np.minimum(low + 1, size - 1)
    out, fraction = np.arange(_SIDE), place - low
    matrix = np.zeros((_SIDE, size), np.float32)
    matrix[out, low] += 1 - fraction
    matrix[out, high] += fraction  # low and high are the same pixel at the far edge
    return matrix


def load_weights(path) -> dict:
    """Reads the weights of the FID Inception for `features`: a tree of float32 NumPy arrays, 95 MB.

    path: the published `.pth` state dict (needs PyTorch), or an `.npz` with the same names and
    shapes. Put the tree on the devices once (`jax.device_put`), or every call of `features` carries
    it there. Raises UserError if the file is absent, cannot be read, or holds other tensors than
    this network's.
    """
    state = read_state_dict(path, 'Inception weights', 'jit-jax fetch downloads them')
    try:
        return fold(state)
    except UserError as error:
        raise UserError(f'{path}: {error}') from None


def fold(state: Mapping[str, np.ndarray]) -> dict:
    """PyTorch's names and layouts → the tree that `features` takes, batch norm folded in.

    Raises one UserError naming the tensors that are missing, unexpected or of another shape.
    Batch norm's `num_batches_tracked` counters may be there or not: inference never reads them.
    """
    _check_shapes(
        {k: np.shape(v) for k, v in state.items() if not k.endswith('.num_batches_tracked')}
    )
    weights = {'fc': {'kernel': np.transpose(state['fc.weight']), 'bias': state['fc.bias']}}
    for conv, _ in _convs(_NETWORK, 3)[0]:
        names = ('conv.weight', 'bn.weight', 'bn.bias', 'bn.running_mean', 'bn.running_var')
        kernel, gain, bias, mean, variance = (
            np.asarray(state[f'{conv.name}.{x}'], np.float64) for x in names
        )
        scale = gain / np.sqrt(variance + _BN_EPSILON)
        weights[conv.name] = {
            'kernel': kernel.transpose(2, 3, 1, 0) * scale,
            'bias': bias - mean * scale,
        }  # HWIO
    return jax.tree.map(np.float32, weights)


def _check_shapes(found: dict[str, tuple[int, ...]]) -> None:
    wanted = {'fc.weight': (_CLASSES, 2048), 'fc.bias': (_CLASSES,)}
    for conv, channels in _convs(_NETWORK, 3)[0]:
        wanted[f'{conv.name}.conv.weight'] = (conv.width, channels, *conv.kernel)
        wanted |= {
            f'{conv.name}.bn.{x}': (conv.width,)
            for x in ('weight', 'bias', 'running_mean', 'running_var')
        }
    differing = sorted(name for name in wanted.keys() & found.keys() if wanted[name] != found[name])
    problems = {
        'missing': sorted(wanted.keys() - found.keys()),
        'unexpected': sorted(found.keys() - wanted.keys()),
        'misshapen': [
            f'{name} {list(found[name])}, not {list(wanted[name])}' for name in differing
        ],
    }
    if any(problems.values()):
        listed = '; '.join(f'{kind} {_first(names)}' for kind, names in problems.items() if names)
        raise UserError(f'The tensors are not those of the FID Inception: {listed}.')


def _first(names: list[str], limit: int = 10) -> str:
    """A different network would list hundreds."""
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more


def _convs(plan, channels: int) -> tuple[list[tuple[Conv, int]], int]:
    """Every Conv of a plan with the width of its input, and the width of the plan's output."""
    match plan:
        case Conv():
            return [(plan, channels)], plan.width
        case tuple():
            found = []
            for step in plan:
                inner, channels = _convs(step, channels)
                found += inner
            return found, channels
        case list():
            found, widths = zip(*(_convs(branch, channels) for branch in plan))
            return [conv for convs in found for conv in convs], sum(widths)
        case _:  # pools keep their channels
            return [], channels
