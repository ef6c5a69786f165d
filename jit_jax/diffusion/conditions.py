"""Conditions, made on the device: pure functions (x, batch, key) → conditioning, the keywords the
model gets about x.

x is float32 [B, H, H, C] in [−1, 1]; `batch` holds what the data set ships beside the image, on the
device. Conditioning is a dict of keywords of `JiT.__call__`: `cond` [B, Hc, Wc, C], `cond_valid`
bool [B, n], `label` int32 [B], `cond_tokens` … To add a condition, write such a function and name
it in KINDS; `config.condition.kind` then takes it.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial

import jax
import jax.numpy as jnp

from jit_jax.diffusion import references as several
from jit_jax.diffusion.degradations import degrade
from jit_jax.errors import UserError, did_you_mean
from jit_jax.model.sequence import GRID, condition_grid, patch_size, patchify, unpatchify

Conditioning = dict[str, jax.Array | tuple[jax.Array, ...]]
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in PIL's mode L


def super_resolution(x, batch, key, *, factor: int) -> Conditioning:
    """x made `factor` times smaller, antialiased bicubic: a grid of (16 / factor)² patches, all
    live.
    """
    B, H, W, C = x.shape
    return {'cond': jax.image.resize(x, (B, H // factor, W // factor, C), 'cubic', antialias=True)}


def grayscale(x, batch, key) -> Conditioning:
    """The luminance of x in all its channels: the model colours it."""
    return {'cond': jnp.broadcast_to(_luminance(x), x.shape)}


def edges(x, batch, key) -> Conditioning:
    """The Sobel gradient's size, white on black: the model paints between the lines."""
    y = jnp.pad(_luminance(x)[..., 0], ((0, 0), (1, 1), (1, 1)), mode='edge')  # [B, H + 2, W + 2]
    down = _slope(_smooth(y, axis=2), axis=1)
    across = _slope(_smooth(y, axis=1), axis=2)
    size = jnp.hypot(across, down)[:, 1:-1, 1:-1, None]  # 0 … 8 for a full step
    return {'cond': jnp.broadcast_to(jnp.clip(size / 2, 0, 2) - 1, x.shape)}


def degraded(x, batch, key, *, degradations: int, strength: tuple[float, float]) -> Conditioning:
    """x as a bad camera and a bad file leave it: blurred, of a lower resolution, noisy, in blocks.

    degradations: how often these follow each other, 1 or 2. strength: (low, high), drawn between
    for each row; 0 leaves x as it is. See `degradations.py`.
    """
    return {'cond': degrade(x, key, times=degradations, strength=strength)}


def _smooth(y, axis: int):
    """y weighted 1, 2, 1 along an axis."""
    return jnp.roll(y, -1, axis) + 2 * y + jnp.roll(y, 1, axis)


def _slope(y, axis: int):
    """The difference of the two neighbours along an axis."""
    return jnp.roll(y, -1, axis) - jnp.roll(y, 1, axis)


def inpaint(x, batch, key, *, hole: tuple[int, int]) -> Conditioning:
    """x with a rectangle cut out, of hole[0] to hole[1] patches along each side."""
    return _with_hole(x, _rectangle(key, len(x), *hole))


def outpaint(x, batch, key, *, hole: tuple[int, int]) -> Conditioning:
    """What `inpaint` cuts out, and nothing else: the model paints around it."""
    return _with_hole(x, ~_rectangle(key, len(x), *hole))


def half(x, batch, key) -> Conditioning:
    """x without its top, bottom, left or right half."""
    side = jax.random.randint(key, (len(x), 1, 1), 0, 4)
    first = jnp.arange(GRID) < GRID // 2
    top = jnp.broadcast_to(first[:, None], (GRID, GRID))
    left = jnp.broadcast_to(first, (GRID, GRID))
    hole = jnp.select([side == 0, side == 1, side == 2], [top, ~top, left], ~left)
    return _with_hole(x, hole)


def patches(x, batch, key) -> Conditioning:
    """x without 25 to 90 % of its patches, taken at random."""
    share_key, which_key = jax.random.split(key)
    share = jax.random.uniform(share_key, (len(x), 1, 1), minval=0.25, maxval=0.9)
    hole = jax.random.uniform(which_key, (len(x), GRID, GRID)) < share
    return _with_hole(x, hole)


