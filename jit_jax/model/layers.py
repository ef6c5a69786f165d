"""The parts that blocks are made of: products, normalisation, the embedding of patches and times.

Parameters are float32. Products run in the model's `dtype`; everything between two products is
computed in float32 and rounded once, where it enters the next product.
"""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero, linear_call
from jax.experimental.layout import Layout, with_layout_constraint
from jax.nn import initializers

from jit_jax.model.sequence import GRID
from jit_jax.model.sharding import BATCH, by_rows, platform, split_by_tensor

PRODUCT = 'product'  # the name under which rematerialisation may keep what a product returns


def xavier(key, shape, dtype=jnp.float32) -> jax.Array:
    """Xavier uniform on the fused matrix [shape[0], prod(shape[1:])], as published."""
    limit = math.sqrt(6 / (shape[0] + math.prod(shape[1:])))
    return jax.random.uniform(key, shape, dtype, -limit, limit)


@jax.custom_jvp
def product(x, kernel) -> jax.Array:
    """x [R, D] · kernel [D, …] → [R, …], in x's dtype.

    The kernel's gradient is a sum over rows, and then over devices. JAX would give it x's dtype; in
    bfloat16 the sum over devices would lose what small gradients add. Here it is float32. Forward
    mode (`jax.jvp`) works too, and the gradient of what it gives; `jax.vmap` of a gradient does
    not.
    """
    return jax.lax.dot_general(x, kernel.astype(x.dtype), (((1,), (0,)), ((), ())))


@partial(product.defjvp, symbolic_zeros=True)
def _product_tangent(primals, tangents):
    """Both terms of the product rule; of an argument that does not change, there is none."""
    x, kernel = primals
    dx, dkernel = tangents
    out = product(x, kernel)
    terms = []
    if not isinstance(dx, SymbolicZero):
        terms.append(product(dx, kernel))
    if not isinstance(dkernel, SymbolicZero):
        terms.append(linear_call(product, _kernel_gradient, x, dkernel))
    return out, sum(terms[1:], terms[0])


