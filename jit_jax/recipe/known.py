"""What a condition with a hole knows of the image: its live patches, kept as they are."""

from collections.abc import Iterable, Iterator

import numpy as np

from jit_jax.diffusion.conditions import CUT
from jit_jax.errors import UserError
from jit_jax.model.sequence import GRID
from jit_jax.output.images import to_uint8
from jit_jax.recipe import kinds
from jit_jax.recipe.photographs import ARGUMENTS, TOGETHER, named_option


def check_known(
    config: dict, given: dict[str, np.ndarray], kind: str = '', words: dict[str, str] = ARGUMENTS
) -> None:
    """Raises UserError unless the condition images say what is known, and something is missing.

    Args:
      config: the run's config.json.
      given: arrays by keyword of `JiT.__call__`, those that are given.
      kind: of a run that learned several, the one that the images are of.
      words: what the arguments are called in errors.
    """
    word = words['keep_known']
    learned = kinds.options(config)
    if kind:
        option = named_option(learned, kind, words)
        learned = {option: learned[option]}
    pictured = [option for option, shapes in learned.items() if 'cond' in shapes]
    known = [option for option in pictured if _cuts(option)]
    if not known:
        raise UserError(
            f'{word}: no pixel is known under config.condition.kind={"|".join(learned) or "none"}, '
            f'but under {", ".join(CUT)}; leave it out.'
        )
    if known != pictured:
        raise UserError(
            f'{word}: this run learned {", ".join(pictured)}; say which the condition is with '
            f'{words["kind"]}={known[0]}.'
        )
    if 'cond' not in given:
        raise UserError(
            f'{word} needs a picture with a hole; give {words["cond"]} or {words["from"]}.'
        )
    own, size = given.get('cond_grid', GRID), learned[known[0]]['cond'].shape[1:3]
    if given['cond'].shape[1:3] != size or np.any(own != GRID):
        raise UserError(
            f'{word} needs condition images of the size of a result, {size[1]}×{size[0]}; got '
            f'smaller ones.'
        )
    if 'cond_valid' not in given or given['cond_valid'].all():
        raise UserError(
            f'{word}: no patch of the condition is missing, so that nothing would be drawn; make '
            'what is to be filled in transparent.'
        )


def _cuts(option: str) -> bool:
    """Whether the image that lies over the target is the target with a hole."""
    pictured = [name for name in option.split('+') if name not in TOGETHER]
    return pictured[0] in CUT


def keeping_known(
    batches: Iterable[np.ndarray], conditioning: dict[str, np.ndarray]
) -> Iterator[np.ndarray]:
    """Batches of images, uint8 [·, H, W, C], in order, with the live patches of their condition
    images in place, bit for bit those of uint8 pictures.
    """
    cond, live = conditioning['cond'], conditioning['cond_valid']
    first = 0
    for images in batches:
        rows = slice(first, first + len(images))
        patch = images.shape[1] // GRID
        known = live[rows].reshape(-1, GRID, GRID).repeat(patch, 1).repeat(patch, 2)
        yield np.where(known[..., None], to_uint8(cond[rows]), images)
        first += len(images)