def strokes(x, batch, key, *, corners: int = 6) -> Conditioning:
    """x without what lies under a free-form brush stroke: a line through random corners, 1 to 2
    patches wide.
    """
    corner_key, width_key = jax.random.split(key)
    ends = jax.random.uniform(corner_key, (len(x), corners, 1, 1, 2), maxval=GRID - 1.0)
    a, b = ends[:, :-1], ends[:, 1:]  # [B, corners − 1, 1, 1, 2]
    rows, cols = jnp.meshgrid(jnp.arange(GRID), jnp.arange(GRID), indexing='ij')
    at = jnp.stack([rows, cols], -1)  # [16, 16, 2]
    length = jnp.maximum(((b - a) ** 2).sum(-1), 1e-6)
    along = jnp.clip(
        ((at - a) * (b - a)).sum(-1) / length, 0, 1
    )  # of the nearest point on each line
    distance = jnp.linalg.norm(at - a - along[..., None] * (b - a), axis=-1).min(1)
    width = jax.random.uniform(width_key, (len(x), 1, 1), minval=1.0, maxval=2.0)
    return _with_hole(x, distance < width / 2)


def class_label(x, batch, key) -> Conditioning:
    """The class of each image, as the published class tokens."""
    return {'label': batch['label']}


def pairs(x, batch, key) -> Conditioning:
    """The images that the data set pairs with x: sketch, radar, damaged photograph …

    The first lies over x; others, of cond2/, cond3/ …, are references.
    """
    first, *others = paired(batch)
    return {'cond': first, 'references': others} if others else {'cond': first}


def references(x, batch, key) -> Conditioning:
    """The images that the data set pairs with x, all as references."""
    return {'references': paired(batch)}


def paired(batch) -> list[jax.Array]:
    """The condition images of a batch, float32 in [−1, 1], in order: cond, cond2, cond3 …"""
    names = sorted((name for name in batch if name.startswith('cond')), key=_number)
    return [from_uint8(batch[name]) for name in names]


def _number(name: str) -> int:
    return int(name.removeprefix('cond') or 1)


def text(x, batch, key) -> Conditioning:
    """What is said about x: the bytes of a caption, or embeddings that were made of it."""
    tokens, count = batch['tokens'], batch['token_count']
    are_numbers = jnp.issubdtype(tokens.dtype, jnp.integer)
    tokens = tokens.astype(jnp.int32 if are_numbers else jnp.float32)
    live = jnp.arange(tokens.shape[1]) < count[:, None]
    return {'cond_tokens': tokens, 'cond_tokens_valid': live}


PAIRED = {'pairs', 'references'}  # with what the data set has for each image
CUT = ('inpaint', 'outpaint', 'half', 'patches', 'strokes')  # live patches are those of x itself
KINDS = {
    'super_resolution': super_resolution,
    'grayscale': grayscale,
    'edges': edges,
    'degraded': degraded,
    'inpaint': inpaint,
    'outpaint': outpaint,
    'half': half,
    'patches': patches,
    'strokes': strokes,
    'class': class_label,
    'pairs': pairs,
    'references': references,
    'text': text,
}


def parse(kind: str) -> list[list[str]]:
    """A kind of condition as options of names: 'inpaint|edges+class' → [['inpaint'], ['edges',
    'class']].

    'none' has no options. Names joined by + condition a row together; | separates options, one for
    each row. Raises UserError for a name that is not in KINDS.
    """
    if kind == 'none':
        return []
    options = [option.split('+') for option in kind.split('|')]
    for option in options:
        for name in option:
            if name not in KINDS:
                raise UserError(_no_such_kind(name))
    return options


def _no_such_kind(name: str) -> str:
    there = (
        f'there are none, {", ".join(KINDS)}, joined by + (both) or | (either), and what '
        '--import=MODULE brings.'
    )
    hint = did_you_mean(name, KINDS, there)
    return f'config.condition.kind: there is no condition {name!r}; {hint}'


def kinds(kind: str) -> set[str]:
    """Every name of KINDS in `kind`, wherever it stands."""
    return {name for option in parse(kind) for name in option}


