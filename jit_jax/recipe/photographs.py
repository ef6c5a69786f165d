"""Pictures of any size and kind as what a run is conditioned on, and as where sampling begins.

A picture is a path, a PIL image or uint8 [H, W], [H, W, 1 or 3]; it is read as training reads it.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from jit_jax import data
from jit_jax.data.arrays import picture
from jit_jax.data.fitting import FITS, fitted
from jit_jax.diffusion import conditions
from jit_jax.errors import UserError, shown
from jit_jax.model.sequence import patch_size, patchify
from jit_jax.recipe import build, kinds

FLAGS = {'from': '--from', 'start': '--start', 'cond': '--cond', 'kind': '--kind', 'fit': '--fit'}
FLAGS |= {'reference': '--reference', 'keep_known': '--keep_known'}
ARGUMENTS = {'from': 'from_image', 'start': 'from_t', 'cond': 'cond', 'kind': 'kind', 'fit': 'fit'}
ARGUMENTS |= {'reference': 'references', 'keep_known': 'keep_known'}

# Kinds that no picture gives, and what they are made of.
TOGETHER = {'class': 'a class (label)', 'text': 'a caption (text)'}


class Picture(NamedTuple):
    """A picture as it was read."""

    name: str
    pixels: np.ndarray  # uint8 [h, w, C]
    opaque: np.ndarray  # bool [h, w]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return self.opaque.shape


def as_pictures(given) -> list | None:
    """What is given as a list of pictures; None where it is numbers, such as float32 arrays."""
    if isinstance(given, (str, os.PathLike, Image.Image)):
        return [given]
    if isinstance(given, (list, tuple)) and given and not isinstance(given[0], (int, float)):
        parts = [as_pictures(one) for one in given]
        if any(part is None for part in parts):
            return None
        return [one for part in parts for one in part]
    array = np.asarray(given)
    if array.dtype != np.uint8 or array.ndim not in (2, 3, 4):
        return None
    return list(array) if array.ndim == 4 else [array]


def one_or_each(name: str, given, num: int) -> list | None:
    """Pictures, one for all `num` images or one for each; None where `given` is numbers.

    Raises UserError for another number of them.
    """
    pictures = as_pictures(given)
    if pictures is not None and len(pictures) not in (1, num):
        raise UserError(f'{name} has {len(pictures)} rows for {num} images; give one row an image.')
    return pictures


def check_from(from_image, from_t, kind: str, cond, references=None) -> None:
    """Raises UserError for arguments of `jit_jax.sample` that need each other."""
    if from_t is not None:
        is_number = isinstance(from_t, (int, float, np.number)) and not isinstance(from_t, bool)
        if not is_number or not 0 <= from_t < 1:
            raise UserError(f'from_t is a time from 0 (noise) to below 1 (clean); got {from_t!r}.')
        if from_image is None:
            raise UserError('from_t needs a picture to begin from; give from_image.')
    if kind is not None and not isinstance(kind, str):
        raise UserError(f"kind names a kind of condition, such as 'inpaint'; got {shown(kind)}.")
    if kind and from_image is None and cond is None and references is None:
        raise UserError('kind says what from_image, cond or references are; give one of them.')


def condition_rows(
    config: dict,
    given: Sequence,
    num: int,
    *,
    kind: str = '',
    fit: str = 'crop',
    words: dict[str, str] = ARGUMENTS,
) -> tuple[dict[str, np.ndarray], str]:
    """Pictures as condition images, one for all rows or in turn.

    Where the run cuts holes, patches with transparent pixels are missing; elsewhere the
    transparent lies on white, as in training.

    Args:
      config: the run's config.json.
      given: pictures.
      num: how many rows.
      kind: of a run that learned several, the one that these are of.
      fit: 'crop', 'resize' or 'error', for pictures of another size than the run learned.
      words: what the arguments are called in errors.

    Returns `cond` float32 [num, Hc, Wc, C] in [−1, 1] and, where patches are missing, `cond_valid`
    bool [num, n]; and a sentence that says what was done, '' for nothing. Raises UserError.
    """
    check_fit(fit, words)
    learned = _learned_images(config, kind, words)
    colours = build.palette(config)
    found = [_read(one, config, words['cond'], colours) for one in given[:num]]
    size = _wanted_size(found, learned, fit, words)
    said = ''
    if size is not None:
        said = what_was_done(found, size, fit)
        found = [_fit(one, size, fit, words['cond'], nearest=bool(colours)) for one in found]
    if len({one.size for one in found}) > 1:
        raise UserError(f'{words["cond"]}: all condition images must have one size.')
    rows = {'cond': in_turn([one.pixels for one in found], num).astype(np.float32) / 127.5 - 1}
    if all(one.opaque.all() for one in found):
        return rows, said
    if not any('cond_valid' in shapes for shapes in learned.values()):
        return rows, f'{said} What is transparent lies on white.'.strip()
    if found[0].size in {shapes['cond'].shape[1:3] for shapes in learned.values()}:
        opaque = in_turn([one.opaque for one in found], num)[..., None]
        patch = patch_size(config['model']['image_size'])
        rows['cond_valid'] = np.asarray(patchify(opaque, patch)).all(-1)
    return rows, said


def reference_rows(
    config: dict,
    given: Sequence[Sequence],
    num: int,
    *,
    kind: str = '',
    fit: str = 'crop',
    words: dict[str, str] = ARGUMENTS,
) -> tuple[np.ndarray, ...]:
    """Pictures as the references that a run learned, made smaller as in training.

    given: for each reference of a row its pictures, one for all `num` rows or in turn. The rest is
    as for `condition_rows`. Returns float32 [num, Hr, Wr, C] in [−1, 1] for each. Raises UserError
    for another number of them.
    """
    check_fit(fit, words)
    shapes = _learned_references(config, kind, words)
    if len(given) != len(shapes):
        raise UserError(
            f'{words["reference"]}: there are {len(given)} pictures for an image, and this run '
            f'learned {len(shapes)}; name {len(shapes)}.'
        )
    side = config['model']['image_size']
    size, rows = (side, side), []
    for pictures, shape in zip(given, shapes, strict=True):
        found = [_read(one, config, words['reference']) for one in pictures[:num]]
        for one in found:
            if fit == 'error' and one.size != size:
                raise UserError(
                    f'{words["reference"]}: {one.name} is {_times(one.size)} pixels, and this run '
                    f'learned from {_times(size)}; resize it.'
                )
        found = [_fit(one, size, fit, words['reference']) for one in found]
        images = np.stack([one.pixels for one in found]).astype(np.float32) / 127.5 - 1
        if shape[1:3] != size:
            small = (len(images), *shape[1:])
            images = np.asarray(jax.image.resize(images, small, 'cubic', antialias=True))
        rows.append(in_turn(images, num))
    return tuple(rows)


def _learned_references(config: dict, kind: str, words: dict[str, str]) -> list[tuple]:
    """The shapes of a row's references, [1, Hr, Wr, C] each.

    Raises UserError for a run without, and for one that learned several kinds of them.
    """
    learned = kinds.options(config)
    if kind:
        option = named_option(learned, kind, words)
        learned = {option: learned[option]}
    found = {}
    for option, shapes in learned.items():
        if 'references' in shapes:
            found[tuple(image.shape for image in shapes['references'])] = option
    if not found:
        raise UserError(
            f'{words["reference"]}: this run learned no references (config.condition.kind='
            f'{config["condition"]["kind"]}); leave it out.'
        )
    if len(found) > 1:
        raise UserError(
            f'{words["reference"]}: this run learned {" and ".join(found.values())}; say which '
            f'it is with {words["kind"]}={next(iter(found.values()))}.'
        )
    return list(next(iter(found)))


class Made(NamedTuple):
    """What became of pictures that a run was given to start from."""

    conditioning: dict[str, np.ndarray]  # keywords of `JiT.__call__`; {} where none was asked for
    images: np.ndarray  # uint8 [num, H, H, C], the pictures at the model's size
    said: str  # what was done to them, in a sentence; '' for nothing


def made_from(
    config: dict,
    given: Sequence,
    rows: range,
    key: jax.Array,
    *,
    kind: str = '',
    fit: str = 'crop',
    beside: Sequence[str] = (),
    has_condition: bool = False,
    begins: bool = False,
    words: dict[str, str] = ARGUMENTS,
) -> Made:
    """Conditions as training would have made them from ordinary pictures, one for all or in turn.

    Args:
      config, given, fit, words: as for `condition_rows`.
      rows: the numbers of the rows; row i depends on the key and i.
      kind: which of the run's options to make; needed where several can be made.
      beside: which of TOGETHER the rows have as well.
      has_condition: whether the rows have their condition from elsewhere, so that none is made.
      begins: whether sampling begins from the pictures, so that a run without a condition will do.

    Raises UserError for a kind that the run has not learned or that no picture can give.
    """
    check_fit(fit, words)
    side = config['model']['image_size']
    option = ''
    if not has_condition and not (begins and not kind and suffices(config, beside)):
        option = chosen_option(config, kind, begins=begins, words=words)
    parts = option.split('+') if option else []
    for name in TOGETHER:
        if name in parts and name not in beside:
            raise UserError(f'{words["from"]}: {option} needs {TOGETHER[name]} too; give it.')
    found = [_read(one, config, words['from']) for one in given[: len(rows)]]
    size = (side, side)
    for one in found:
        if fit == 'error' and one.size != size:
            raise UserError(
                f'{words["from"]}: {one.name} is {_times(one.size)} pixels, and this run makes '
                f'{_times(size)}; resize it.'
            )
    said = what_was_done(found, size, fit)
    found = [_fit(one, size, fit, words['from']) for one in found]
    batch = {'image': in_turn([one.pixels for one in found], len(rows))}
    if not option:
        return Made({}, batch['image'], said)
    pictured = '+'.join(name for name in parts if name not in TOGETHER)
    made = kinds.each_row(batch, key, np.asarray(rows), kinds.condition(config, pictured))
    return Made(jax.tree.map(np.asarray, made), batch['image'], said)


def chosen_option(config: dict, kind: str, *, begins: bool, words: dict[str, str]) -> str:
    """The option of the run's condition that is made from pictures; '' for none.

    Raises UserError where that cannot be, or is not said.
    """
    learned = kinds.options(config)
    if kind:
        option = named_option(learned, kind, words)
        if not can_be_made(option, learned):
            raise UserError(
                f'{words["kind"]}={option} is not made from a picture; give it as {words["cond"]} '
                'or as what it is made of.'
            )
        return option
    made = [option for option in learned if can_be_made(option, learned)]
    if len(made) > 1:
        raise UserError(
            f'{words["from"]}: this run learned {", ".join(made)}; say which to make with '
            f'{words["kind"]}={made[0]}.'
        )
    if made:
        return made[0]
    if begins and not any('cond' in shapes for shapes in learned.values()):
        return ''
    if 'pairs' in conditions.kinds(config['condition']['kind']):
        raise UserError(
            f'{words["from"]}: the condition of a pair is not made from its picture; give one with '
            f'{words["cond"]}.'
        )
    raise UserError(
        f'{words["from"]}: this run learned no condition images (config.condition.kind='
        f'{config["condition"]["kind"]}); to begin from the picture instead of noise, add '
        f'{words["start"]}=0.4.'
    )


def suffices(config: dict, beside: Sequence[str]) -> bool:
    """Whether the run learned one of `beside`, or several together, as a whole condition."""
    return any(set(option.split('+')) <= set(beside) for option in kinds.options(config))


def can_be_made(option: str, learned: dict[str, dict]) -> bool:
    """Whether an option has a condition image that is made from the picture alone."""
    return 'cond' in learned[option] and 'pairs' not in option.split('+')


def named_option(learned: dict[str, dict], kind: str, words: dict[str, str] = FLAGS) -> str:
    """The option that `kind` names, its parts in any order. Raises UserError for none of them."""
    for option in learned:
        if sorted(option.split('+')) == sorted(kind.split('+')):
            return option
    there = f'learned {", ".join(learned)}' if learned else 'learned no condition'
    raise UserError(f'{words["kind"]}={kind}: this run {there}; name one that it learned.')


def check_fit(fit: str, words: dict[str, str]) -> None:
    """Raises UserError unless `fit` is one of FITS."""
    if fit not in FITS:
        raise UserError(f'{words["fit"]} is one of {", ".join(FITS)}; got {fit!r}.')


def what_was_done(found: list[Picture], size: tuple[int, int], fit: str) -> str:
    """A sentence about pictures that are not of `size` (height, width); '' where all are."""
    others = [one for one in found if one.size != size]
    if not others:
        return ''
    what = {
        'crop': f'centre crop, scaled to {_times(size)} pixels',
        'resize': f'squeezed to {_times(size)} pixels',
    }[fit]
    if len(found) == 1:
        return f'{found[0].name}, {_times(found[0].size)}: {what}.'
    return f'{len(others)} of {len(found)} pictures: {what}.'


def in_turn(arrays: Sequence[np.ndarray], num: int) -> np.ndarray:
    """[num, …], from the first again after the last."""
    return np.stack(arrays)[np.arange(num) % len(arrays)]


def _learned_images(config: dict, kind: str, words: dict[str, str]) -> dict[str, dict]:
    """The options with a condition image that `kind` names, or all of them."""
    learned = kinds.options(config)
    if kind:
        option = named_option(learned, kind, words)
        learned = {option: learned[option]}
    return {option: shapes for option, shapes in learned.items() if 'cond' in shapes}


def _wanted_size(
    found: list[Picture], learned: dict[str, dict], fit: str, words: dict[str, str]
) -> tuple[int, int] | None:
    """The (height, width) that pictures are brought to; None: they stay, to be accepted or not."""
    sizes = sorted({shapes['cond'].shape[1:3] for shapes in learned.values()})
    if fit == 'error' or not sizes:
        return None
    if len(sizes) == 1:
        return sizes[0]
    if len({one.size for one in found}) == 1 and found[0].size in sizes:
        return None
    names = ' or '.join(_times(size) for size in sizes)
    raise UserError(
        f'{words["cond"]}: {found[0].name} is {_times(found[0].size)} pixels, and this run learned '
        f'{names}; say which it is with {words["kind"]}={next(iter(learned))}.'
    )


def _read(one, config: dict, word: str, palette: str = '') -> Picture:
    name = os.fspath(one) if isinstance(one, (str, os.PathLike)) else 'the picture'
    if isinstance(one, np.ndarray):
        one = picture(one)
    try:
        return Picture(name, *data.condition_image(one, config['model']['channels'], palette))
    except UserError as problem:
        raise UserError(f'{word}: {problem}') from problem


def _fit(
    one: Picture, size: tuple[int, int], fit: str, word: str, *, nearest: bool = False
) -> Picture:
    if one.size == size:
        return one
    height, width = size
    channels = one.pixels.shape[-1]
    image = Image.fromarray(one.pixels[..., 0] if channels == 1 else one.pixels)
    opaque = Image.fromarray(one.opaque.astype(np.uint8) * 255)
    try:
        pixels = np.asarray(fitted(image, width, height, fit, nearest=nearest))
        opaque = np.asarray(fitted(opaque, width, height, fit)) == 255
    except ValueError as problem:
        raise UserError(f'{word}: {one.name}: {problem}; give another picture.') from problem
    return Picture(one.name, pixels.reshape(height, width, channels), opaque)


def _times(size: tuple[int, int]) -> str:
    height, width = size
    return f'{width}×{height}'
