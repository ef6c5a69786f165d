"""Flags of `jit-jax sample` that say what images are made from, and what they ask for."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jit_jax import trained
from jit_jax.commands import command_line
from jit_jax.data.fitting import FITS
from jit_jax.data.listing import images_in
from jit_jax.diffusion.conditions import from_uint8
from jit_jax.errors import UserError
from jit_jax.evaluation import held_out
from jit_jax.recipe import inputs, kinds, photographs


def define_flags(parser: command_line.Parser) -> None:
    """The flags that say what images are made from."""
    group = parser.add_argument_group(
        'what they are made from',
        'Files, or folders of them, are taken in turn. Without any, a run with a condition uses\n'
        'held-out images, and one with classes takes each in turn.',
    )
    add = group.add_argument
    add('--label', type=command_line.words, help='classes by number or name, taken in turn')
    add(
        '--cond',
        type=command_line.words,
        metavar='PICTURES',
        help='condition images; where the run cuts holes, transparent patches are missing',
    )
    add(
        '--from',
        dest='photographs',
        type=command_line.words,
        metavar='PICTURES',
        help='ordinary pictures, of which the condition is made as in training',
    )
    add(
        '--reference',
        action='append',
        type=command_line.words,
        metavar='PICTURES',
        help='the references of an image, as many as the run learned; several flags are taken in '
        'turn',
    )
    add('--text', action='append', help='a caption; several flags are taken in turn')
    add('--kind', default='', help='which kind of condition, where the run learned several: edges')
    add(
        '--start',
        type=command_line.finite_number,
        metavar='T',
        help='begin from the pictures of --from under noise at this time, from 0 (noise) to below '
        '1 (clean), instead of from noise',
    )
    add(
        '--fit',
        choices=FITS,
        default='crop',
        help='what becomes of pictures of another size: the centre in the right shape, all of it '
        'squeezed, or an error',
    )
    add(
        '--keep_known',
        action='store_true',
        help='leave what is not missing as it is, bit for bit, where the run fills in holes; it is '
        'drawn anew otherwise',
    )


def load_labels(names: list[str], num: int, model: trained.Model) -> np.ndarray:
    """Class numbers or names, taken in turn → int32 [num]. Raises UserError for what is none."""
    classes = list(model.config['classes']) if 'classes' in model.config else []
    count = model.net.num_classes
    numbers = []
    for name in names:
        if name in classes:
            numbers.append(classes.index(name))
        elif name.isdecimal() and int(name) <= count:
            numbers.append(int(name))
        else:
            raise UserError(
                f'--label: {name!r} is not a class of this run; it has {count}, numbered from 0.'
            )
    return np.resize(np.asarray(numbers, np.int32), num)


def load_references(sets: list[list[str]], args: argparse.Namespace, config: dict) -> tuple:
    """The references of each row, of which all sets of pictures have equally many.

    Raises UserError where they do not, and as `photographs.reference_rows`.
    """
    if len({len(one) for one in sets}) > 1:
        raise UserError('--reference: name as many pictures in each --reference.')
    of_each = list(zip(*sets, strict=True))
    how = {'kind': args.kind, 'fit': args.fit, 'words': photographs.FLAGS}
    return photographs.reference_rows(config, of_each, args.num, **how)


def classes_beside(args: argparse.Namespace, model: trained.Model) -> dict[str, np.ndarray]:
    """Every class in turn, for a run that learned references together with a class; else none."""
    learned = kinds.options(model.config).values()
    if any({'references', 'label'} <= shapes.keys() for shapes in learned):
        return every_class(args.num, model)
    return {}


class Asked(NamedTuple):
    """What flags ask for."""

    conditioning: dict[str, np.ndarray]  # keywords of `JiT.__call__`
    truth: np.ndarray | None = None  # uint8 [num, H, W, C], what the conditions were made from
    kinds: Sequence[str] = ()  # the kind of each condition, where they differ
    begin: trained.Begin | None = None  # where sampling begins; None: from noise
    said: str = ''  # what was done to pictures
    captions: Sequence[str] = ()  # of the rows, where their tokens do not say them


def asked_for(args: argparse.Namespace, model: trained.Model) -> Asked:
    """What the images are made from. The flags decide; without them, every class in turn, or what
    the held-out images give.
    """
    config, given, said, captions = model.config, {}, '', ()
    if args.cond:
        paths = picture_files(args.cond, '--cond')
        how = {'kind': args.kind, 'fit': args.fit, 'words': photographs.FLAGS}
        given, said = photographs.condition_rows(config, paths, args.num, **how)
        said = lines(said, left_over(paths, args.num))
    if args.reference:
        given['references'] = load_references(args.reference, args, config)
        if not args.label and not args.photographs:
            given |= classes_beside(args, model)
    if args.label:
        given['label'] = load_labels(args.label, args.num, model)
    if args.text:
        captions = [args.text[i % len(args.text)] for i in range(args.num)]
        given |= inputs.caption_tokens(config, args.num, captions, prefix='--')
    if args.photographs:
        return from_photographs(args, model, given, said)._replace(captions=captions)
    if given:
        inputs.check_conditioning(config, model.net, args.num, given, prefix='--')
        return Asked(given, said=said, captions=captions)
    if args.kind:
        config = only_kind(config, args.kind)
    if config['condition']['kind'] == 'class':
        return Asked(every_class(args.num, model))
    conditioning, truth = held_out.examples(config, args.num, args.seed)
    of_each = held_out.kinds(config, args.num, args.seed) if truth is not None else []
    captions = held_out.captions(config, args.num)
    return Asked(conditioning, truth, of_each, captions=captions)


def from_photographs(
    args: argparse.Namespace, model: trained.Model, given: dict, said: str
) -> Asked:
    """What --from and --start ask for, beside the condition images and labels that are given."""
    if not args.label and args.start is not None and model.config['condition']['kind'] == 'class':
        given |= every_class(args.num, model)
    paths = picture_files(args.photographs, '--from')
    made = photographs.made_from(
        model.config,
        paths,
        range(args.num),
        jax.random.key(args.seed),
        kind='' if args.cond else args.kind,
        fit=args.fit,
        beside=[kind for kind, name in trained.BESIDE.items() if name in given],
        has_condition=bool(args.cond),
        begins=args.start is not None,
        words=photographs.FLAGS,
    )
    conditioning = given | made.conditioning
    inputs.check_conditioning(model.config, model.net, args.num, conditioning, prefix='--')
    begin = None
    if args.start is not None:
        begin = (args.start, from_uint8(made.images))
    said = lines(said, made.said, left_over(paths, args.num))
    truth = made.images if made.conditioning else None
    return Asked(conditioning, truth, begin=begin, said=said)


def lines(*sentences: str) -> str:
    """Sentences on a line each, without those that are empty."""
    return '\n'.join(sentence for sentence in sentences if sentence)


def left_over(paths: list[str], num: int) -> str:
    """A sentence where there are more pictures than images to draw."""
    if len(paths) <= num:
        return ''
    return f'Of {len(paths)} pictures the first {num} are used; --num={len(paths)} takes all.'


def every_class(num: int, model: trained.Model) -> dict[str, np.ndarray]:
    """Labels: every class in turn."""
    return {'label': np.arange(num, dtype=np.int32) % model.net.num_classes}


def only_kind(config: dict, kind: str) -> dict:
    """The config of a run as if it had learned this kind of condition alone. Raises UserError where
    it did not learn it.
    """
    option = photographs.named_option(kinds.options(config), kind)
    return config | {'condition': config['condition'] | {'kind': option}}


def picture_files(paths: list[str], flag: str) -> list[str]:
    """The files that paths name, a folder by the pictures in it. Raises UserError for none."""
    found = []
    for path in paths:
        if not os.path.isdir(path):
            found.append(path)
            continue
        names, _ = images_in(Path(path))
        if not names:
            raise UserError(f'{flag}: there is no picture in the folder {path}.')
        found += [os.path.join(path, name) for name in names]
    return found


def check_start(args: argparse.Namespace) -> None:
    """Raises UserError unless --start is a time, and goes with pictures."""
    if args.start is None:
        return
    if not 0 <= args.start < 1:
        raise UserError(f'--start is a time from 0 (noise) to below 1 (clean); got {args.start:g}.')
    if not args.photographs:
        raise UserError('--start needs a picture to begin from; give --from=photo.jpg.')
