"""LPIPS on AlexNet, version 0.1 (Zhang et al. 2018, arXiv 1801.03924): how differently two images look, 0 for equal ones.

Weights are a file: the state dict of the authors' `lpips.LPIPS(net='alex')`, as `.pth` or `.npz`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import max_pool

from jit_jax.evaluation.inception import read_state

# Where a convolution is in the state dict → its shape, stride, padding, and whether a 3×3 pool of stride 2 comes first.
_LAYERS = {
    'slice1.0': ((64, 3, 11, 11), 4, 2, False),
    'slice2.3': ((192, 64, 5, 5), 1, 2, True),
    'slice3.6': ((384, 192, 3, 3), 1, 1, True),
    'slice4.8': ((256, 384, 3, 3), 1, 1, False),
    'slice5.10': ((256, 256, 3, 3), 1, 1, False),
}
_SHIFT, _SCALE = (
    (-0.030, -0.088, -0.188),
    (0.458, 0.448, 0.450),
)  # ImageNet's mean and deviation in [−1, 1]
_EXACT = jax.lax.Precision.HIGHEST
_convolve = partial(
    jax.lax.conv_general_dilated, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), precision=_EXACT
)


def load_weights(path) -> dict:
    """Reads the weights for `distance`: {'slice1.0': {'kernel', 'bias', 'lin'}, …}, float32.

    Raises FileNotFoundError, ImportError without PyTorch for a .pth, or ValueError for tensors that are not LPIPS's.
    """
    hint = "torch.save(lpips.LPIPS(net='alex').state_dict(), 'lpips.pth') writes them"
    state = read_state(path, 'LPIPS weights', hint)
    weights = {}
    for i, (name, (shape, *_)) in enumerate(_LAYERS.items()):
        wanted = {'kernel': (f'net.{name}.weight', shape), 'bias': (f'net.{name}.bias', shape[:1])}
        wanted['lin'] = (f'lin{i}.model.1.weight', (1, shape[0], 1, 1))
        for key, size in wanted.values():
            if key not in state or state[key].shape != size:
                found = list(state[key].shape) if key in state else 'nothing'
                raise ValueError(f'{path} has {found} for {key}, not {list(size)}; {hint}.')
        kernel, bias, lin = (np.asarray(state[key], np.float32) for key, _ in wanted.values())
        weights[name] = {
            'kernel': kernel.transpose(2, 3, 1, 0),
            'bias': bias,
            'lin': lin.ravel(),
        }  # HWIO
    return weights


@jax.jit
def distance(weights, a, b) -> jax.Array:
    """LPIPS of each pair: uint8 images [N, H, W, 3], H and W at least 32 → float32 [N]."""
    layers = zip((weights[name] for name in _LAYERS), _features(weights, a), _features(weights, b))
    return sum(
        jnp.einsum('nhwc,c->n', (x - y) ** 2, layer['lin'], precision=_EXACT)
        / (x.shape[1] * x.shape[2])
        for layer, x, y in layers
    )


def _features(weights, images):
    """The activations [N, h, w, C] of the five layers, each place's channels divided by their length."""
    x = (images.astype(jnp.float32) / 127.5 - 1 - jnp.asarray(_SHIFT)) / jnp.asarray(_SCALE)
    for name, (_, stride, pad, pooled) in _LAYERS.items():
        x = max_pool(x, (3, 3), (2, 2)) if pooled else x
        x = _convolve(x, weights[name]['kernel'], (stride, stride), [(pad, pad)] * 2)
        x = jax.nn.relu(x + weights[name]['bias'])
        yield x / (jnp.sqrt((x**2).sum(-1, keepdims=True)) + 1e-10)