def _kernel_gradient(x, g) -> jax.Array:
    """The transpose of `product` in its kernel, which is float32: x [R, D], g [R, …] → [D, …]."""
    return jax.lax.dot_general(x, g, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


class Linear(nn.Module):
    """x [..., D] → [..., *features] in `dtype`, with a fused kernel [D, *features].

    padding: zeros appended to the last axis of the output.
    """

    features: tuple[int, ...]
    kernel_init: initializers.Initializer = xavier
    use_bias: bool = True
    padding: int = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        D = x.shape[-1]
        kernel = pad_last(self.param('kernel', self.kernel_init, (D, *self.features)), self.padding)
        features = kernel.shape[1:]
        if not split_by_tensor():
            # Flat matrices: on a CPU the gradient of a product in more dimensions takes 2.5 times
            # as long. A kernel whose features are split over devices has to keep its shape.
            kernel = kernel.reshape(D, -1)
        # Named before the bias, which costs nothing to add again where y is used.
        y = checkpoint_name(product(x.astype(self.dtype).reshape(-1, D), kernel), PRODUCT)
        if self.use_bias:
            bias = pad_last(self.param('bias', initializers.zeros, self.features), self.padding)
            # In float32, so that the bias's gradient is summed over all rows in float32.
            y = (y.astype(jnp.float32) + bias.reshape(kernel.shape[1:])).astype(self.dtype)
        return y.reshape(*x.shape[:-1], *features)


def pad_last(x, count: int) -> jax.Array:
    """x with `count` zeros appended to its last axis."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, count)])


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last axis; then · (1 + scale) + shift, where given: float32.

    x [B, S, D] is modulated by what a row's time and label say, shift and scale [B or 1, D].
    Without them, x is the queries or keys of heads, [B, S, H, K], which share one weight [K].
    """

    @nn.compact
    def __call__(self, x, shift=None, scale=None):
        weight = self.param('weight', initializers.ones, x.shape[-1:])
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
        if shift is None:
            return x * head_by_head(weight, x.shape[-2:])
        # Of the last layer they are bfloat16, and so would 1 + scale be.
        shift, scale = shift.astype(jnp.float32), scale.astype(jnp.float32)
        # The factors first: the gradients of both need one sum over the slots, not two.
        return x * (weight * (1 + scale))[:, None] + shift[:, None]


def head_by_head(weight, shape: tuple[int, int]) -> jax.Array:
    """weight [K] as [H, K], the same for each head.

    Its gradient is thereby a sum over rows of H·K numbers, and then a small one over heads. As one
    sum over rows and heads of K numbers, which XLA makes of it without the barrier, a GPU reads it
    in short pieces, at a quarter of the speed.
    """
    return jax.lax.optimization_barrier(jnp.broadcast_to(weight, shape))


def row_major(x) -> jax.Array:
    """x [B, S, D], laid out in this order on a GPU.

    Left alone, XLA lays the stream out as [B, D, S], for the sake of the sums over S, and copies
    what is to be summed into that order, in float32.
    """
    if platform() != 'gpu':
        return x
    mesh = jax.sharding.get_abstract_mesh()

    def constrained(x):
        return with_layout_constraint(x, Layout(major_to_minor=(0, 1, 2)))

    shards = mesh.shape['data'] * mesh.shape['fsdp']
    if shards == 1:
        return constrained(x)
    if len(x) % shards:
        return x
    # The partitioner cannot split a constraint, and would gather all rows for it. So each device
    # lays out its own.
    return jax.shard_map(constrained, in_specs=BATCH, out_specs=BATCH, check_vma=False)(x)


def swiglu(x) -> jax.Array:
    """silu(x₁)·x₂ of x [..., 2, F]: float32 [..., F]."""
    x = x.astype(jnp.float32)
    return jax.nn.silu(x[..., 0, :]) * x[..., 1, :]


class PatchEmbed(nn.Module):
    """Patches [B, n, P] of an h×w grid → tokens [B, n, D]: a bottleneck, then row + column
    entry.
    """

    width: int
    bottleneck: int
    tables: str
    freeze: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, patches, h: int, w: int):
        x = Linear((self.bottleneck,), use_bias=False, dtype=self.dtype, name='pixels')(patches)
        x = Linear((self.width,), dtype=self.dtype, name='out')(by_rows(x))
        if self.tables == 'sincos':
            row_table, col_table = sincos_tables(self.width)
        else:
            row_table = col_table = np.zeros((GRID, self.width))
        rows = self.param('rows', lambda key: jnp.asarray(row_table, jnp.float32))
        cols = self.param('cols', lambda key: jnp.asarray(col_table, jnp.float32))
        positions = (rows[:h, None] + cols[None, :w]).reshape(h * w, self.width)
        if self.freeze:
            positions = jax.lax.stop_gradient(positions)
        return (x.astype(jnp.float32) + positions).astype(self.dtype)


def sincos_tables(width: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column tables [16, D] whose sums are the published 2-D sin-cos table.

    The first half of the channels encodes the column, the second the row, each as [sin | cos].
    """
    omega = 10000.0 ** -(np.arange(width // 4) / (width / 4))
    angles = np.arange(GRID)[:, None] * omega
    half = np.concatenate([np.sin(angles), np.cos(angles)], 1)
    zero = np.zeros_like(half)
    return np.concatenate([zero, half], 1), np.concatenate([half, zero], 1)


def time_features(t, size: int = 256) -> jax.Array:
    """t [B] in [0, 1], not scaled → [B, size] of [cos | sin] with periods up to 10000."""
    frequency = jnp.exp(-math.log(10000) * jnp.arange(size // 2) / (size // 2))
    angles = t.astype(jnp.float32)[:, None] * frequency
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)
