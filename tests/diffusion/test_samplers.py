from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CLASSES

from jit_jax.diffusion import conditions, generate
from jit_jax.diffusion.guidance import guide
from jit_jax.diffusion.objective import Diffusion, convert
from jit_jax.diffusion.samplers import SAMPLERS, sample
from jit_jax.model import sharding

D = Diffusion(noise_scale=1.0)
Z = np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype(np.float32)


def along(v):
    """The denoiser whose velocity is v(z, t), clamp and all."""
    return lambda z, t, *end: z + jnp.maximum(1 - t, D.t_eps).reshape(-1, 1, 1, 1) * v(z, t[0])


def solve(v, steps, sampler):
    return np.asarray(jax.jit(lambda z: sample(along(v), z, D, steps=steps, sampler=sampler))(Z))


@dataclass(frozen=True)
class Saying:
    """A network that has x̂ = 0.3·z + t in mind and says it as `predict`."""

    predict: str
    dtype: jnp.dtype = jnp.float32

    def clone(self, **changes):
        return self

    def apply(self, variables, z, t, end=None):
        x_hat = 0.3 * z + t.reshape(-1, 1, 1, 1)
        return convert(x_hat, z, t, D, source='x', target=self.predict)


@pytest.mark.parametrize('sampler', SAMPLERS)
def test_images_are_the_same_whatever_a_network_predicts(sampler):
    """But for ε at t = 0, which says nothing of x."""

    def images(predict):
        d, seen = replace(D, predict=predict), []
        how = {'sampler': sampler, 'steps': 9, 't_eps': D.t_eps}
        how['watch'] = lambda t, z, x_hat: seen.append(x_hat)
        found = generate.generate({}, Z, {}, model=Saying(predict), d=d, **how)
        jax.effects_barrier()
        return np.asarray(found), np.asarray(seen[0])

    as_x, first = images('x')
    np.testing.assert_allclose(first, 0.3 * Z, atol=1e-6)
    as_v, first = images('v')
    np.testing.assert_allclose(first, 0.3 * Z, atol=1e-6)
    np.testing.assert_allclose(as_v, as_x, atol=1e-5)
    as_eps, first = images('eps')
    np.testing.assert_allclose(first, 0 * Z, atol=1e-6)
    assert np.isfinite(as_eps).all() and np.abs(as_eps - as_x).max() > 1e-3


@pytest.mark.parametrize('steps', [1, 2, 5, 50])
def test_heun_is_exact_on_a_linear_ode_but_for_its_last_euler_step(steps):
    a, b, h = 0.7, -3.0, 1 / steps  # dz/dt = a + b·t
    heun, euler = (solve(lambda z, t: a + b * t, steps, sampler) for sampler in ('heun', 'euler'))
    exact = Z + a + b / 2
    np.testing.assert_allclose(
        heun, exact - b * h * h / 2, atol=1e-5
    )  # an Euler step of h misses b·h²/2
    np.testing.assert_allclose(euler, exact - b * h / 2, atol=1e-5)


def test_orders_of_convergence():
    exact = Z * np.exp(-1.5)

    def error(steps, sampler):
        return np.abs(solve(lambda z, t: -1.5 * z, steps, sampler) - exact).max()

    for sampler, order in (('euler', 1), ('heun', 2), ('multistep', 2)):
        assert np.log2(error(8, sampler) / error(16, sampler)) == pytest.approx(order, abs=0.3)
        assert np.log2(error(16, sampler) / error(32, sampler)) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize('sampler', SAMPLERS)
def test_a_loop_by_hand(sampler):
    """The published sampler, in float64: Heun on 51 points but the last two, then Euler; and the
    multistep method likewise.
    """

    def net(xp, z, t):
        return xp.sin(3 * z) * (0.5 + t)

    def v(z, t):
        return (net(np, z, t) - z) / max(1 - t, 0.05)

    z, times, now = Z.astype(np.float64), np.linspace(0, 1, 51), 0.0
    for i in range(50):
        h = times[i + 1] - times[i]
        slope = v(z, times[i])
        if sampler == 'heun' and i < 49:
            slope = (slope + v(z + h * slope, times[i + 1])) / 2
        before, now = now, slope
        if sampler == 'multistep' and 0 < i < 49:
            slope = 1.5 * now - 0.5 * before
        z = z + h * slope
    ours = jax.jit(
        lambda z: sample(lambda z, t, *end: net(jnp, z, t[0]), z, D, steps=50, sampler=sampler)
    )(Z)
    np.testing.assert_allclose(ours, z, atol=2e-4)


