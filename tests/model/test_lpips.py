"""LPIPS against a PyTorch version of it."""

import jax
import numpy as np
import pytest

from jit_jax.errors import UserError
from jit_jax.model import lpips

CONVS = ('slice1.0', 'slice2.3', 'slice3.6', 'slice4.8', 'slice5.10')


@pytest.fixture(scope='module')
def lpips_tensors():
    """Random weights of LPIPS, by the names of the authors' state dict."""
    random, tensors = np.random.default_rng(0), {}
    convs = {'slice1.0': (64, 3, 11), 'slice2.3': (192, 64, 5), 'slice3.6': (384, 192, 3)}
    convs |= {'slice4.8': (256, 384, 3), 'slice5.10': (256, 256, 3)}
    for i, (name, (out, into, side)) in enumerate(convs.items()):
        kernel = random.standard_normal((out, into, side, side), np.float32)
        tensors[f'net.{name}.weight'] = kernel * np.float32(np.sqrt(2 / (into * side**2)))
        tensors[f'net.{name}.bias'] = random.standard_normal(out, np.float32) * np.float32(0.1)
        tensors[f'lin{i}.model.1.weight'] = random.random((1, out, 1, 1), np.float32)
    return tensors


def test_lpips_agrees_with_torch(lpips_tensors, tmp_path):
    torch = pytest.importorskip('torch')
    F, random = torch.nn.functional, np.random.default_rng(0)
    state = {name: torch.from_numpy(value) for name, value in lpips_tensors.items()}
    state['scaling_layer.shift'] = torch.zeros((1, 3, 1, 1))
    torch.save(state, tmp_path / 'lpips.pth')
    a, b = random.integers(0, 256, (2, 3, 64, 48, 3), dtype=np.uint8)

    def features(images):
        x = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
        x = (x - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor(
            [0.458, 0.448, 0.450]
        )[:, None, None]
        for name, (stride, pad, pool) in zip(
            CONVS, ((4, 2, 0), (1, 2, 1), (1, 1, 1), (1, 1, 0), (1, 1, 0)), strict=True
        ):
            x = F.max_pool2d(x, 3, 2) if pool else x
            x = F.relu(
                F.conv2d(x, state[f'net.{name}.weight'], state[f'net.{name}.bias'], stride, pad)
            )
            yield x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)

    pairs = enumerate(zip(features(a), features(b), strict=True))
    expected = sum(
        F.conv2d((x - y) ** 2, state[f'lin{i}.model.1.weight']).mean((1, 2, 3))
        for i, (x, y) in pairs
    )
    weights = lpips.load_weights(tmp_path / 'lpips.pth')
    np.testing.assert_allclose(lpips.distance(weights, a, b), expected, rtol=1e-4)
    np.testing.assert_array_equal(lpips.distance(weights, a, a), 0)
    np.savez(
        tmp_path / 'less.npz',
        **{name: value for name, value in state.items() if name != 'lin2.model.1.weight'},
    )
    with pytest.raises(UserError, match=r'nothing for lin2.model.1.weight, not \[1, 384, 1, 1\]'):
        lpips.load_weights(tmp_path / 'less.npz')


def test_shapes_and_products_are_those_of_the_weights(lpips_tensors, tmp_path):
    np.savez(tmp_path / 'lpips.npz', **lpips_tensors)
    weights = lpips.load_weights(tmp_path / 'lpips.npz')
    assert jax.tree.map(np.shape, weights) == jax.tree.map(np.shape, lpips.shapes())
    # AlexNet's convolutions at 224 × 224 as torchvision counts them, of which 714 M is all layers.
    assert lpips.multiply_adds(224) == 55**2 * 64 * 363 + 27**2 * 192 * 1600 + 13**2 * (
        384 * 1728 + 256 * 3456 + 256 * 2304
    )
