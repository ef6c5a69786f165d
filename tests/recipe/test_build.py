"""What keys of a config become: the numbers of a step and of a condition."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import cond, uncond
from jit_jax.diffusion.generate import Settings
from jit_jax.model.sizes import VARIANTS
from jit_jax.recipe import build
from jit_jax.training.ema import EMA

PARAMS = {'final': {'kernel': jnp.asarray([2.0, -3.0]), 'bias': jnp.asarray([5.0])}}


def recipe_of(config, **changes):
    config.update_from_flattened_dict(changes)
    return build.step_recipe(config, jax.devices()[0])


def test_the_learning_rate_follows_the_batch():
    how = {'optimizer.base_lr': 0.01, 'optimizer.warmup': 10, 'optimizer.schedule': 'constant'}
    for batch_size, peak in ((8, 0.01 / 32), (1024, 0.04)):
        rate = recipe_of(uncond.get_config(), batch_size=batch_size, **how).learning_rate
        found = [float(rate(step)) for step in (0, 5, 10, 100)]
        assert found == pytest.approx([0, peak / 2, peak, peak])


def test_a_cosine_ends_with_the_run():
    how = {'optimizer.warmup': 10, 'optimizer.schedule': 'cosine', 'steps': 50}
    rate = recipe_of(uncond.get_config(), **how).learning_rate
    assert float(rate(30)) == pytest.approx(float(rate(10)) / 2) and float(rate(50)) == 0


def test_the_numbers_of_a_step_are_those_of_the_config():
    how = {'condition.drop': 0.3, 'accumulate': 2, 'log_every': 7, 'diffusion.noise_scale': 3.0}
    how |= {'diffusion.t_mean': 0.1, 'diffusion.t_std': 0.2, 'diffusion.t_eps': 0.4}
    how |= {'diffusion.predict': 'eps', 'diffusion.loss': 'x'}
    how |= {'ema.decays': (0.5, 0.6), 'ema.warmup': True, 'ema.memory': 'host'}
    recipe = recipe_of(uncond.get_config(), **how)
    assert (recipe.drop, recipe.accumulate, recipe.log_every) == (0.3, 2, 7)
    assert recipe.ema == EMA((0.5, 0.6), warmup=True, memory='host')
    d = recipe.diffusion
    assert (d.noise_scale, d.t_mean, d.t_std, d.t_eps) == (3.0, 0.1, 0.2, 0.4)
    assert (d.predict, d.loss) == ('eps', 'x')


def test_adamw_has_the_moments_and_the_decay_of_the_config():
    how = {'optimizer.b1': 0.7, 'optimizer.b2': 0.8, 'optimizer.weight_decay': 0.5}
    how |= {'optimizer.muon_rms': 0.0, 'optimizer.warmup': 0, 'optimizer.mu_dtype': 'float32'}
    recipe = recipe_of(uncond.get_config(), **how)
    decays = {'final': {'kernel': True, 'bias': False}}
    by_hand = optax.adamw(recipe.learning_rate, 0.7, 0.8, weight_decay=0.5, mask=decays)
    found = [PARAMS, PARAMS]
    for i, optimizer in enumerate((recipe.optimizer, by_hand)):
        state = optimizer.init(PARAMS)
        for scale in (1.0, -0.2, 3.0):
            gradients = jax.tree.map(lambda p: scale * p, PARAMS)  # noqa: B023 used at once
            updates, state = optimizer.update(gradients, state, found[i])
            found[i] = optax.apply_updates(found[i], updates)
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_the_network_and_its_samples_are_those_of_the_config():
    config = uncond.get_config('imagenet512_h32')
    how = {'compute.remat': 'dots', 'compute.attention': 'xla', 'compute.dead_slots': 'keep'}
    how |= {'compute.scan': True, 'model.tables': 'zero', 'model.null': 'token'}
    how |= {'model.channels': 1, 'model.num_classes': 7, 'model.freeze_tables': False}
    how |= {'sample.sampler': 'euler', 'sample.steps': 9, 'sample.guidance': 1.7}
    how |= {'sample.interval': (0.2, 0.7), 'sample.t_eps': 0.3}
    how |= {'sample.skip_blocks': (3, 5), 'sample.skip_scale': 2.0}
    how |= {'sample.skip_interval': (0.1, 0.6)}
    model = recipe_of(config, **how).model
    for section in ('model', 'compute'):
        for name in vars(model).keys() & dict(config[section]).keys() - {'dtype'}:
            assert getattr(model, name) == config[section][name], name
    for name, value in VARIANTS['H'].items():
        assert getattr(model, name) == value, name
    plain = ('euler', 9, 1.7, (0.2, 0.7), 0.3)
    assert build.settings(config) == Settings(*plain, (3, 5), 2.0, (0.1, 0.6))


def conditioning_of(**changes):
    """What the condition of a config makes of four grey images of 16×16 patches."""
    condition = recipe_of(cond.get_config(), **changes).condition
    return condition(jnp.zeros((4, 32, 32, 3)), {}, jax.random.key(0))


def test_a_condition_has_the_numbers_of_the_config():
    kind = {'condition.kind': 'super_resolution'}
    for factor in (2, 4):
        small = conditioning_of(**kind, **{'condition.factor': factor})['cond']
        assert small.shape == (4, 32 // factor, 32 // factor, 3)
    kind = {'condition.kind': 'inpaint'}
    for side in (2, 5):
        valid = conditioning_of(**kind, **{'condition.hole': (side, side)})['cond_valid']
        assert (~valid).sum(1).tolist() == [side * side] * 4


def test_a_run_trains_on_train_and_holds_out_test(monkeypatch):
    """The two parts of a run are of the splits that config.data names, each in its place."""

    class Part:
        def __init__(self, split):
            self.split, self.classes, self.tokens = split, (), 0

        def __len__(self):
            return 40

    monkeypatch.setattr(build.data, 'open_source', lambda kind, *, split, **rest: Part(split))
    config = uncond.get_config()
    config.data.train, config.data.test = 'most', 'rest'
    config.mesh, config.optimizer.muon_rms = (8, 1, 1), 0.0
    run = build.run(config)
    assert (run.train.split, run.test.split) == ('most', 'rest')
