"""Draws a run on one page, or compares several on another.

examples:
  jit-jax report runs/uncond                      # runs/uncond/report/index.html
  jit-jax report runs/a runs/b --out=comparison   # comparison/index.html
"""

import argparse

from etils import epath

from jit_jax import data
from jit_jax.commands import command_line
from jit_jax.errors import UserError
from jit_jax.evaluation import comparison, page
from jit_jax.output import destination
from jit_jax.output.warnings_once import reason
from jit_jax.recipe import build
from jit_jax.recipe.kinds import import_own
from jit_jax.training.older_configs import parse_config
from jit_jax.training.weights import check_exists


def define_flags(parser: command_line.Parser) -> None:
    parser.add_argument('runs', nargs='*', help='a run folder, or several to compare')
    parser.add_argument('--workdir', help='the same as one run folder')
    parser.add_argument('--out', default='comparison', help='the folder of a comparison')
    parser.define_import()


def main(args: argparse.Namespace) -> None:
    runs = [*args.runs, *([args.workdir] if args.workdir else [])]
    if not runs:
        raise UserError('report needs a run folder, for example jit-jax report runs/uncond.')
    if len(runs) > 1:
        destination.check_place(args.out, '--out')
    configs = [read_config(run) for run in runs]
    if len(runs) > 1:
        print(f'{comparison.write(runs, configs, args.out)} compares {len(runs)} runs.')
        return
    train, test = open_images(configs[0])
    print(f'{page.write(runs[0], configs[0], train, test)} shows {runs[0]}.')


def read_config(workdir: str) -> dict:
    """The config.json of a run folder. Raises UserError where it has none that can be read."""
    path = epath.Path(workdir) / 'config.json'
    check_exists(path.parent)
    try:
        config = parse_config(path.read_text())
    except OSError as error:
        raise UserError(
            f'report needs a run folder, and {path} cannot be read ({reason(error)}).'
        ) from error
    except ValueError as error:
        raise UserError(f'{path} is not a config of a run ({error}).') from error
    if not isinstance(config, dict) or not {'model', 'condition'} <= config.keys():
        raise UserError(f'{path} is not a config of a run: it has no model or no condition.')
    import_own(config)
    return config


def open_images(config: dict) -> tuple[data.Source | None, data.Source | None]:
    """The training and the held-out images; None for what is not there, and a line that says so."""
    if 'data' not in config:
        print('Without its images: this run was converted, and names none.')
        return None, None
    found, problems = {}, {}
    for split in ('train', 'test'):
        try:
            found[split] = build.source(config, split)
        except UserError as problem:
            found[split] = None
            problems[split] = problem
    if len(problems) == 2:
        print(f'Without its images: {problems["train"]}')
    elif problems:
        ((split, problem),) = problems.items()
        print(f'Without its {split} images: {problem}')
    return found['train'], found['test']
