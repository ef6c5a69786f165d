"""Conditions, made on the device: pure functions (x, batch, key) → what the model is told about x.

x is float32 [B, H, W, C] in [−1, 1]; `batch` holds what the data set ships beside the image. The result is a dict
of keyword arguments of `JiT.__call__`: `cond` [B, Hc, Wc, C], `cond_valid` bool [B, n], `label` int32 [B].
"""

import math

import jax
import jax.numpy as jnp

from jit_jax.sequence import GRID, condition_grid, patchify, unpatchify


def super_resolution(x, batch, key, *, factor: int):
    """x made `factor` times smaller, antialiased bicubic: a grid of (16 / factor)² patches, all live."""
    B, H, W, C = x.shape
    return {'cond': jax.image.resize(x, (B, H // factor, W // factor, C), 'cubic', antialias=True)}


def inpaint(x, batch, key, *, hole: tuple[int, int]):
    """x with a rectangle cut out, of hole[0] to hole[1] patches along each side; its patches are dead slots."""
    B = len(x)
    low, high = hole
    size_key, corner_key = jax.random.split(key)
    size = jax.random.randint(size_key, (B, 2), low, high + 1)
    corner = jnp.floor(jax.random.uniform(corner_key, (B, 2)) * (GRID - size + 1)).astype(jnp.int32)
    at = jnp.arange(GRID)
    inside = (at >= corner[:, :, None]) & (at < (corner + size)[:, :, None])  # [B, 2, 16]
    valid = ~(inside[:, 0, :, None] & inside[:, 1, None, :]).reshape(B, GRID * GRID)
    return {'cond': x, 'cond_valid': valid}


def class_label(x, batch, key):
    """The class of each image, as the published class tokens."""
    return {'label': batch['label']}


def paired(x, batch, key):
    """The image that the data set pairs with x: sketch, radar, damaged photograph …"""
    return {'cond': from_uint8(batch['cond'])}


KINDS = {'super_resolution': super_resolution, 'inpaint': inpaint, 'class': class_label, 'paired': paired}


def from_uint8(images):
    """uint8 → float32 in [−1, 1]."""
    return jnp.asarray(images, jnp.float32) / 127.5 - 1


def drop(condition: dict, key, rate: float, *, p: int, null_class: int) -> dict:
    """Each row loses its whole condition with probability `rate`: dead patches (of p pixels), the null class."""
    B = len(next(iter(condition.values())))
    lost = jax.random.bernoulli(key, rate, (B,))
    condition = dict(condition)
    if 'cond' in condition:
        n = math.prod(condition_grid(condition['cond'].shape, p))
        valid = condition.get('cond_valid', jnp.ones((B, n), bool))
        condition['cond_valid'] = valid & ~lost[:, None]
    if 'label' in condition:
        condition['label'] = jnp.where(lost, null_class, condition['label'])
    return condition


def null(condition: dict, null_class: int) -> dict:
    """The same rows without their condition, for the null branch of guidance: no patches at all, the null class."""
    return {'label': jnp.full_like(condition['label'], null_class)} if 'label' in condition else {}


def picture(condition: dict, image_size: int, p: int):
    """A condition image as a person looks at it: at the target's size, dead patches grey. float32, or None."""
    if 'cond' not in condition:
        return None
    cond = condition['cond']
    if 'cond_valid' in condition:
        h, w = condition_grid(cond.shape, p)
        cond = unpatchify(jnp.where(condition['cond_valid'][:, :, None], patchify(cond, p), 0), p, h, w)
    return jax.image.resize(cond, (len(cond), image_size, image_size, cond.shape[-1]), 'nearest')
