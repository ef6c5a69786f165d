"""One block of the network, and what it keeps for its backward pass.

The block is the published one (arXiv 2511.13720 and its official code).
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.nn import initializers

from jit_jax.model import attention
from jit_jax.model.layers import PRODUCT, Linear, RMSNorm, product, row_major, swiglu, xavier
from jit_jax.model.sharding import by_rows, split_by_tensor
from jit_jax.model.sizes import hidden_width

# What a block can keep for its backward pass, by name, and the bytes of a slot in units of the
# width. Each is rounded to the model's dtype, or is the residual stream itself; what lies between
# them, in float32, is cheap and is computed again next to where it is used. Of the products, which
# are named in `layers.py`: 3 + 1 + 16/3 + 1, of qkv, proj, w12 and w3.
STREAM = 'stream'  # 1, or 2 in float32: the stream between attention and SwiGLU
HIDDEN = 'hidden'  # 8/3, of SwiGLU
MASK = 'mask'  # 1/2 and 4/3, of dropout after attention and inside SwiGLU, in bytes
REMAT = {
    'none': (PRODUCT, STREAM, HIDDEN, attention.KEPT),
    'dots': (PRODUCT, MASK, attention.KEPT),
    'full': (),
}


def kept_by(remat: str) -> Callable:
    """The rematerialisation policy of a block: a key of REMAT as `jax.checkpoint` wants it."""
    names = jax.checkpoint_policies.save_only_these_names(*REMAT[remat])

    def keep(primitive, *arguments, **parameters) -> bool:
        # cuDNN's forward pass returns its log-sum-exp beside what bears a name; without it, it
        # would run twice.
        if attention.KEPT in REMAT[remat] and 'dot_product_attention_fwd' in primitive.name:
            return True
        return names(primitive, *arguments, **parameters)

    return keep


class Block(nn.Module):
    """One transformer block: adaLN-Zero around attention and around SwiGLU."""

    heads: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, modulation, layout: attention.Layout):
        """x [B, S, D], modulation [B or 1, 6, D], the layout of x's slots → [B, S, D]."""
        x = row_major(by_rows(x))
        B, S, D = x.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation[:, i] for i in range(6))
        F = hidden_width(D)
        # GPUs multiply 16-bit matrices in eights: XLA would pad every slot, not the weights.
        padding = -F % 8 if self.dtype == jnp.bfloat16 else 0

        h = RMSNorm(name='norm1')(x, shift1, scale1)
        h = Linear((3, self.heads, D // self.heads), dtype=self.dtype, name='qkv')(h)
        q, k, v = jnp.unstack(h, axis=2)  # each [B, S, H, K]
        q = attention.rotate(RMSNorm(name='q_norm')(q), layout.cos, layout.sin)
        k = attention.rotate(RMSNorm(name='k_norm')(k), layout.cos, layout.sin)
        h = attention.attend(q, k, v, layout)
        h = h.reshape(B, S, D)
        h = GatedLinear(D, self.dtype, name='proj')(h, gate1)
        x = checkpoint_name(row_major(add(x, self._drop(h))), STREAM)

        h = RMSNorm(name='norm2')(x, shift2, scale2)
        h = Linear((2, F), padding=padding, dtype=self.dtype, name='w12')(h)
        h = swiglu(h)
        h = checkpoint_name(self._drop(h).astype(self.dtype), HIDDEN)
        return add(x, GatedLinear(D, self.dtype, padding=padding, name='w3')(h, gate2))

    def _drop(self, h) -> jax.Array:
        """h with a share of `dropout` of its numbers zero, and the others larger by as much."""
        if not self.dropout:
            return h
        kept = 1 - self.dropout
        mask = jax.random.bernoulli(self.make_rng('dropout'), kept, h.shape)
        return jnp.where(checkpoint_name(mask, MASK), h / kept, 0)


class GatedLinear(nn.Module):
    """The end of a branch: x [B, S, F], gate [B or 1, D] → gate·(x·kernel + bias), float32.

    padding: of the F inputs, how many at the end are padding.
    """

    width: int
    dtype: jnp.dtype
    padding: int = 0

    @nn.compact
    def __call__(self, x, gate):
        bias = self.param('bias', initializers.zeros, (self.width,))
        kernel = self.param('kernel', xavier, (x.shape[-1] - self.padding, self.width))
        kernel = jnp.pad(kernel, ((0, self.padding), (0, 0)))
        h = product(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], self.width)
        h = checkpoint_name(h, PRODUCT).astype(jnp.float32)
        # The bias times the gate first: its gradient then needs the same sum over the slots as the
        # gate's, not one of its own over all rows.
        return gate[:, None] * h + (gate * bias)[:, None]


def add(x, h) -> jax.Array:
    """The residual stream x and a float32 branch h, added in float32, in x's dtype."""
    return (x.astype(jnp.float32) + h).astype(x.dtype)


def modulation_of(c, kernel, bias) -> jax.Array:
    """What time and label say to one block: c [B or 1, D] → float32 [B or 1, 6, D]."""
    width = kernel.shape[0]
    if not split_by_tensor():  # as in `Linear`
        kernel = kernel.reshape(width, -1)
    h = checkpoint_name(product(c, kernel), PRODUCT).reshape(-1, 6, width)
    return h.astype(jnp.float32) + bias


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def init_blocks(key, depth: int, width: int, heads: int, dtype) -> dict:
    """The parameters of all blocks, stacked: leaves [depth, …].

    A program of its own: Flax asks for their shapes whenever a model is applied, and JAX then has
    them from the first time.
    """
    x = jnp.zeros((1, 1, width), dtype)
    _, layout = attention.prepare(x, None, np.zeros((1, 2)), 'xla', width // heads)
    block = Block(heads, 0.0, dtype, parent=None)

    def init(key):
        return block.init(key, x, jnp.zeros((1, 6, width)), layout)['params']

    return jax.vmap(init)(jax.random.split(key, depth))
