"""Draws a run on one page.

examples:
  jit-jax report --workdir=runs/uncond
"""

import argparse
import json

from etils import epath

from jit_jax.commands import command_line
from jit_jax.errors import UserError
from jit_jax.evaluation.page import write
from jit_jax.recipe import build


def define_flags(parser: command_line.Parser) -> None:
    parser.add_argument('--workdir', help='a run folder')


def main(args: argparse.Namespace) -> None:
    command_line.required(
        args, 'workdir', 'says which run to report, for example --workdir=runs/uncond.'
    )
    config = json.loads((epath.Path(args.workdir) / 'config.json').read_text())
    sources = []
    try:
        sources = [build.source(config, split) for split in ('train', 'test')]
    except UserError as problem:
        print(f'Without its images: {problem}')
    print(write(args.workdir, config, *sources))
