"""A trained run of one preset, for a scorer of what it draws."""

import argparse

import jit_jax
from jit_jax.commands import command_line, environment
from jit_jax.errors import UserError


def define_flags(parser: argparse.ArgumentParser, preset: str) -> None:
    """Adds --workdir and --guidance."""
    parser.add_argument('--workdir', help=f'a run of cond.py:{preset}')
    parser.add_argument(
        '--guidance', type=command_line.finite_number, help="the run's own by default"
    )


def load(args: argparse.Namespace, preset: str, kind: str) -> tuple:
    """The model and the parameters of --workdir.

    kind: of the preset's data. Raises UserError for a run of other data.
    """
    environment.use_cpu_cores(64)
    command_line.required(args, 'workdir', f'says which run, as --workdir=runs/cond-{preset}.')
    model, params = jit_jax.load(args.workdir)
    if model.config['data']['kind'] != kind:
        raise UserError(f'--workdir names no run of cond.py:{preset}; train one.')
    return model, params
