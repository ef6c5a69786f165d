"""What a trained run can be asked for: conditioning of the kinds it learned, and ways to sample
that exist.

Everything else is a UserError before any compute is spent. A `prefix` of '--' names flags instead
of arguments.
"""

import math
import warnings
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jit_jax import data
from jit_jax.diffusion import conditions
from jit_jax.diffusion.samplers import SAMPLERS
from jit_jax.errors import UserError, shown
from jit_jax.model.jit import JiT
from jit_jax.model.sequence import COND, GRID, condition_grid
from jit_jax.recipe import kinds, text_encoder

NEEDS = {
    'cond_valid': 'cond',
    'cond_grid': 'cond',
    'label_valid': 'label',
    'cond_tokens_valid': 'cond_tokens',
    'references_valid': 'references',
}

BEYOND = 1.5  # further than what resizing makes of [-1, 1] at edges


def check_settings(
    *,
    steps=None,
    sampler=None,
    guidance=None,
    interval=None,
    t_eps=None,
    skip_blocks=None,
    skip_scale=None,
    skip_interval=None,
    depth: int,
    prefix: str = '',
) -> None:
    """Raises UserError for a way to sample that cannot be; None is the run's own.

    depth: how many blocks the network has.
    """
    if steps is not None:
        check_count(f'{prefix}steps', steps, 1)
    if sampler is not None and not (isinstance(sampler, str) and sampler in SAMPLERS):
        raise UserError(f'{prefix}sampler is one of {", ".join(SAMPLERS)}; got {sampler!r}.')
    if guidance is not None and not _is_finite(guidance):
        raise UserError(f'{prefix}guidance is a number, 1 for none; got {guidance!r}.')
    if t_eps is not None and not (_is_finite(t_eps) and 0 <= t_eps < 1):
        raise UserError(f'{prefix}t_eps is a number from 0 to below 1; got {t_eps!r}.')
    if skip_scale is not None and not _is_finite(skip_scale):
        raise UserError(f'{prefix}skip_scale is a number, 1 for none; got {skip_scale!r}.')
    if skip_blocks is not None:
        check_blocks(f'{prefix}skip_blocks', skip_blocks, depth)
    _check_interval(f'{prefix}interval', interval)
    _check_interval(f'{prefix}skip_interval', skip_interval)


def _check_interval(name: str, interval) -> None:
    if interval is None:
        return
    fits = isinstance(interval, (Sequence, np.ndarray)) and len(interval) == 2
    if not fits or not all(map(_is_finite, interval)) or interval[0] >= interval[1]:
        raise UserError(f'{name} is (low, high) with low < high; got {interval!r}.')


def check_blocks(name: str, blocks, depth: int) -> None:
    """Raises UserError unless these are numbers of blocks, and not of all of them."""
    fits = isinstance(blocks, (Sequence, np.ndarray)) and all(map(is_whole, blocks))
    if not fits or not set(blocks) < set(range(depth)):
        raise UserError(
            f'{name} is numbers of blocks, from 0 to {depth - 1} and not all of them; '
            f'got {blocks!r}.'
        )


