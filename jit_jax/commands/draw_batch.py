"""Draws what a model is about to train on, without training.

examples:
  jit-jax preview --config=uncond:folder_cpu --config.data.path=photos
  jit-jax preview --config=cond:pairs_cpu --config.data.path=pairs --out=pairs.png
  jit-jax preview --config=cond --config.condition.kind='inpaint|edges' --num=12

For each image as it is after cropping: its condition, the noise of the first step, and which of the
512 slots are live; several of each kind where kinds are mixed.
"""

import argparse
import contextlib
import math

import numpy as np

from jit_jax import data, loop
from jit_jax.commands import command_line
from jit_jax.commands.command_line import Parser
from jit_jax.errors import UserError
from jit_jax.evaluation import first_batch
from jit_jax.output import destination
from jit_jax.output.images import save_png
from jit_jax.recipe import build

ROWS = 64  # are drawn, so that every kind of a mixed condition is among them


def define_flags(parser: Parser) -> None:
    parser.define_config('as for `jit-jax train`')
    parser.add_argument('--out', default='preview.png', help='the picture, .png')
    parser.add_argument(
        '--num', type=command_line.whole_number(1), default=8, help='how many images'
    )


def main(args: argparse.Namespace) -> None:
    command_line.required(
        args, 'config', f'says what to draw, for example {command_line.example_config()}.'
    )
    if destination.kind(args.out) != destination.GRID:
        raise UserError(f'--out must end in .png; got {args.out}.')
    run = build.run(args.config)
    destination.check_writable(args.out, '--out')
    for line in dict.fromkeys([run.train.summary, run.test.summary]):
        print(line)
    for remark in data.remarks(run.train, run.test):
        print(remark)
    picture = first_batch.picture(run, first_rows(run, max(ROWS, args.num)), args.num)
    with destination.writing(args.out, '--out'):
        save_png(args.out, picture)
    kind = args.config.condition.kind
    print(
        f'{args.out} shows {args.num} images as the first step of training gets them, '
        f'config.condition.kind={kind}.'
    )


def first_rows(run: build.Run, rows: int) -> dict:
    """The first rows that the run will train on, whatever the size of its batch."""
    with contextlib.closing(loop.open_batches(run, 0)) as batches:
        parts = [next(batches) for _ in range(math.ceil(rows / run.config.batch_size))]
    return {name: np.concatenate([part[name] for part in parts])[:rows] for name in parts[0]}
