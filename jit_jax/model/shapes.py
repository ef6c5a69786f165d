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
    n = 0 if cond is None else _patches(net, 'cond', cond, B)
    if cond_valid is not None and cond_valid.shape != (B, n):
        raise UserError(
            f'cond_valid is [B, n] = [{B}, {n}], one flag a condition patch; '
            f'got {list(cond_valid.shape)}.'
        )


def check_references(net, B: int, references, valid) -> None:
    """Raises UserError for more images than the model takes, and as `check_images`."""
    if len(references) > net.reference_images:
        raise UserError(
            f'{len(references)} references were given to a model of at most '
            f'{net.reference_images}; set reference_images.'
        )
    patches = [_patches(net, f'references[{i}]', image, B) for i, image in enumerate(references)]
    r = sum(patches)
    if valid is not None and valid.shape != (B, r):
        raise UserError(
            f'references_valid is [B, r] = [{B}, {r}], one flag a patch of each image in turn; '
            f'got {list(valid.shape)}.'
        )


def _patches(net, name: str, image, B: int) -> int:
    """The patches of a condition image. Raises UserError where it does not fit."""
    n = math.prod(sequence.condition_grid(image.shape, net.patch))
    if image.shape[0] != B or image.shape[3] != net.channels:
        raise UserError(
            f'{name} is [B, Hc, Wc, C] with the batch and channels of z, {B} and {net.channels}; '
            f'got {list(image.shape)}.'
        )
    return n


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