@pytest.mark.parametrize('sampler', SAMPLERS)
def test_without_a_clamp_the_last_step_ends_on_x_hat_bit_for_bit(sampler):
    """With the published one, 50 steps end 0.02 / 0.05 of the way there, and 20 steps on it too."""
    last = Z[::-1] / 3

    def denoise(z, t, *end):
        return jnp.where(t > 0.94, last, jnp.sin(3 * z) * (0.5 + t))

    def images(t_eps, steps, start=0.0):
        d = replace(D, t_eps=t_eps)
        draw = partial(sample, denoise, d=d, steps=steps, sampler=sampler)
        return np.asarray(jax.jit(draw)(Z, start=start))

    np.testing.assert_array_equal(images(0.0, 50), last)
    np.testing.assert_array_equal(images(0.0, 7, start=0.999), last)
    np.testing.assert_allclose(images(0.05, 20), last, atol=1e-5)
    assert np.abs(images(0.05, 50) - last).max() > 0.01


def test_the_noise_that_a_clamp_leaves_in_an_image_of_zeros():
    """By Heun's method with the published 0.05, as docs/evaluation.md has it."""

    def left(steps, t_eps):
        d = replace(D, t_eps=t_eps)
        return float(sample(lambda z, t: 0 * z, np.ones((1, 1, 1, 1)), d, steps=steps)[0, 0, 0, 0])

    for steps, share in ((20, 0), (25, 0.0088), (50, 0.0171)):
        assert left(steps, 0.05) == pytest.approx(share, abs=5e-5) and left(steps, 0.0) == 0


@pytest.mark.parametrize(
    'sampler, steps, count',
    [('heun', 50, 99), ('euler', 50, 50), ('multistep', 50, 50), ('heun', 1, 1), ('euler', 1, 1)],
)
def test_network_passes(sampler, steps, count):
    times = []

    def denoise(z, t, *end):
        jax.debug.callback(lambda t: times.append(float(t[0])), t)
        return z

    jax.block_until_ready(jax.jit(lambda z: sample(denoise, z, D, steps=steps, sampler=sampler))(Z))
    jax.effects_barrier()
    assert len(times) == count and max(times) < 0.99 and min(times) == 0  # t = 1 is never asked for


def test_state_and_velocity_are_float32_whatever_the_network_says():
    asked = []

    def denoise(z, t, *end):
        asked.append((z.dtype, t.dtype, t.shape))
        return (0.5 * z).astype(jnp.bfloat16)

    out = sample(denoise, jnp.asarray(Z, jnp.bfloat16), D, steps=4)
    assert (
        set(asked) == {(jnp.dtype('float32'), jnp.dtype('float32'), (1,))}
        and out.dtype == jnp.float32
    )


@pytest.mark.parametrize('sampler', SAMPLERS)
def test_a_start_at_zero_is_the_whole_way_bit_for_bit(sampler):
    def denoise(z, t, *end):
        return jnp.sin(3 * z) * (0.5 + t)

    def run(z, start):
        return sample(denoise, z, D, steps=5, sampler=sampler, start=start)

    whole = jax.jit(lambda z: sample(denoise, z, D, steps=5, sampler=sampler))(Z)
    np.testing.assert_array_equal(jax.jit(run)(Z, 0.0), whole)
    assert np.abs(jax.jit(run)(Z, 0.4) - whole).max() > 0.1


@pytest.mark.parametrize('sampler', SAMPLERS)
def test_a_later_start_takes_all_steps_on_the_rest_of_the_way(sampler):
    """On dz/dt = a + b·t from t = 0.4; a multistep method has nothing before its first step."""
    a, b, steps = 0.7, -3.0, 6
    h = 0.6 / steps
    v = along(lambda z, t: a + b * t)
    found = np.asarray(sample(v, Z, D, steps=steps, sampler=sampler, start=0.4))
    exact = Z + a * 0.6 + b * (1 - 0.4**2) / 2
    missed = {'heun': b * h**2 / 2, 'euler': b * h * 0.6 / 2, 'multistep': b * h**2}
    missed['meanflow'] = missed['euler']  # of a network that says the same whatever the end is
    np.testing.assert_allclose(found, exact - missed[sampler], atol=1e-5)


def begun(tiny, params, z, t, x, steps=3):
    mesh = sharding.make_mesh((-1, 1, 1), jax.devices()[:1])
    draw = generate.compiled_sampler(
        tiny(), Diffusion(noise_scale=0.5), 'euler', steps, D.t_eps, mesh
    )
    begin = None if t is None else (t, x)
    return np.asarray(draw(params, z, {}, begin=begin))


