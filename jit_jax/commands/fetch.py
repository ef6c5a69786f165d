"""Downloads the Inception weights that FID needs, and prints where they are.

examples:
  jit-jax fetch
  jit-jax fetch --out=weights/pt_inception-2015-12-05-6726825d.pth
"""

import argparse
from pathlib import Path

from jit_jax.commands import command_line
from jit_jax.errors import UserError
from jit_jax.evaluation.fetch import URL, default_path, fetch


def define_flags(parser: command_line.Parser) -> None:
    parser.add_argument('--out', type=Path, default=default_path(), help='where to put the file')
    parser.add_argument(
        '--url', default=URL, help='a mirror; its name must end in the hash as well'
    )


def main(args: argparse.Namespace) -> None:
    try:
        fetch(args.out, args.url)
    except (OSError, ValueError) as error:
        raise UserError(f'Could not fetch {args.url}: {error}') from error
    print(args.out)