SETTINGS = (
    'factor',
    'hole',
    'degradations',
    'strength',
    'reference_factor',
)  # keys of config.condition that `make` takes


@lru_cache  # One function for one condition, so that a program which takes it is compiled once.
def make(
    kind: str,
    *,
    factor: int = 2,
    hole: tuple[int, int] = (4, 12),
    degradations: int = 1,
    strength: tuple[float, float] = (0.0, 1.0),
    reference_factor: int = 2,
) -> Callable:
    """(x, batch, key) → the conditioning of `kind`.

    factor: of super_resolution; hole: of inpaint and outpaint; degradations and strength: of
    degraded; reference_factor: how many times smaller each of several images is.
    """
    settings = {
        'super_resolution': {'factor': factor},
        'inpaint': {'hole': hole},
        'outpaint': {'hole': hole},
        'degraded': {'degradations': degradations, 'strength': strength},
    }
    options = []
    for names in parse(kind):
        options.append([partial(KINDS[name], **settings.get(name, {})) for name in names])

    def condition(x, batch, key) -> Conditioning:
        made = []
        for i, option in enumerate(options):
            parts = []
            for j, one in enumerate(option):
                parts.append(one(x, batch, jax.random.fold_in(key, i * 16 + j)))
            made.append(several.together(parts, factor=reference_factor, side=x.shape[1]))
        if not made:
            return {}
        if len(made) == 1:
            return made[0]
        return _either(made, choose(len(made), key, len(x)), x)

    return condition


def choose(options: int, key, rows: int) -> jax.Array:
    """Which of the options joined by | each row gets under a key of `make`'s function: int32
    [rows].
    """
    return jax.random.randint(jax.random.fold_in(key, 255), (rows,), 0, options)


def _either(made: list[Conditioning], choice, x) -> Conditioning:
    """Row by row the option that `choice` [B] names."""
    merged = {}
    if any('cond' in one for one in made):
        merged |= _either_image(made, choice, x)
    if any('label' in one for one in made):
        none = jnp.zeros(len(x), jnp.int32)
        merged['label'] = _pick([one.get('label', none) for one in made], choice)
        merged['label_valid'] = jnp.asarray(['label' in one for one in made])[choice]
    if any('references' in one for one in made):
        merged |= several.either(made, choice, x.shape[1])
    if any('cond_tokens' in one for one in made):
        merged |= _either_tokens(made, choice)
    return merged


def _either_tokens(made: list[Conditioning], choice) -> Conditioning:
    """Tokens of several kinds, of one width, in one array; dead in options without."""
    having = [one['cond_tokens'] for one in made if 'cond_tokens' in one]
    B, m = len(choice), max(tokens.shape[1] for tokens in having)
    tokens, valid = [], []
    for one in made:
        own = one.get('cond_tokens', having[0][:, :0])
        live = one.get('cond_tokens_valid', jnp.ones(own.shape[:2], bool))
        short = (0, m - own.shape[1])
        tokens.append(jnp.pad(own, [(0, 0), short] + [(0, 0)] * (own.ndim - 2)))
        valid.append(jnp.pad(live.reshape(B, -1), [(0, 0), short]))
    return {'cond_tokens': _pick(tokens, choice), 'cond_tokens_valid': _pick(valid, choice)}


def _pick(arrays: list, choice):
    """Row b of the array that choice[b] names."""
    return jnp.stack(arrays)[choice, jnp.arange(len(choice))]


def _either_image(made: list[Conditioning], choice, x) -> Conditioning:
    """Condition images of several grids in one array: smaller ones lie at the top left of the
    largest.
    """
    B, _, _, C = x.shape
    p = patch_size(x.shape[1])
    grids = [condition_grid(one['cond'].shape, p) if 'cond' in one else (0, 0) for one in made]
    rows = max(h for h, _ in grids)
    cols = max(w for _, w in grids)
    images, valid = [], []
    for one, (h, w) in zip(made, grids):
        image = one.get('cond', jnp.zeros((B, 0, 0, C)))
        live = one.get('cond_valid', jnp.ones((B, h * w), bool)).reshape(B, h, w)
        below, right = rows - h, cols - w
        images.append(jnp.pad(image, ((0, 0), (0, below * p), (0, right * p), (0, 0))))
        live = jnp.pad(live, ((0, 0), (0, below), (0, right)))
        valid.append(live.reshape(B, rows * cols))
    merged = {'cond': _pick(images, choice), 'cond_valid': _pick(valid, choice)}
    if len(set(grids) - {(0, 0)}) > 1:
        own = [(max(h, 1), max(w, 1)) for h, w in grids]
        merged['cond_grid'] = jnp.asarray(own)[choice]
    return merged