def test_beginning_from_images_under_noise(tiny, params, conditioning, run):
    """z_t = t·x + (1 − t)·noise_scale·z; one step from there is the network's step at that t."""
    z, x = conditioning['z'], np.clip(conditioning['z'][::-1], -1, 1)
    z_t = 0.4 * x + 0.6 * 0.5 * z
    x_hat, _ = run(tiny(), params, z_t, np.full(5, 0.4, np.float32))
    np.testing.assert_allclose(begun(tiny, params, z, 0.4, x, steps=1), x_hat, atol=1e-4)


def test_beginning_at_zero_is_from_noise_and_near_one_from_the_image(tiny, params, conditioning):
    z, x = conditioning['z'], np.clip(conditioning['z'][::-1], -1, 1)
    np.testing.assert_array_equal(
        begun(tiny, params, z, 0.0, x), begun(tiny, params, z, None, None)
    )
    near = begun(tiny, params, z, 0.999, x)
    assert np.abs(near - x).max() < 0.1 < np.abs(begun(tiny, params, z, 0.4, x) - x).max()


def test_every_time_to_begin_at_shares_one_program(tiny, params, conditioning):
    mesh = sharding.make_mesh((-1, 1, 1), jax.devices()[:1])
    program = generate.sampling_program(
        tiny(), Diffusion(noise_scale=0.5), 'euler', 3, D.t_eps, mesh
    )
    begun(tiny, params, conditioning['z'], 0.5, conditioning['z'])
    before = program._cache_size()
    for t in (0.1, 0.3, 0.9):
        begun(tiny, params, conditioning['z'], t, conditioning['z'])
    assert program._cache_size() == before


# Guidance


def constant(value):
    return lambda z, t, *end: jnp.full_like(z, value)


@pytest.mark.parametrize(
    'interval, on',
    [
        ((0.0, 1.0), [0.0, 0.05, 0.1, 0.11, 0.5, 0.9, 0.99]),
        ((0.1, 1.0), [0.11, 0.5, 0.9, 0.99]),
        ((0.1, 0.9), [0.11, 0.5]),  # open at both ends
    ],
)
def test_guidance_is_on_inside_its_open_interval(interval, on):
    denoise = jax.jit(guide(constant(2.0), constant(-1.0), 3.0, interval))
    for t in (0.0, 0.05, 0.1, 0.11, 0.5, 0.9, 0.99, 1.0):
        expected = -1 + 3 * (2 - -1) if t in on else 2
        np.testing.assert_allclose(denoise(Z, jnp.array([t], jnp.float32)), expected)


def test_guidance_is_on_in_a_step_that_reaches_into_its_interval():
    denoise = jax.jit(guide(constant(2.0), constant(-1.0), 3.0, (0.25, 0.8)))
    for t, end, on in ((0, 1, True), (0, 0.25, False), (0.2, 0.3, True), (0.8, 0.9, False)):
        found = denoise(Z, *(jnp.array([time], jnp.float32) for time in (t, end)))
        np.testing.assert_allclose(found, -1 + 3 * (2 - -1) if on else 2)


def test_guidance_of_images_is_guidance_of_velocities():
    random = np.random.default_rng(1)
    x, x0 = random.standard_normal((2, *Z.shape)).astype(np.float32)
    for t in (0.2, 0.97):
        share = max(1 - t, D.t_eps)
        v, v0 = (x - Z) / share, (x0 - Z) / share
        guided = guide(lambda z, t: x, lambda z, t: x0, 2.5)(jnp.asarray(Z), jnp.array([t]))
        np.testing.assert_allclose((guided - Z) / share, v0 + 2.5 * (v - v0), rtol=1e-4, atol=1e-4)


def test_the_null_branch_runs_only_where_it_counts():
    calls = []

    def null(z, t):
        jax.debug.callback(lambda t: calls.append(round(float(t[0]), 3)), t)
        return z

    @jax.jit
    def run(scale):  # traced: one program for every scale
        net = guide(constant(0.0), null, scale, (0.25, 0.8))
        return sample(net, jnp.asarray(Z), D, steps=10, sampler='euler')

    jax.block_until_ready(run(1.0))
    jax.effects_barrier()
    assert calls == []
    jax.block_until_ready(run(2.0))
    jax.effects_barrier()
    assert sorted(calls) == [0.3, 0.4, 0.5, 0.6, 0.7]


