"""Trains a JiT: configs/uncond.py pre-trains without a condition, configs/cond.py fine-tunes with one.

    python train.py --config=configs/uncond.py [--workdir=runs/uncond] [--config.batch_size=16 …]

The same command goes on where a stopped run was. On several hosts, run it on each.
"""

import os

from absl import flags

from jit_jax.commands import cli

WORKDIR = flags.DEFINE_string('workdir', None, 'The run folder; runs/<config name> by default.')
YES = flags.DEFINE_bool('yes', False, 'Start even what takes this CPU days.')
CONFIG = cli.define_config(
    'config', 'A file of configs/, with :preset after the path to choose one of its presets.'
)


def main() -> None:
    cli.restart_with()
    cli.parse()
    from jit_jax import data, loop
    from jit_jax.model import (
        sizes,
    )  # after the restart: JAX reads its environment when it is imported
    from jit_jax.recipe import build

    with cli.one_sentence():
        workdir = WORKDIR.value or os.path.join('runs', cli.config_name(CONFIG))
        cli.use_cpu_cores(CONFIG.value.batch_size, sizes.size(CONFIG.value.model.variant)['width'])
        cli.join_processes()
        run = build.run(CONFIG.value)
    with cli.one_sentence(loop.Refused, data.DataError, FloatingPointError, MemoryError, OSError):
        loop.train(run, workdir, yes=YES.value)


if __name__ == '__main__':
    main()
