"""Speed of the train step that a config makes, on images of noise, beside the device's limit.

    python -m benchmarks.step --config=configs/uncond.py
    python -m benchmarks.step --config=configs/uncond.py:imagenet256_b16 --batch=4 \\
        --rows=keep,skip,64,full
    python -m benchmarks.step --config=configs/uncond.py:imagenet256_l16 --batch=128 \\
        --rows=skip,skip+unscanned,skip+dots

The step is whole: noise, condition, forward, backward, optimizer, both averages, with a donated
state. One state goes through all rows, as their parameter tree is the same.
"""

import sys

from benchmarks import measure
from jit_jax.commands import command_line, environment
from jit_jax.model.sizes import size

CHANGES = measure.CHANGES | {
    'keep': {'condition.kind': 'none', 'compute.dead_slots': 'keep'},
    'skip': {'condition.kind': 'none', 'compute.dead_slots': 'skip'},
    '64': {
        'condition.kind': 'super_resolution',
        'condition.factor': 2,
        'compute.dead_slots': 'skip',
    },
    'full': {'condition.kind': 'grayscale', 'compute.dead_slots': 'skip'},
    'class': {'condition.kind': 'class', 'compute.dead_slots': 'skip'},
    'dots': {'compute.remat': 'dots'},
    'remat': {'compute.remat': 'full'},
}
DEFAULT = [
    'keep',
    'skip',
    '64',
    'full',
    'scanned',
    'unscanned',
    'xla',
    'cudnn',
    'splash',
    'float32',
    'bfloat16',
]


class Training:
    """One state, which the steps of all rows carry on."""

    def __init__(self, steps: int):
        self.steps, self.state = steps, None

    def program(self, config) -> measure.Program:
        import jax

        from jit_jax.model import sharding
        from jit_jax.recipe import build, checks, likeness

        checks.check(config)
        # No images: the step does not see where they come from.
        run = build.programs(config, build.mesh(config))
        batch, key = (
            sharding.to_device(measure.noise(config), run.mesh),
            jax.random.key(config.seed),
        )
        frozen = sharding.everywhere(likeness.read(config), run.mesh)
        step, cost = measure.compiled(lambda: run.step.lower(run.like, batch, key, *frozen))

        def work():
            if (
                self.state is None or self.state.step.is_deleted()
            ):  # not yet, or lost with a row that ran out of memory
                self.state = run.init(key)
            for _ in range(self.steps):
                self.state, _ = step(self.state, batch, key, *frozen)
            jax.block_until_ready(self.state)

        images = self.steps * config.batch_size
        cost['least'] = cost['least'] and self.steps * cost['least']
        return measure.Program(work, images, run.flops, run.model.dtype.name, **cost)


define_flags = measure.define_flags


def main(args):
    config, variant = measure.configured(args)
    environment.use_cpu_cores(config.batch_size, size(config.model.variant)['width'])
    configs = measure.rows(config, CHANGES, args.rows, DEFAULT)
    steps = args.steps or 5
    what = f'train steps of batch {config.batch_size}, {steps} in a round'
    print(measure.title(args, variant, what))
    programs = measure.built(configs, Training(steps).program)
    measure.report(programs, args.rounds)


if __name__ == '__main__':
    environment.restart_with_variables()
    command_line.run(sys.modules[__name__], sys.argv[1:], 'python -m benchmarks.step')