def test_every_scale_and_interval_share_one_program(tiny, params, conditioning):
    mesh = sharding.make_mesh((-1, 1, 1), jax.devices()[:1])
    arguments = (tiny(), Diffusion(noise_scale=0.5), 'heun', 1, D.t_eps, mesh)
    draw = generate.compiled_sampler(*arguments)
    program = generate.sampling_program(*arguments)
    before = program._cache_size()
    images = [
        draw(params, conditioning['z'], conditioning['full'], scale, interval)
        for scale in (1.5, 2.0, 4.0)
        for interval in ((0.0, 1.0), (0.1, 0.9))
    ]
    assert program._cache_size() - before <= 1
    assert np.abs(images[0] - images[2]).max() > 0.001


def test_scale_one_is_a_program_without_the_null_branch(tiny, params, conditioning):
    mesh = sharding.make_mesh((-1, 1, 1), jax.devices()[:1])
    program = generate.sampling_program(
        tiny(), Diffusion(noise_scale=0.5), 'heun', 1, D.t_eps, mesh
    )
    arguments = (params, conditioning['z'], conditioning['full'])

    def branches(scale):
        guided = generate.guidance_arguments(scale, (0.0, 1.0))
        return program.lower(*arguments, *guided).as_text().count('stablehlo.case')

    assert branches(1.0) == 0 and branches(2.0) > 0


# The network under a condition, guided


@pytest.fixture(scope='module')
def first_step(tiny, params, conditioning):
    """(interval) → generate with one step, which is x̂ at t = 0, and guidance 3, from the batch
    `full`.
    """

    def images(interval, z):
        mesh = sharding.make_mesh((-1, 1, 1), jax.devices()[:1])
        draw = generate.compiled_sampler(
            tiny(), Diffusion(noise_scale=0.5), 'heun', 1, D.t_eps, mesh
        )
        return np.asarray(draw(params, z, conditioning['full'], 3.0, interval))

    return images


def test_generate_guides_away_from_the_network_without_condition_slots(
    tiny, params, conditioning, run, first_step
):
    zero = np.zeros(5, np.float32)
    x, _ = run(tiny(), params, 0.5 * conditioning['z'], zero, **conditioning['full'])
    x0, _ = run(tiny(), params, 0.5 * conditioning['z'], zero)
    np.testing.assert_allclose(
        first_step((0.0, 1.0), conditioning['z']), x0 + 3 * (x - x0), atol=1e-4
    )
    np.testing.assert_allclose(
        first_step((0.1, 1.0), conditioning['z']), x, atol=1e-4
    )  # at t = 0 not yet guided
    assert np.abs(x - x0).max() > 0.01


def test_generate_guides_a_class_away_from_the_null_class(tiny, params, conditioning, run):
    label, zero = np.array([0, 1, 2, 3, 4], np.int32), np.zeros(5, np.float32)
    mesh = sharding.make_mesh((-1, 1, 1), jax.devices()[:1])
    draw = generate.compiled_sampler(tiny(), Diffusion(noise_scale=0.5), 'heun', 1, D.t_eps, mesh)
    guided = draw(params, conditioning['z'], {'label': label}, 3.0, (0.0, 1.0))
    z = 0.5 * conditioning['z']
    x, _ = run(tiny(), params, z, zero, label=label)
    x0, _ = run(tiny(), params, z, zero, label=np.full_like(label, CLASSES))
    np.testing.assert_allclose(guided, x0 + 3 * (x - x0), atol=1e-4)
    assert np.abs(x - x0).max() > 0.01


# Guidance by the network without some of its blocks


def without_first_block(params):
    smaller = dict(params)
    for name in ('blocks', 'modulation_kernel', 'modulation_bias'):
        smaller[name] = jax.tree.map(lambda leaf: leaf[1:], params[name])
    return smaller


def skipping(tiny, params, conditioning, skip, given, *guided):
    mesh = sharding.make_mesh((-1, 1, 1), jax.devices()[:1])
    d = Diffusion(noise_scale=0.5)
    draw = generate.compiled_sampler(tiny(), d, 'heun', 1, D.t_eps, mesh, skip)
    return np.asarray(draw(params, conditioning['z'], given, *guided))


def test_skipping_a_block_guides_away_from_the_network_without_it(tiny, params, conditioning, run):
    z, zero = 0.5 * conditioning['z'], np.zeros(5, np.float32)
    x, _ = run(tiny(), params, z, zero)
    worse, _ = run(tiny(depth=1, class_start=0), without_first_block(params), z, zero)
    skip = generate.Settings(skip_blocks=(0,), skip_scale=3.0).skip
    guided = skipping(tiny, params, conditioning, skip, {})
    np.testing.assert_allclose(guided, worse + 3 * (x - worse), atol=1e-4)
    assert np.abs(x - worse).max() > 0.01
    late = skip._replace(interval=(0.5, 1.0))  # and the only pass is at t = 0
    np.testing.assert_allclose(skipping(tiny, params, conditioning, late, {}), x, atol=1e-4)


