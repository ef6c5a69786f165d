"""Conditions, made on the device: pure functions (x, batch, key) → what the model is told about x.

x is float32 [B, H, H, C] in [−1, 1]; `batch` holds what the data set ships beside the image, on the device. The
result is a dict of keywords of `JiT.__call__`: `cond` [B, Hc, Wc, C], `cond_valid` bool [B, n], `label` int32 [B] …
To add a condition, write such a function and name it in KINDS; `config.condition.kind` then takes it.
"""

import difflib
import math
from collections.abc import Callable
from functools import lru_cache, partial

import jax
import jax.numpy as jnp

from jit_jax.model.sequence import GRID, condition_grid, patch_size, patchify, unpatchify

Conditioning = dict[str, jax.Array]
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in PIL's mode L


def super_resolution(x, batch, key, *, factor: int) -> Conditioning:
    """x made `factor` times smaller, antialiased bicubic: a grid of (16 / factor)² patches, all live."""
    B, H, W, C = x.shape
    return {'cond': jax.image.resize(x, (B, H // factor, W // factor, C), 'cubic', antialias=True)}


def grayscale(x, batch, key) -> Conditioning:
    """The luminance of x in all its channels: the model colours it."""
    return {'cond': jnp.broadcast_to(_luminance(x), x.shape)}


def edges(x, batch, key) -> Conditioning:
    """The Sobel gradient's size, white on black: the model paints between the lines."""
    y = jnp.pad(_luminance(x)[..., 0], ((0, 0), (1, 1), (1, 1)), mode='edge')
    smooth = lambda y, axis: sum(w * jnp.roll(y, s, axis) for w, s in ((1, -1), (2, 0), (1, 1)))
    slope = lambda y, axis: jnp.roll(y, -1, axis) - jnp.roll(y, 1, axis)
    size = jnp.hypot(slope(smooth(y, 1), 2), slope(smooth(y, 2), 1))[
        :, 1:-1, 1:-1, None
    ]  # 0 … 8 for a full step
    return {'cond': jnp.broadcast_to(jnp.clip(size / 2, 0, 2) - 1, x.shape)}


def inpaint(x, batch, key, *, hole: tuple[int, int]) -> Conditioning:
    """x with a rectangle cut out, of hole[0] to hole[1] patches along each side."""
    return _with_hole(x, _rectangle(key, len(x), *hole))


def outpaint(x, batch, key, *, hole: tuple[int, int]) -> Conditioning:
    """What `inpaint` cuts out, and nothing else: the model paints around it."""
    return _with_hole(x, ~_rectangle(key, len(x), *hole))


def half(x, batch, key) -> Conditioning:
    """x without its top, bottom, left or right half."""
    side = jax.random.randint(key, (len(x), 1, 1), 0, 4)
    row, col = jnp.arange(GRID)[:, None] < GRID // 2, jnp.arange(GRID) < GRID // 2
    row, col = jnp.broadcast_arrays(row, col)
    return _with_hole(x, jnp.select([side == 0, side == 1, side == 2], [row, ~row, col], ~col))


def patches(x, batch, key) -> Conditioning:
    """x without 25 to 90 % of its patches, taken at random."""
    share_key, which_key = jax.random.split(key)
    share = jax.random.uniform(share_key, (len(x), 1, 1), minval=0.25, maxval=0.9)
    return _with_hole(x, jax.random.uniform(which_key, (len(x), GRID, GRID)) < share)


def strokes(x, batch, key, *, corners: int = 6) -> Conditioning:
    """x without what lies under a free-form brush stroke: a line through random corners, 1 to 2 patches wide."""
    corner_key, width_key = jax.random.split(key)
    ends = jax.random.uniform(corner_key, (len(x), corners, 1, 1, 2), maxval=GRID - 1.0)
    a, b = ends[:, :-1], ends[:, 1:]  # [B, corners − 1, 1, 1, 2]
    at = jnp.stack(
        jnp.meshgrid(jnp.arange(GRID), jnp.arange(GRID), indexing='ij'), -1
    )  # [16, 16, 2]
    along = jnp.clip(((at - a) * (b - a)).sum(-1) / jnp.maximum(((b - a) ** 2).sum(-1), 1e-6), 0, 1)
    distance = jnp.linalg.norm(at - a - along[..., None] * (b - a), axis=-1).min(1)
    width = jax.random.uniform(width_key, (len(x), 1, 1), minval=1.0, maxval=2.0)
    return _with_hole(x, distance < width / 2)


def class_label(x, batch, key) -> Conditioning:
    """The class of each image, as the published class tokens."""
    return {'label': batch['label']}


def pairs(x, batch, key) -> Conditioning:
    """The image that the data set pairs with x: sketch, radar, damaged photograph …"""
    return {'cond': from_uint8(batch['cond'])}


KINDS = {
    'super_resolution': super_resolution,
    'grayscale': grayscale,
    'edges': edges,
    'inpaint': inpaint,
    'outpaint': outpaint,
    'half': half,
    'patches': patches,
    'strokes': strokes,
    'class': class_label,
    'pairs': pairs,
}


def parse(kind: str) -> list[list[str]]:
    """'none', or kinds joined by + (told together) and | (one for each row): 'inpaint|edges' → [['inpaint'], ['edges']].

    Raises ValueError for a name that is not in KINDS.
    """
    options = [] if kind == 'none' else [option.split('+') for option in kind.split('|')]
    for name in (name for option in options for name in option):
        if name not in KINDS:
            near = difflib.get_close_matches(name, KINDS, 1)
            hint = (
                f'did you mean {near[0]}?'
                if near
                else f'there are none, {", ".join(KINDS)}, joined by + (both) or | (either).'
            )
            raise ValueError(f'config.condition.kind: there is no condition {name!r}; {hint}')
    return options


@lru_cache  # one function for one condition, so that a program that takes it is compiled once
def kinds(kind: str) -> set[str]:
    """Every name of KINDS in `kind`, wherever it stands."""
    return {name for option in parse(kind) for name in option}


def make(kind: str, **settings) -> Callable:
    """(x, batch, key) → what `kind` tells the model. settings: the keywords of some conditions (factor, hole)."""
    wants = {'super_resolution': ('factor',), 'inpaint': ('hole',), 'outpaint': ('hole',)}
    bound = lambda name: partial(KINDS[name], **{s: settings[s] for s in wants.get(name, ())})
    options = [[bound(name) for name in option] for option in parse(kind)]

    def tell(x, batch, key) -> Conditioning:
        conditioning = []
        for i, option in enumerate(options):
            conditioning.append({})
            for j, one in enumerate(option):
                conditioning[-1] |= one(x, batch, jax.random.fold_in(key, i * 16 + j))
        if len(conditioning) < 2:
            return conditioning[0] if conditioning else {}
        return _either(
            conditioning,
            jax.random.randint(jax.random.fold_in(key, 255), (len(x),), 0, len(conditioning)),
            x,
        )

    return tell


def _either(conditioning: list[Conditioning], choice, x) -> Conditioning:
    """Row by row the option that `choice` [B] names: smaller condition images lie at the top left of the largest."""
    B, p, merged = len(x), patch_size(x.shape[1]), {}
    pick = lambda arrays: jnp.stack(arrays)[choice, jnp.arange(B)]
    if any('cond' in one for one in conditioning):
        grids = [
            condition_grid(one['cond'].shape, p) if 'cond' in one else (0, 0)
            for one in conditioning
        ]
        h, w = (max(sizes) for sizes in zip(*grids))
        images, valid = [], []
        for one, (hi, wi) in zip(conditioning, grids):
            image = one.get('cond', jnp.zeros((B, 0, 0, x.shape[-1])))
            live = one.get('cond_valid', jnp.ones((B, hi * wi), bool)).reshape(B, hi, wi)
            images.append(jnp.pad(image, ((0, 0), (0, (h - hi) * p), (0, (w - wi) * p), (0, 0))))
            valid.append(jnp.pad(live, ((0, 0), (0, h - hi), (0, w - wi))).reshape(B, h * w))
        merged = {'cond': pick(images), 'cond_valid': pick(valid)}
        if len({grid for grid in grids if grid != (0, 0)}) > 1:
            merged['cond_grid'] = jnp.asarray([(max(hi, 1), max(wi, 1)) for hi, wi in grids])[
                choice
            ]
    if any('label' in one for one in conditioning):
        merged['label'] = pick([one.get('label', jnp.zeros(B, jnp.int32)) for one in conditioning])
        merged['label_valid'] = jnp.asarray(['label' in one for one in conditioning])[choice]
    return merged


def drop(conditioning: Conditioning, key, rate: float, *, p: int, null_class: int) -> Conditioning:
    """Each row loses its whole condition with probability `rate`: dead patches (of p pixels), the null class."""
    B = len(next(iter(conditioning.values())))
    lost = jax.random.bernoulli(key, rate, (B,))
    conditioning = dict(conditioning)
    if 'cond' in conditioning:
        n = math.prod(condition_grid(conditioning['cond'].shape, p))
        conditioning['cond_valid'] = (
            conditioning.get('cond_valid', jnp.ones((B, n), bool)) & ~lost[:, None]
        )
    if 'label' in conditioning:
        conditioning['label'] = jnp.where(lost, null_class, conditioning['label'])
    return conditioning


def null(conditioning: Conditioning, null_class: int) -> Conditioning:
    """The same rows without their condition, for the null branch of guidance: no patches at all, the null class."""
    nulls = {name: conditioning[name] for name in ('label', 'label_valid') if name in conditioning}
    return nulls | {'label': jnp.full_like(conditioning['label'], null_class)} if nulls else {}


def picture(conditioning: Conditioning, image_size: int) -> jax.Array | None:
    """The condition images as a person looks at them: [B, H, H, C] float32, enlarged, dead patches grey; or None."""
    if 'cond' not in conditioning:
        return None
    cond, p = jnp.asarray(conditioning['cond']), patch_size(image_size)
    h, w = condition_grid(cond.shape, p)
    if 'cond_valid' in conditioning:
        cond = unpatchify(
            jnp.where(conditioning['cond_valid'][:, :, None], patchify(cond, p), 0), p, h, w
        )
    grid = jnp.asarray(conditioning.get('cond_grid', [[h, w]] * len(cond)))  # [B, 2]
    rows, cols = (
        jnp.arange(image_size) * grid[:, i, None] // GRID for i in (0, 1)
    )  # nearest neighbour
    return cond[jnp.arange(len(cond))[:, None, None], rows[:, :, None], cols[:, None, :]]


def from_uint8(images) -> jax.Array:
    """uint8 → float32 in [−1, 1]."""
    return jnp.asarray(images, jnp.float32) / 127.5 - 1


def _luminance(x):
    """[B, H, W, C] → [B, H, W, 1]; of one channel, itself."""
    return x if x.shape[-1] == 1 else (x * jnp.asarray(LUMA)).sum(-1, keepdims=True)


def _with_hole(x, hole) -> Conditioning:
    """x with the patches of `hole` bool [B, 16, 16] as dead slots."""
    return {'cond': x, 'cond_valid': ~hole.reshape(len(x), GRID * GRID)}


def _rectangle(key, B: int, low: int, high: int):
    """bool [B, 16, 16]: a rectangle of low to high patches along each side, anywhere in the picture."""
    size_key, corner_key = jax.random.split(key)
    size = jax.random.randint(size_key, (B, 2), low, high + 1)
    corner = jnp.floor(jax.random.uniform(corner_key, (B, 2)) * (GRID - size + 1)).astype(jnp.int32)
    at = jnp.arange(GRID)
    inside = (at >= corner[:, :, None]) & (at < (corner + size)[:, :, None])  # [B, 2, 16]
    return inside[:, 0, :, None] & inside[:, 1, None, :]