def is_whole(value) -> bool:
    """Whether a value is a whole number, of Python or NumPy."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_count(name: str, value, at_least: int) -> None:
    """Raises UserError unless `value` is a whole number, `at_least` or more."""
    if not is_whole(value) or value < at_least:
        raise UserError(f'{name} is a whole number, at least {at_least}; got {shown(value)}.')


def check_conditioning(
    config: dict, net: JiT, num: int, given: dict[str, np.ndarray], *, prefix: str = ''
) -> None:
    """Raises UserError for conditioning that the run of `config` has not learned, or of another
    shape.

    Args:
      config: the run's config.json.
      net: its network.
      num: B, how many images are asked for.
      given: arrays by keyword of `JiT.__call__`, those that are given.
    """
    learned = list(kinds.options(config).values())
    if 'references' in given:
        _check_references(given['references'], learned, config, prefix, num)
    for name, rows in given.items():
        if name != 'references':
            _check_rows(name, rows, given, num, prefix)
    if 'cond' in given:
        _check_image(given, net, learned, config, prefix)
    if 'label' in given:
        _check_label(given, net, learned, config, prefix)
    if 'cond' in given and 'label' in given:
        _check_both(given, net, learned, config, prefix)
    if 'cond_tokens' in given:
        _check_tokens(given, learned, config, prefix)


def check_levels(name: str, given) -> None:
    """Raises UserError for float images far beyond [−1, 1]; warns of images without any value below
    0, which may be of another range.
    """
    images = np.asarray(given)
    if not np.issubdtype(images.dtype, np.floating) or not images.size:
        return
    low, high = images.min(), images.max()
    if not -BEYOND <= low <= high <= BEYOND:  # nor NaN
        raise UserError(
            f'{name} is float32 in [-1, 1]; got values from {low:g} to {high:g}: give uint8, or '
            'for values from 0 to 255 divide by 127.5 and subtract 1.'
        )
    if low >= 0 and high > 0:
        warnings.warn(
            f'{name} has values from {low:g} to {high:g}; -1 is black and 1 is white: for images '
            'in [0, 1] multiply by 2 and subtract 1, or give uint8.',
            stacklevel=2,
        )


def caption_tokens(
    config: dict, num: int, text: str | Sequence[str], *, prefix: str = ''
) -> dict[str, np.ndarray]:
    """Captions, one for each of `num` images or the same for all, as `cond_tokens` and
    `cond_tokens_valid`.

    Raises UserError for a run that learned no text, for other numbers of captions, and for one that
    is longer than any the run has learned.
    """
    m = kinds.text_tokens(config)
    if not m:
        raise UserError(
            f'{prefix}text: this run learned no captions '
            f'(config.condition.kind={config["condition"]["kind"]}); leave it out.'
        )
    if not isinstance(text, (str, Sequence, np.ndarray)):
        raise UserError(f'{prefix}text is a caption or several; got {shown(text)}.')
    captions = [text] * num if isinstance(text, str) else list(text)
    if len(captions) != num:
        raise UserError(
            f'{prefix}text has {len(captions)} captions for {num} images; give one each.'
        )
    for caption in captions:
        if not isinstance(caption, str):
            raise UserError(f'{prefix}text is captions; got {caption!r}.')
    if kinds.embeddings(config):
        unit, rows = 'tokens', text_encoder.embedded(config, captions, f'{prefix}text')
    else:
        unit, rows = 'bytes', [_bytes_of(caption) for caption in captions]
    for caption, row in zip(captions, rows, strict=True):
        if len(row) > m:
            raise UserError(
                f'{prefix}text: {caption!r} is {len(row)} {unit}, and this run learned at most '
                f'{m}; shorten it.'
            )
    batch = data.padded(rows, m)
    return {name: np.asarray(array) for name, array in conditions.text(None, batch, None).items()}


def _bytes_of(caption: str) -> np.ndarray:
    return np.frombuffer(data.encode_caption(caption), np.uint8)


def check_guidance(config: dict, guidance: float | None, given: dict, *, prefix: str = '') -> None:
    """Raises UserError for guidance that is asked for where it does nothing, or was never
    learned.
    """
    condition = config['condition']
    if guidance in (None, 1):
        return
    if condition['kind'] == 'none':
        raise UserError(
            f'{prefix}guidance: this run learned no condition, so there is nothing to follow; '
            'leave it out.'
        )
    if condition.get('drop') == 0:
        raise UserError(
            f'{prefix}guidance: this run never learned to go without its condition '
            '(config.condition.drop=0); leave it out.'
        )
    if not given:
        raise UserError(
            f'{prefix}guidance needs a condition; give {prefix}cond, {prefix}label or {prefix}text.'
        )


def _check_rows(name: str, rows: np.ndarray, given: dict, num: int, prefix: str) -> None:
    """A row for each of `num` images, flags that are flags, and what they are flags of."""
    if rows.ndim == 0 or len(rows) != num:
        count = f'{len(rows)} rows' if rows.ndim else 'no rows'
        raise UserError(f'{prefix}{name} has {count} for {num} images; give one row an image.')
    if name in NEEDS and NEEDS[name] not in given:
        raise UserError(f'{prefix}{name} says what of {NEEDS[name]} counts; give that as well.')
    if name.endswith('_valid') and rows.dtype != bool:
        raise UserError(f'{prefix}{name} is bool, True for what counts; got {rows.dtype}.')


def _check_image(given: dict, net: JiT, learned: list[dict], config: dict, prefix: str) -> None:
    cond, kind = given['cond'], config['condition']['kind']
    grids = {condition_grid(o['cond'].shape, net.patch) for o in learned if 'cond' in o}
    if not grids:
        raise UserError(
            f'{prefix}cond: this run learned no condition images (config.condition.kind={kind}); '
            'leave it out.'
        )
    if not np.issubdtype(cond.dtype, np.floating) and cond.dtype != jnp.bfloat16:
        raise UserError(
            f'{prefix}cond is float32 in [-1, 1]; got {cond.dtype}: divide by 127.5 and subtract 1.'
        )
    if cond.ndim != 4 or cond.shape[3] != net.channels:
        raise UserError(
            f'{prefix}cond is [{len(cond)}, Hc, Wc, {net.channels}]; got {list(cond.shape)}.'
        )
    sizes = ' or '.join(f'{w * net.patch}×{h * net.patch}' for h, w in sorted(grids))
    height, width = cond.shape[1:3]
    if (height / net.patch, width / net.patch) not in grids:
        raise UserError(
            f'{prefix}cond is {width}×{height} pixels, and this run learned {sizes}; resize it.'
        )
    n = height * width // net.patch**2
    if 'cond_valid' in given and given['cond_valid'].shape != (len(cond), n):
        raise UserError(
            f'{prefix}cond_valid is [{len(cond)}, {n}], one flag a patch; '
            f'got {list(given["cond_valid"].shape)}.'
        )
    if 'cond_grid' in given:
        own, most = given['cond_grid'], (height // net.patch, width // net.patch)
        fits = own.shape == (len(cond), 2) and np.issubdtype(own.dtype, np.integer)
        if not fits or (own < 1).any() or (own > most).any():
            raise UserError(
                f'{prefix}cond_grid is int [{len(cond)}, 2], rows and columns of patches, at most '
                f'{list(most)}; got {shown(own)}.'
            )


def _check_label(given: dict, net: JiT, learned: list[dict], config: dict, prefix: str) -> None:
    label, kind = given['label'], config['condition']['kind']
    if not any('label' in option for option in learned):
        raise UserError(
            f'{prefix}label: this run learned no classes (config.condition.kind={kind}); '
            'leave it out.'
        )
    flags = given.get('label_valid')
    if flags is not None and flags.ndim != 1:
        raise UserError(f'{prefix}label_valid is one flag for each image; got {list(flags.shape)}.')
    if label.ndim != 1 or not np.issubdtype(label.dtype, np.integer):
        raise UserError(
            f'{prefix}label is whole numbers, one for each image; got {label.dtype} '
            f'{list(label.shape)}.'
        )
    for number in np.unique(label):
        if not 0 <= number <= net.num_classes:
            raise UserError(
                f'{prefix}label: {number} is no class of this run; it has {net.num_classes}, '
                'numbered from 0.'
            )


def _check_both(given: dict, net: JiT, learned: list[dict], config: dict, prefix: str) -> None:
    n = math.prod(condition_grid(given['cond'].shape, net.patch))
    kind = config['condition']['kind']
    if not any({'cond', 'label'} <= option.keys() for option in learned) and (
        'label_valid' not in given
    ):
        raise UserError(
            f'{prefix}cond and {prefix}label: this run learned either, one at a time '
            f'(config.condition.kind={kind}); leave one of them out.'
        )
    one_or_the_other = {'cond_valid', 'label_valid'} <= given.keys()  # row by row
    if n + net.class_tokens > COND.stop and not one_or_the_other:
        raise UserError(
            f'{prefix}cond and {prefix}label: {n} patches and {net.class_tokens} class tokens do '
            f'not fit in {GRID * GRID} slots; leave one of them out.'
        )


def _check_references(
    images: tuple, learned: list[dict], config: dict, prefix: str, num: int
) -> None:
    """Images of the sizes that the run learned, each with a row for each of `num` images."""
    shapes = {}
    for option in learned:
        if 'references' in option:
            shapes[tuple(image.shape[1:] for image in option['references'])] = None
    if not shapes:
        kind = config['condition']['kind']
        raise UserError(
            f'{prefix}references: this run learned no references (config.condition.kind={kind}); '
            'leave it out.'
        )
    got = tuple(image.shape[1:] for image in images)
    floats = all(np.issubdtype(image.dtype, np.floating) for image in images)
    if got not in shapes or not floats or any(len(image) != num for image in images):
        sizes = ' or '.join(
            ', '.join(str([num, *shape]) for shape in several) for several in shapes
        )
        raise UserError(
            f'{prefix}references is float32 images in [-1, 1] of shapes {sizes}; got '
            f'{", ".join(f"{image.dtype} {list(image.shape)}" for image in images) or "none"}.'
        )


def _check_tokens(given: dict, learned: list[dict], config: dict, prefix: str) -> None:
    tokens, kind = given['cond_tokens'], config['condition']['kind']
    shapes = [option['cond_tokens'] for option in learned if 'cond_tokens' in option]
    if not shapes:
        raise UserError(
            f'{prefix}cond_tokens: this run learned no text (config.condition.kind={kind}); '
            'leave it out.'
        )
    like, got = shapes[0], f'{tokens.dtype} {list(tokens.shape)}'
    most, rest = like.shape[1], like.shape[2:]
    numbers = np.issubdtype(like.dtype, np.integer)
    fits = tokens.ndim == like.ndim and tokens.shape[1] <= most and tokens.shape[2:] == rest
    if not fits or np.issubdtype(tokens.dtype, np.integer) != numbers:
        what = 'bytes' if numbers else 'embeddings'
        shape = ', '.join(map(str, ('n', *rest)))
        raise UserError(
            f'{prefix}cond_tokens is {what} [{len(tokens)}, {shape}], n at most {most}; got {got}.'
        )
    if numbers and tokens.size and not 0 <= tokens.min() <= tokens.max() < data.VOCABULARY:
        raise UserError(f'{prefix}cond_tokens is bytes, 0 to {data.VOCABULARY - 1}.')
    for other in ('cond', 'label'):
        together = any({other, 'cond_tokens'} <= option.keys() for option in learned)
        if other in given and not together and f'{other}_valid' not in given:
            raise UserError(
                f'{prefix}{other} and a text: this run learned either, one at a time '
                f'(config.condition.kind={kind}); leave one of them out.'
            )


def _is_finite(value) -> bool:
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return number and math.isfinite(value)
