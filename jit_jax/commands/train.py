"""Trains a JiT: `uncond` pre-trains without a condition, `cond` fine-tunes with one.

examples:
  python train.py --config=configs/uncond.py                      # in a clone: digits, minutes
  jit-jax train --config=uncond:folder --config.data.path=photos  # anywhere
  jit-jax train --config=cond --config.init_from=runs/uncond      # fine-tunes that run
  jit-jax train --list                                            # all presets
  jit-jax train --config=uncond:folder --show                     # its keys and their values

The same command goes on where a stopped run was. On several hosts, run it on each.
"""

import argparse
import os
import sys

from ml_collections import ConfigDict

from jit_jax import loop
from jit_jax.commands import command_line, environment
from jit_jax.commands.command_line import Parser
from jit_jax.configs import cond, uncond
from jit_jax.hardware import compiler
from jit_jax.model import sizes
from jit_jax.recipe import build, checks


def define_flags(parser: Parser) -> None:
    parser.define_config(
        'uncond, cond or a file of your own, with :PRESET after it for one of its presets'
    )
    parser.add_argument('--workdir', help='the run folder; runs/<config name> by default')
    parser.add_argument(
        '--yes', action='store_true', help='start even what would take this CPU days'
    )
    parser.add_argument(
        '--show', action='store_true', help='print every key of the config, and stop'
    )
    parser.add_argument('--list', action='store_true', help='print the presets, and stop')
    environment.define_flags(parser)


def main(args: argparse.Namespace) -> None:
    if args.list:
        show(presets())
        return
    command_line.required(
        args, 'config', f'says what to run, for example {command_line.example_config()}.'
    )
    if args.show:
        show(keys(args.config))
        return
    workdir = args.workdir or os.path.join('runs', args.config_name)
    width = sizes.size(args.config.model.variant)['width']
    environment.use_cpu_cores(args.config.batch_size, width)
    compute = args.config.compute
    compiler.configure(deterministic=compute.deterministic, cache=compute.cache)
    environment.join_processes(args)
    run = build.run(args.config)
    try:
        loop.train(run, workdir, yes=args.yes)
    except (
        KeyboardInterrupt
    ):  # the second Ctrl-C: whatever still writes is left as a kill leaves it
        print(f'Stopped at once; the same command goes on from the newest checkpoint of {workdir}.')
        sys.stdout.flush()
        os._exit(130)


def show(text: str) -> None:
    """Prints it, or as much of it as a reader such as `head` wants."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # what is left unsaid would be tried again when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def keys(config: ConfigDict) -> str:
    """Every key of a config with its value, as it would be given: `config.steps = 2200`."""
    found = [f'config.{key} = {checks.lookup(config, key)!r}' for key in checks.keys_of(config)]
    return '\n'.join(found)


def presets() -> str:
    """Every preset with a line, as `--config` takes it."""
    lines = []
    for config in (uncond, cond):
        name = config.__name__.rpartition('.')[2]
        for preset, summary in config.PRESETS.items():
            lines.append(f'{name}:{preset}'.ljust(29) + f' {summary}')
    return '\n'.join(lines)
