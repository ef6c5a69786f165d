"""LPIPS on AlexNet, version 0.1: how different two images appear, 0 for equal ones.

Zhang et al. 2018, arXiv 1801.03924. Weights are a file: the state dict of the authors'
`lpips.LPIPS(net='alex')`, as `.pth` or `.npz`. A metric of trained runs and a part of the loss.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import max_pool

from jit_jax.errors import UserError
from jit_jax.model.array_files import read_state_dict

SMALLEST = 32  # pixels on a side, or the last layers see nothing


@dataclass(frozen=True)
class _Layer:
    """A convolution of AlexNet; `name` is where it is in the state dict."""

    name: str
    shape: tuple[int, int, int, int]  # PyTorch's: out, in, height, width
    stride: int
    padding: int
    pooled: bool  # a 3×3 maximum of stride 2 comes first


_LAYERS = (
    _Layer('slice1.0', (64, 3, 11, 11), 4, 2, False),
    _Layer('slice2.3', (192, 64, 5, 5), 1, 2, True),
    _Layer('slice3.6', (384, 192, 3, 3), 1, 1, True),
    _Layer('slice4.8', (256, 384, 3, 3), 1, 1, False),
    _Layer('slice5.10', (256, 256, 3, 3), 1, 1, False),
)
# ImageNet's mean and deviation, of values in [−1, 1].
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_convolve = partial(jax.lax.conv_general_dilated, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def shapes() -> dict:
    """Those of what `load_weights` gives, float32."""
    found = {}
    for layer in _LAYERS:
        out, into, height, width = layer.shape
        sizes = {'kernel': (height, width, into, out), 'bias': (out,), 'lin': (out,)}
        found[layer.name] = {
            name: jax.ShapeDtypeStruct(size, jnp.float32) for name, size in sizes.items()
        }
    return found


def load_weights(path) -> dict:
    """Reads the weights for `distance`: {'slice1.0': {'kernel', 'bias', 'lin'}, …}, float32.

    Raises UserError where there is no such file, for a `.pth` without PyTorch, and for tensors that
    are not LPIPS's.
    """
    hint = "torch.save(lpips.LPIPS(net='alex').state_dict(), 'lpips.pth') writes them"
    state = read_state_dict(path, 'LPIPS weights', hint)

    def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in state or state[name].shape != shape:
            found = list(state[name].shape) if name in state else 'nothing'
            raise UserError(f'{path} has {found} for {name}, not {list(shape)}; {hint}.')
        return np.asarray(state[name], np.float32)

    weights = {}
    for i, layer in enumerate(_LAYERS):
        width = layer.shape[0]
        kernel = tensor(f'net.{layer.name}.weight', layer.shape)
        weights[layer.name] = {
            'kernel': np.ascontiguousarray(kernel.transpose(2, 3, 1, 0)),  # HWIO
            'bias': tensor(f'net.{layer.name}.bias', (width,)),
            'lin': tensor(f'lin{i}.model.1.weight', (1, width, 1, 1)).ravel(),
        }
    return weights


@jax.jit
def distance(weights, a, b) -> jax.Array:
    """LPIPS of each pair: uint8 images [N, H, W, 3], H and W at least SMALLEST → float32 [N]."""
    a, b = (images.astype(jnp.float32) / 127.5 - 1 for images in (a, b))
    return between(weights, a, b, jax.lax.Precision.HIGHEST)


def between(weights, a, b, precision: jax.lax.Precision) -> jax.Array:
    """LPIPS of each pair: float32 images in [−1, 1], [N, H, W, 3] with H and W at least SMALLEST →
    float32 [N].

    Its gradient in the images is finite everywhere, also where they are equal and where no channel
    of a layer is live.
    """
    total = 0.0
    pairs = zip(_features(weights, a, precision), _features(weights, b, precision), strict=True)
    for layer, (x, y) in zip(_LAYERS, pairs, strict=True):
        lin = weights[layer.name]['lin']
        difference = jnp.einsum('nhwc,c->n', (x - y) ** 2, lin, precision=precision)
        total = total + difference / (x.shape[1] * x.shape[2])
    return total


def multiply_adds(side: int) -> int:
    """Of the features of one image of side × side pixels, in matrix products."""
    total = 0
    for layer in _LAYERS:
        if layer.pooled:
            side = (side - 3) // 2 + 1
        out, into, size, _ = layer.shape
        side = (side + 2 * layer.padding - size) // layer.stride + 1
        total += side**2 * out * into * size**2
    return total


def _features(weights, images, precision: jax.lax.Precision):
    """Activations [N, h, w, C] of the five layers, channels divided by their length."""
    x = (images - jnp.asarray(_SHIFT)) / jnp.asarray(_SCALE)
    for layer in _LAYERS:
        if layer.pooled:
            x = max_pool(x, (3, 3), (2, 2))
        kernel, bias = weights[layer.name]['kernel'], weights[layer.name]['bias']
        strides, padding = (layer.stride,) * 2, [(layer.padding, layer.padding)] * 2
        x = jax.nn.relu(_convolve(x, kernel, strides, padding, precision=precision) + bias)
        squares = (x**2).sum(-1, keepdims=True)
        # The square root has no derivative at 0, where all channels are 0 and stay so.
        length = jnp.sqrt(jnp.where(squares > 0, squares, 1))
        yield x / (length + 1e-10)
