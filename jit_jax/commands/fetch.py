"""Downloads the Inception weights that FID needs, and prints where they are.

examples:
  jit-jax fetch
  jit-jax fetch --out=weights/pt_inception-2015-12-05-6726825d.pth
"""

import argparse
from pathlib import Path

from jit_jax.commands import command_line
from jit_jax.evaluation import download
from jit_jax.output import destination


def define_flags(parser: command_line.Parser) -> None:
    add = parser.add_argument
    add('--out', type=Path, default=download.default_path(), help='where to put the file')
    add('--url', default=download.URL, help='a mirror; its name must end in the hash as well')


def main(args: argparse.Namespace) -> None:
    if args.out != download.default_path():  # of which a new account has no folder yet
        destination.check_place(args.out, '--out')
    download.fetch(args.out, args.url)
    print(args.out)