def drop(conditioning: Conditioning, key, rate: float, *, p: int, null_class: int) -> Conditioning:
    """Takes its whole condition from each row with probability `rate`.

    Patches (of p pixels a side) and tokens become dead, labels the null class.
    """
    B = len(jax.tree.leaves(conditioning)[0])
    lost = jax.random.bernoulli(key, rate, (B,))
    kept = dict(conditioning)
    if 'cond' in kept:
        n = math.prod(condition_grid(kept['cond'].shape, p))
        valid = kept.get('cond_valid', jnp.ones((B, n), bool))
        kept['cond_valid'] = valid & ~lost[:, None]
    if 'references' in kept:
        kept['references_valid'] = several.flags(kept, p * GRID) & ~lost[:, None]
    if 'cond_tokens' in kept:
        valid = kept.get('cond_tokens_valid', jnp.ones(kept['cond_tokens'].shape[:2], bool))
        kept['cond_tokens_valid'] = valid & ~lost[:, None]
    if 'label' in kept:
        kept['label'] = jnp.where(lost, null_class, kept['label'])
    return kept


def null(conditioning: Conditioning, null_class: int) -> Conditioning:
    """The same rows without their condition, for the null branch of guidance.

    No patches or tokens at all, and the null class for rows with a label.
    """
    if 'label' not in conditioning:
        return {}
    nulls = {'label': jnp.full_like(conditioning['label'], null_class)}
    if 'label_valid' in conditioning:
        nulls['label_valid'] = conditioning['label_valid']
    return nulls


def picture(conditioning: Conditioning, image_size: int) -> jax.Array | None:
    """The condition images for people: float32 [B, H, H, C], enlarged, dead patches grey; or
    None.
    """
    if 'cond' not in conditioning:
        return None
    cond = jnp.asarray(conditioning['cond'])
    B, p = len(cond), patch_size(image_size)
    h, w = condition_grid(cond.shape, p)
    if 'cond_valid' in conditioning:
        live = conditioning['cond_valid'][:, :, None]
        cond = unpatchify(jnp.where(live, patchify(cond, p), 0), p, h, w)
    grid = jnp.asarray(conditioning.get('cond_grid', [[h, w]] * B))  # [B, 2]
    at = jnp.arange(image_size)
    rows = at * grid[:, :1] // GRID  # [B, H], of the nearest neighbour
    cols = at * grid[:, 1:] // GRID
    return cond[jnp.arange(B)[:, None, None], rows[:, :, None], cols[:, None, :]]


def from_uint8(images) -> jax.Array:
    """uint8 → float32 in [−1, 1]."""
    return jnp.asarray(images, jnp.float32) / 127.5 - 1


def _luminance(x):
    """[B, H, W, C] → [B, H, W, 1]; of one channel, itself."""
    if x.shape[-1] == 1:
        return x
    return (x * jnp.asarray(LUMA)).sum(-1, keepdims=True)


def _with_hole(x, hole) -> Conditioning:
    """x with the patches of `hole` bool [B, 16, 16] as dead slots."""
    return {'cond': x, 'cond_valid': ~hole.reshape(len(x), GRID * GRID)}


def _rectangle(key, B: int, low: int, high: int):
    """bool [B, 16, 16]: a rectangle of low to high patches along each side, anywhere in the
    picture.
    """
    size_key, corner_key = jax.random.split(key)
    size = jax.random.randint(size_key, (B, 2), low, high + 1)
    corner = jnp.floor(jax.random.uniform(corner_key, (B, 2)) * (GRID - size + 1)).astype(jnp.int32)
    at = jnp.arange(GRID)
    inside = (at >= corner[:, :, None]) & (at < (corner + size)[:, :, None])  # [B, 2, 16]
    return inside[:, 0, :, None] & inside[:, 1, None, :]
