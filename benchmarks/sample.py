"""Speed of sampling with guidance, from untrained weights, beside the device's limit.

    python -m benchmarks.sample --config=configs/cond.py               # digits, filling in a hole
    python -m benchmarks.sample --config=configs/cond.py:imagenet256_b16_class --batch=4 --rounds=3

A config without a condition is sampled with 64 live slots. Guidance is on in the config's interval;
its strength does not matter to the time, unless it is 1.
"""

import sys

from benchmarks import measure
from jit_jax.commands import command_line, environment
from jit_jax.model.sizes import size

CHANGES = measure.CHANGES | {
    'unguided': {'sample.guidance': 1.0},
    'keep': {'compute.dead_slots': 'keep'},
    'skip': {'compute.dead_slots': 'skip'},
    '64': {'condition.kind': 'super_resolution', 'condition.factor': 2},
    'full': {'condition.kind': 'grayscale'},
    'class': {'condition.kind': 'class'},
    'euler': {'sample.sampler': 'euler'},
    'multistep': {'sample.sampler': 'multistep'},
}
DEFAULT = ['unguided', 'skip', 'keep', 'xla', 'cudnn', 'splash', 'float32', 'bfloat16']
GUIDANCE = 3.0  # where the config has none


def passes(settings) -> tuple[int, int]:
    """How often one image runs the conditional and the null branch."""
    import jax
    import jax.numpy as jnp

    from jit_jax.diffusion import guidance, samplers
    from jit_jax.diffusion.objective import Diffusion

    calls = {'conditioning': 0, 'null': 0}

    def count(name):
        def denoise(z, t):
            calls[name] += 1
            return z

        return denoise

    with jax.disable_jit():  # a scan is then a loop
        guided = guidance.guide(
            count('conditioning'), count('null'), settings.guidance, settings.interval
        )
        samplers.sample(
            guided,
            jnp.zeros((1, 1, 1, 1)),
            Diffusion(noise_scale=1.0),
            steps=settings.steps,
            sampler=settings.sampler,
        )
    return calls['conditioning'], calls['null']


def flops(config, model, settings) -> float:
    """Of one image: the products of both branches × 2 for multiply and add."""
    from jit_jax.model.sizes import forward_multiply_adds
    from jit_jax.recipe import checks

    patches, tokens, labelled = checks.condition_slots(config)
    conditional, null = passes(settings)
    return 2.0 * (
        conditional * forward_multiply_adds(model, patches, tokens, labelled=labelled)
        + null * forward_multiply_adds(model, 0, labelled=labelled)
    )


class Sampling:
    """Untrained parameters, which all rows share."""

    def __init__(self):
        self.params = None

    def program(self, config) -> measure.Program:
        import jax
        import jax.numpy as jnp

        from jit_jax.diffusion import conditions, generate
        from jit_jax.model import sharding
        from jit_jax.recipe import build, checks

        checks.check(config)
        model, settings = build.network(config), build.settings(config)
        mesh = sharding.make_mesh((-1, 1, 1))
        count, batch = config.batch_size, measure.noise(config)
        conditioning = build.condition(config)(
            conditions.from_uint8(batch['image']), batch, jax.random.key(0)
        )
        z, conditioning = sharding.spread(
            (generate.noise(jax.random.key(0), 0, count, model), conditioning), mesh
        )
        if self.params is None:

            def init(key):
                return model.init(key, jnp.zeros((1, *z.shape[1:])), jnp.zeros(1))['params']

            self.params = jax.jit(init, out_shardings=sharding.replicated(mesh))(jax.random.key(0))
        program = generate.sampling_program(
            model, build.diffusion(config), settings.sampler, settings.steps, settings.t_eps, mesh
        )
        guided = generate.guidance_arguments(settings.guidance, settings.interval)
        arguments = (self.params, z, conditioning, *guided)
        run, cost = measure.compiled(lambda: program.lower(*arguments))

        def work():
            jax.block_until_ready(run(*arguments))

        return measure.Program(
            work, count, flops(config, model, settings), model.dtype.name, **cost
        )


def settled(args):
    """The config with the flags in place, and the size's name.

    Where it has none, it gets a condition and guidance.
    """
    config, variant = measure.configured(args)
    config.sample.steps = args.steps or 50
    config.batch_size = args.batch or config.sample.num
    if config.condition.kind == 'none':
        config.condition.kind, config.condition.factor = 'super_resolution', 2
    if config.sample.guidance == 1:
        config.sample.guidance = GUIDANCE
    return config, variant


define_flags = measure.define_flags


def main(args):
    config, variant = settled(args)
    environment.use_cpu_cores(config.batch_size, size(config.model.variant)['width'])
    configs = measure.rows(config, CHANGES, args.rows, DEFAULT)
    s = config.sample
    what = f'{config.batch_size} images by {s.steps} {s.sampler} steps'
    condition = f'condition {config.condition.kind}, guidance on {tuple(s.interval)}'
    print(measure.title(args, variant, f'{what}, {condition}'))
    programs = measure.built(configs, Sampling().program)
    measure.report(programs, args.rounds)


if __name__ == '__main__':
    environment.restart_with_variables()
    command_line.run(sys.modules[__name__], sys.argv[1:], 'python -m benchmarks.sample')
