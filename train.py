"""Trains a JiT: configs/uncond.py pre-trains without a condition, configs/cond.py fine-tunes with one.

    python train.py --config=configs/uncond.py [--workdir=runs/uncond] [--config.batch_size=16 …]

The same command goes on where a stopped run was. On several hosts, run it on each. `jit-jax train` is this command too.
"""

from jit_jax.commands.train import main

if __name__ == '__main__':
    main()
