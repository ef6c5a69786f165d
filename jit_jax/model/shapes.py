"""Shapes that the network takes; all else is a UserError in one sentence.

`net` is a `JiT`.
"""

import math

import jax.numpy as jnp

from jit_jax.errors import UserError
from jit_jax.model import sequence


def check_images(net, z, cond, cond_valid) -> None:
    """Raises UserError for images whose shapes do not fit the model or each other."""
    B = len(z)
    shape = [net.image_size, net.image_size, net.channels]
    if list(z.shape[1:]) != shape:
        size = ', '.join(map(str, shape))
        raise UserError(f'z is [B, {size}] for this model; got {list(z.shape)}.')
    n = 0
    if cond is not None:
        n = math.prod(sequence.condition_grid(cond.shape, net.patch))
        if cond.shape[0] != B or cond.shape[3] != net.channels:
            raise UserError(
                f'cond is [B, Hc, Wc, C] with the batch and channels of z {list(z.shape)}; '
                f'got {list(cond.shape)}.'
            )
    if cond_valid is not None and cond_valid.shape != (B, n):
        raise UserError(
            f'cond_valid is [B, n] = [{B}, {n}], one flag a condition patch; '
            f'got {list(cond_valid.shape)}.'
        )


def check_tokens(net, B: int, tokens, valid) -> None:
    """Raises UserError for tokens that do not fit the model, or flags that do not fit them."""
    m = 0
    if tokens is not None:
        if not net.token_width:
            raise UserError('cond_tokens was given to a model without tokens; set token_width.')
        m = tokens.shape[1] if tokens.ndim > 1 else 0
        shape = (B, m) if net.vocabulary else (B, m, net.token_width)
        are_numbers = jnp.issubdtype(tokens.dtype, jnp.integer)
        if tokens.shape != shape or are_numbers != (net.vocabulary > 0):
            kind = 'whole numbers [B, m]' if net.vocabulary else 'embeddings [B, m, E]'
            raise UserError(
                f'cond_tokens is {kind} = {list(shape)} for this model; '
                f'got {tokens.dtype} {list(tokens.shape)}.'
            )
    if valid is not None and valid.shape != (B, m):
        raise UserError(
            f'cond_tokens_valid is [B, m] = [{B}, {m}], one flag a token; got {list(valid.shape)}.'
        )