def test_skipping_goes_with_classes_and_their_guidance(tiny, params, conditioning, run):
    z, zero = 0.5 * conditioning['z'], np.zeros(5, np.float32)
    label = np.array([0, 1, 2, 3, 4], np.int32)
    x, _ = run(tiny(), params, z, zero, label=label)
    null, _ = run(tiny(), params, z, zero, label=np.full_like(label, CLASSES))
    worse, _ = run(tiny(depth=1, class_start=0), without_first_block(params), z, zero, label=label)
    skip = generate.SkipGuidance((0,), 2.0, (0.0, 1.0))
    found = skipping(tiny, params, conditioning, skip, {'label': label}, 3.0)
    guided = null + 3 * (x - null)
    np.testing.assert_allclose(found, worse + 2 * (guided - worse), atol=1e-4)


@pytest.mark.parametrize('how', [{}, {'skip_blocks': (0,)}, {'skip_scale': 3.0}])
def test_without_blocks_or_at_scale_one_nothing_is_skipped(how):
    assert generate.Settings(**how).skip is None


def test_blocks_left_out_of_a_list_of_weights_are_those_left_out_of_the_stack(tiny, params):
    """GPUs take the weights of blocks one by one."""
    model = tiny()
    weights = {'layers': generate.layers_of(params, model.depth)}
    smaller, stacked, listed = generate.without_blocks(model, params, weights, (0,))
    assert smaller.depth == len(listed['layers']) == 1 and smaller.class_start == 0
    jax.tree.map(
        np.testing.assert_array_equal,
        generate.layers_of(stacked, 1),
        listed['layers'],
    )


def test_an_image_does_not_depend_on_its_batch(conditioning, first_step):
    z = conditioning['z'].copy()
    images = first_step((0.0, 1.0), z)
    z[1:] = np.nan
    np.testing.assert_array_equal(first_step((0.0, 1.0), z)[0], images[0])


def test_noise_of_image_i_is_the_same_in_any_batching(tiny):
    key = jax.random.key(3)
    together = np.asarray(generate.noise(key, 0, 6, tiny()))
    apart = np.concatenate(
        [
            generate.noise(key, 0, 2, tiny()),
            generate.noise(key, 2, 2, tiny()),
            generate.noise(key, 4, 2, tiny()),
        ]
    )
    np.testing.assert_array_equal(together, apart)
    assert together.shape == (6, 32, 32, 3) and together.std() == pytest.approx(1, abs=0.03)
    assert len({image.tobytes() for image in together}) == 6
    other = generate.noise(jax.random.key(4), 0, 6, tiny())
    assert abs(np.corrcoef(together.ravel(), np.ravel(other))[0, 1]) < 0.03


def test_null_is_no_patches_and_the_null_class():
    conditioning = dict(
        cond=np.zeros((2, 2, 2, 3)),
        cond_valid=np.ones((2, 1), bool),
        cond_grid=np.ones((2, 2), int),
    )
    assert conditions.null(conditioning, 5) == {}
    label = dict(label=np.array([1, 2]), label_valid=np.array([True, False]))
    nulls = conditions.null(conditioning | label, 5)
    assert nulls.keys() == label.keys()
    np.testing.assert_array_equal(nulls['label'], [5, 5])
    np.testing.assert_array_equal(nulls['label_valid'], label['label_valid'])


def test_on_a_gpu_the_blocks_run_one_by_one(tiny, params, conditioning, monkeypatch):
    """And give the same images; a model that is to be scanned stays so."""
    z, whole = conditioning['z'], conditioning['whole']

    def draw(scan):
        how = dict(model=tiny(scan=scan), d=D, sampler='euler', steps=2, t_eps=0.0)
        return jax.jit(partial(generate.generate, **how))

    def loops(scan):
        return str(jax.make_jaxpr(draw(scan))(params, z, whole)).count('scan[')

    expected, elsewhere = draw(False)(params, z, whole), loops(False)
    monkeypatch.setattr(generate.sharding, 'platform', lambda: 'gpu')
    assert 1 == loops(False) < loops(True) == elsewhere
    np.testing.assert_allclose(draw(False)(params, z, whole), expected, atol=1e-4)
