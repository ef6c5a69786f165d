"""Tokens of a text, or of any other encoder, on their way into the condition slots."""

import flax.linen as nn
import jax.numpy as jnp
from flax.linen import initializers

from jit_jax.model.layers import Linear
from jit_jax.model.sequence import COND
from jit_jax.model.sharding import by_rows


class TokenEmbed(nn.Module):
    """Condition tokens, in order → [B, m, D]: a product, then the entry of a learned table.

    token_width: E, of the embeddings that come in. vocabulary: V, where numbers from 0 to V − 1
    come in instead, whose embeddings [V, E] are learned here; 0: none.
    """

    width: int
    token_width: int
    vocabulary: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens):
        """tokens: float [B, m, E], or int [B, m] with a vocabulary; m at most 256."""
        normal = initializers.normal(0.02)
        positions = self.param('positions', normal, (COND.stop, self.width))
        if self.vocabulary:
            tokens = self.param('table', normal, (self.vocabulary, self.token_width))[tokens]
        x = Linear((self.width,), dtype=self.dtype, name='out')(by_rows(tokens))
        return (x.astype(jnp.float32) + positions[: x.shape[1]]).astype(self.dtype)
