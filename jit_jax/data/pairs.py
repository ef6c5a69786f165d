"""Paired folders: what the model paints in target/, and what it is made from in cond/.

More images for each, such as references, are in cond2/, cond3/ …
"""

import os
from collections import Counter
from pathlib import Path

from jit_jax.data.listing import Example, Listing, divide, images_in
from jit_jax.data.records import Records
from jit_jax.errors import UserError


def open_pairs(root: Path, split: str, holdout: str) -> Records:
    """Opens the pairs below `root`: target/a.png with cond/a.jpg, equal up to the ending.

    Raises:
      UserError: without pairs, for an image without a partner, or one with two.
    """
    found = divide(root, split, holdout, _list_pairs)
    if not found.part(split):
        raise UserError(
            f'{found.folder(split)} holds no pairs: put images of equal names into its folders '
            'target and cond.'
        )
    first = (found.train or found.test)[0]
    target, *cond = (os.path.relpath(path, root) for path in first.paths)
    details = f', matched by name ({target} with {" and ".join(cond)})'
    names = ('image', *condition_names(len(cond)))
    return found.records(split, names, (), noun='pairs', details=details)


def condition_names(count: int) -> tuple[str, ...]:
    """The names of the condition images of an example: cond, cond2, cond3 …"""
    return ('cond', *(f'cond{number}' for number in range(2, count + 1)))


def _list_pairs(folder: Path) -> Listing:
    targets, ignored = _by_stem(folder / 'target')
    count = 1
    while (folder / f'cond{count + 1}').is_dir():
        count += 1
    sides = []
    for name in condition_names(count):
        side, more = _by_stem(folder / name)
        _check_partners(folder, targets, side, name)
        sides.append(side)
        ignored = ignored + more
    examples = []
    for stem in sorted(targets):
        conditions = (side[stem] for side in sides)
        examples.append(Example((targets[stem], *conditions)))
    return Listing(examples, ignored)


def _check_partners(folder: Path, targets: dict, conditions: dict, name: str) -> None:
    """Refuses images of one side that the other lacks."""
    unmatched = sorted(targets.keys() ^ conditions.keys())
    if unmatched:
        shown = [(targets | conditions)[stem] for stem in unmatched[:5]]
        more_of_them = ', …' if len(unmatched) > 5 else ''
        raise UserError(
            f'{len(unmatched)} images in {folder} have no partner of the same name in target or '
            f'{name}; add it or remove them: {", ".join(shown)}{more_of_them}'
        )


def _by_stem(folder: Path) -> tuple[dict[str, str], Counter]:
    """The paths of a side's images by their names without the ending."""
    if not folder.is_dir():
        raise UserError(
            f'{folder} does not exist: pairs are images of equal names in the folders target '
            'and cond.'
        )
    files, ignored = images_in(folder)
    by_stem = {}
    for file in files:
        stem = os.path.splitext(file)[0]
        if stem in by_stem:
            raise UserError(f'{folder} holds two images named {stem}: keep one of them.')
        by_stem[stem] = os.path.join(folder, file)
    return by_stem, ignored
