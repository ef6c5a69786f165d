"""LPIPS on AlexNet, version 0.1: how different two images appear, 0 for equal ones.

Zhang et al. 2018, arXiv 1801.03924. Weights are a file: the state dict of the authors'
`lpips.LPIPS(net='alex')`, as `.pth` or `.npz`.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import max_pool

from jit_jax.errors import UserError
from jit_jax.evaluation.array_files import read_state_dict

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
_EXACT = jax.lax.Precision.HIGHEST
_convolve = partial(
    jax.lax.conv_general_dilated, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), precision=_EXACT
)


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
            'kernel': kernel.transpose(2, 3, 1, 0),  # HWIO
            'bias': tensor(f'net.{layer.name}.bias', (width,)),
            'lin': tensor(f'lin{i}.model.1.weight', (1, width, 1, 1)).ravel(),
        }
    return weights


@jax.jit
def distance(weights, a, b) -> jax.Array:
    """LPIPS of each pair: uint8 images [N, H, W, 3], H and W at least SMALLEST → float32 [N]."""
    total = 0.0
    for layer, x, y in zip(_LAYERS, _features(weights, a), _features(weights, b), strict=True):
        lin = weights[layer.name]['lin']
        difference = jnp.einsum('nhwc,c->n', (x - y) ** 2, lin, precision=_EXACT)
        total = total + difference / (x.shape[1] * x.shape[2])
    return total


def _features(weights, images):
    """Activations [N, h, w, C] of the five layers, channels divided by their length."""
    x = (images.astype(jnp.float32) / 127.5 - 1 - jnp.asarray(_SHIFT)) / jnp.asarray(_SCALE)
    for layer in _LAYERS:
        if layer.pooled:
            x = max_pool(x, (3, 3), (2, 2))
        kernel, bias = weights[layer.name]['kernel'], weights[layer.name]['bias']
        padding = [(layer.padding, layer.padding)] * 2
        x = jax.nn.relu(_convolve(x, kernel, (layer.stride, layer.stride), padding) + bias)
        yield x / (jnp.sqrt((x**2).sum(-1, keepdims=True)) + 1e-10)
