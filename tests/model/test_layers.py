"""The product that every layer is made of, differentiated in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jit_jax.model import jit
from jit_jax.model.layers import product


def test_the_kernels_gradient_is_float32_and_the_tangent_is_not():
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((5, 6)), jnp.bfloat16)
    kernel = jnp.asarray(random.standard_normal((6, 2, 3)), jnp.float32)
    out, pull = jax.vjp(product, x, kernel)
    dx, dkernel = pull(jnp.ones_like(out))
    assert (out.dtype, dx.dtype, dkernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(dkernel[:, 0, 0], x.astype(jnp.float32).sum(0), rtol=1e-6)
    _, tangent = jax.jvp(product, (x, kernel), (x, kernel))
    np.testing.assert_array_equal(tangent, 2 * out)


@pytest.mark.parametrize('compute', [{'scan': True}, {'scan': False, 'remat': 'dots'}])
def test_forward_mode_is_the_finite_difference(tiny, params, conditioning, compute):
    """And so is the gradient of a forward derivative, as MeanFlow (arXiv 2505.13447) needs it."""
    z, t = conditioning['z'], conditioning['t']
    direction = np.random.default_rng(0).standard_normal(z.shape).astype(np.float32)
    net = tiny(**compute)

    @jax.jit
    def along(step, params):
        return net.apply({'params': params}, z + step * direction, t + step)

    @jax.jit
    def derivative(params):
        return jax.jvp(lambda step: along(step, params), (0.0,), (1.0,))[1]

    found, step = derivative(params), 5e-3
    near = (along(step, params) - along(-step, params)) / (2 * step)
    np.testing.assert_allclose(found, near, atol=2e-3 * jnp.abs(found).max())

    @jax.jit
    def size(params):
        return (derivative(params) ** 2).mean()

    gradient = np.array(jax.jit(jax.grad(size))(params)['blocks']['w12']['kernel'])
    place = np.unravel_index(np.abs(gradient).argmax(), gradient.shape)

    def moved(by: float) -> dict:
        kernel = np.array(params['blocks']['w12']['kernel'])
        kernel[place] += by
        blocks = params['blocks'] | {'w12': params['blocks']['w12'] | {'kernel': kernel}}
        return params | {'blocks': blocks}

    near = (size(moved(step)) - size(moved(-step))) / (2 * step)
    np.testing.assert_allclose(gradient[place], near, rtol=0.02)


def test_weights_one_by_one_are_the_same_function(tiny, params, conditioning):
    z, t, whole, net = conditioning['z'], conditioning['t'], conditioning['whole'], tiny()

    @jax.jit
    def apply(**more):
        return net.apply({'params': params}, z, t, **whole, **more)

    layers = jit.layers_of(params, net.depth)
    assert len(layers) == net.depth
    np.testing.assert_allclose(apply(layers=layers), apply(), atol=1e-5)
    swapped = apply(layers=layers[::-1])
    assert np.abs(swapped - apply()).max() > 0.01  # it is these weights that run
