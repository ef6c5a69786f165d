"""MeanFlow: the equations on a flow that is known, and the network under them."""

from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CLASSES, perturb
from flax.traverse_util import flatten_dict

from jit_jax.diffusion import generate, meanflow
from jit_jax.diffusion.objective import Diffusion, expand
from jit_jax.diffusion.perceptual import Perceptual
from jit_jax.diffusion.samplers import sample
from jit_jax.model.jit import LAYERED
from jit_jax.training import step

D = Diffusion(noise_scale=2.0, t_eps=0.0, objective='meanflow')
Z = 2 * np.random.default_rng(0).standard_normal((6, 2, 2, 1)).astype(np.float32)
T = np.array([0.0, 0.2, 0.5, 0.9, 0.4, 0.3], np.float32)
END = np.array([1.0, 0.6, 1.0, 0.95, 0.4, 0.31], np.float32)
MEAN, SPREAD = 0.3, 0.5  # of the images: independent normal pixels


def gaussian(z, t, end):
    """x̂(z, t, end) of normal pixels, in closed form: the flow keeps (z − t·MEAN) / deviation."""
    t, r = expand(t, z), expand(end, z)

    def variance(t):
        return (t * SPREAD) ** 2 + ((1 - t) * D.noise_scale) ** 2

    # The deviation at r over that at t, less 1, over r − t: without a division by r − t.
    change = (t + r) * SPREAD**2 - (2 - t - r) * D.noise_scale**2
    change = change / (variance(t) + jnp.sqrt(variance(t) * variance(r)))
    return z + (1 - t) * (MEAN + (z - t * MEAN) * change)


@pytest.mark.parametrize('steps', [1, 2, 5])
def test_a_step_of_any_length_follows_a_linear_flow_exactly(steps):
    images = sample(gaussian, Z, D, steps=steps, sampler='meanflow')
    np.testing.assert_allclose(images, MEAN + Z * SPREAD / D.noise_scale, atol=1e-5)


def test_at_a_step_of_no_length_it_is_the_flow():
    """Its velocity is E[x − e | z]: of x by regression on z, and of e from both."""
    t, z = T[:, None, None, None], Z
    gain = t * SPREAD**2 / ((t * SPREAD) ** 2 + ((1 - t) * D.noise_scale) ** 2)
    np.testing.assert_allclose(
        gaussian(z, T, T), MEAN + gain * (z - t * MEAN), rtol=1e-5, atol=1e-5
    )


def rows_of(network, **told):
    """Rows whose images are what the network expects, so that it should be regressed on itself."""
    rows = {'z': Z, 't': T, 'told': {'end': END} | told}
    return rows | {'x': meanflow.at_once(network, rows)}


def test_the_identity_holds_of_a_linear_flow_and_of_nothing_else():
    found = meanflow.truth(gaussian, gaussian, rows_of(gaussian), replace(D, mean_every=1), 6)
    np.testing.assert_allclose(found, gaussian(Z, T, END), rtol=1e-4, atol=1e-5)

    def flow(z, t, end):  # as if the average velocity were the first one
        return gaussian(z, t, t)

    found = meanflow.truth(flow, flow, rows_of(flow), replace(D, mean_every=1), 3)
    assert (np.abs(found - flow(Z, T, END)).max((1, 2, 3)) > 0.01).tolist() == (
        (END - T) > 0.02
    ).tolist()


def test_rows_without_a_step_keep_their_image():
    rows = rows_of(gaussian)
    found = meanflow.truth(gaussian, gaussian, rows, replace(D, mean_every=3), 1)
    kept = np.array([0, 1, 3, 4])
    np.testing.assert_array_equal(found[kept], rows['x'][kept])
    np.testing.assert_allclose(found[2], gaussian(Z, T, END)[2], rtol=1e-4, atol=1e-5)
    found = meanflow.truth(gaussian, gaussian, rows, replace(D, mean_every=3), 2)
    np.testing.assert_array_equal(found[:4], rows['x'][:4])
    np.testing.assert_allclose(found[4:], gaussian(Z, T, END)[4:], rtol=1e-4, atol=1e-5)


# Guidance


def guided(z, t, end=None, guidance=1.0, label=None):
    """As if guidance mixed two networks, which say 0.2·z and 0.6·z."""
    w = expand(jnp.asarray(guidance), z)
    x, x_null = 0.6 * z, 0.2 * z
    null = jnp.full(len(z), False) if label is None else jnp.asarray(label) == CLASSES
    return jnp.where(expand(null, z), x_null, x_null + w * (x - x_null))


def test_guidance_as_an_input_comes_to_be_the_mixture_of_two_networks():
    scale = np.array([1.0, 2.0, 3.0, 1.5, 4.0, 2.0], np.float32)
    label = np.array([0, 1, 2, 3, 4, CLASSES])  # the last one has lost its condition
    told = {'end': T, 'guidance': scale, 'label': label}
    x = np.where((label < CLASSES)[:, None, None, None], 0.6 * Z, 0.2 * Z)
    rows, d = {'x': x, 'z': Z, 't': T, 'told': told}, replace(D, mean_every=6, guidance=(1.0, 4.0))
    found = meanflow.truth(guided, guided, rows, d, 1, CLASSES)[:5]
    np.testing.assert_allclose(found, guided(Z, T, **told)[:5], rtol=1e-5)
    lost = meanflow.guided(guided, rows | {'here': guided(Z, T, **told)}, CLASSES)[5]
    np.testing.assert_array_equal(lost, x[5])


class Guided:
    """`guided` as a network."""

    guidance, num_classes, dtype = True, CLASSES, jnp.float32

    def clone(self, **changes):
        return self

    def apply(self, variables, z, t, end=None, guidance=1.0, label=None):
        return guided(z, t, end, guidance, label)


def test_a_guided_sample_takes_one_pass():
    passes, label = [], np.arange(6) % CLASSES
    found = generate.generate(
        {},
        Z,
        {'label': label},
        2.5,
        model=Guided(),
        d=D,
        sampler='meanflow',
        steps=1,
        t_eps=0.0,
        watch=lambda t, z, x_hat: passes.append(float(t)),
    )
    jax.effects_barrier()
    noise = D.noise_scale * Z
    np.testing.assert_allclose(found, (0.2 + 2.5 * 0.4) * noise, rtol=1e-5)
    assert passes == [0.0]


# What is drawn


def test_one_row_of_so_many_has_a_step():
    d = replace(D, mean_every=4, uniform=0.25, guidance=(1.0, 8.0))
    t, told = meanflow.draw(jax.random.key(0), 8192, d)
    stepping = np.asarray(told['end'] > t)
    assert (told['end'] >= t).all() and t.min() >= 0 and told['end'].max() <= 1
    for parts in (1, 2, 32):  # row b goes to part b mod parts
        together = meanflow.GROUP // parts
        by_part = stepping.reshape(-1, parts).T.reshape(parts, -1, 4, together)
        assert by_part[:, :, 3].all() and not by_part[:, :, :3].any()
    assert np.median(told['guidance']) == pytest.approx(8**0.5, rel=0.1)
    logits = np.asarray(jnp.log(t / (1 - t)))[~stepping]
    share = np.mean(np.abs(logits - d.t_mean) > 4 * d.t_std)  # of uniform times alone, nearly
    assert share == pytest.approx(0.25 * (1 / (1 + np.exp(4.0)) + 1 / (1 + np.exp(2.4))), abs=0.01)


def test_the_weight_of_a_row_is_in_its_gradient_alone():
    loss, d = jnp.array([0.0, 1.0, 4.0]), replace(D, adaptive=1.0)
    rows, back = jax.vjp(partial(meanflow.weighted, pixels=5, d=d), loss)
    np.testing.assert_allclose(rows, loss, rtol=1e-6)
    np.testing.assert_allclose(back(jnp.ones(3))[0], 1 / (5 * loss + meanflow.SMOOTH), rtol=1e-6)


# The network


@pytest.fixture(scope='module')
def few(tiny, params):
    """A model with the end and guidance as inputs, and its parameters at the start of fine-tuning
    `params`.
    """
    model = tiny(end_time=True, guidance=True)
    init = jax.jit(model.init)
    fresh = init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.zeros(1))['params']
    return model, jax.tree.map(np.asarray, fresh | params)


def test_new_parameters_leave_the_others_as_they_start(few, tiny, fresh):
    model, _ = few
    init = jax.jit(model.init)
    found = init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.zeros(1))['params']
    same = {name: found[name] for name in fresh}
    jax.tree.map(np.testing.assert_array_equal, same, fresh)
    new = set(found) - set(fresh)
    assert new == {'end_in', 'end_out', 'guidance_in', 'guidance_out'}


@pytest.mark.parametrize('name', ['uncond', 'several'])
def test_the_first_step_of_a_fine_tuning_computes_the_old_function(
    few, tiny, params, conditioning, name
):
    model, start = few
    z, t, told = conditioning['z'], conditioning['t'], conditioning[name]
    how = {'end': (1 + t) / 2, 'guidance': 1 + 3 * t}
    old = jax.jit(tiny().apply)({'params': params}, z, t, **told)
    network = jax.jit(model.apply)
    new = network({'params': start}, z, t, **told, **how)
    # XLA orders the sums of two programs in two ways; what enters the blocks is the same, bit for
    # bit.
    np.testing.assert_allclose(new, old, atol=1e-6)
    old = tiny().apply({'params': params}, t, None, None, method='_time_embedding')
    new = model.apply({'params': start}, t, *how.values(), method='_time_embedding')
    np.testing.assert_array_equal(new, old)

    moved = {'params': perturb(start, 0.3)}
    x_hat = network(moved, z, t, **told, **how)
    for other in ({'end': t}, {'guidance': 1 + 0 * t}):
        assert (np.abs(network(moved, z, t, **told, **how | other) - x_hat) > 1e-3).any()


def drawn(conditioning, **changes):
    """Rows of every kind of condition, all with a step."""
    z, t = conditioning['z'], conditioning['t']
    told = {'end': (1 + t) / 2, 'guidance': 1 + 3 * t} | conditioning['several'] | changes
    return {'x': np.tanh(z[::-1]), 'z': z, 't': t, 'conditioning': told}


def shallow(few):
    """The first block alone, which compiles in half the time, away from its start."""
    model, start = few
    first = {name: jax.tree.map(lambda x: x[:1], start[name]) for name in LAYERED}
    return model.clone(depth=1, class_start=0), perturb(start | first, 0.05)


@pytest.fixture(scope='module')
def learn(few):
    """(rows, dtype of the products) → what x̂ is regressed on; in float32, the loss and its
    gradients too.
    """
    model, moved = shallow(few)
    d = replace(D, t_eps=0.05, mean_every=1, guidance=(1.0, 4.0))

    @cache
    def program(dtype):
        recipe = SimpleNamespace(
            diffusion=d, model=model.clone(dtype=dtype), perceptual=Perceptual(), accumulate=1
        )

        def both(params, rows):
            truth = step.mean_truth(params, rows, recipe)
            if dtype == jnp.bfloat16:
                return truth
            learn = jax.value_and_grad(step.batch_loss, has_aux=True)
            rows = rows | {'truth': truth}
            (loss, _), gradients = learn(params, rows, jax.random.key(0), recipe)
            return truth, loss, gradients

        return jax.jit(both)

    def run(rows, dtype=jnp.float32):
        return jax.tree.map(np.asarray, program(dtype)(moved, rows))

    return run


@pytest.fixture(scope='module')
def learned(learn, conditioning):
    return learn(drawn(conditioning))


def test_every_part_of_the_network_learns(learned):
    _, loss, gradients = learned
    assert np.isfinite(loss)
    tables = ('rows', 'cols')  # of the target, which stay
    for name, gradient in flatten_dict(gradients, sep='/').items():
        assert np.isfinite(gradient).all(), name
        still = name == 'no_condition' or (
            name.startswith('target_embed') and name.endswith(tables)
        )
        assert np.any(gradient) != still, name


def test_the_derivative_along_the_flow_is_that_of_differences(few, learned, conditioning):
    """x̂ a little later on the flow, and a little earlier."""
    model, moved = shallow(few)
    rows, network = drawn(conditioning), partial(jax.jit(model.apply), {'params': moved})
    z, t, told = rows['z'], rows['t'], rows['conditioning']
    here, without = (
        network(z, t, **told | {'end': t}),
        network(
            z,
            t,
            end=t,
            guidance=told['guidance'],
            label=np.full(5, CLASSES),
            label_valid=told['label_valid'],
        ),
    )
    x = rows['x'] + (1 - 1 / expand(told['guidance'], z)) * (here - without)
    share, length = expand((told['end'] - t) / (1 - t), z), expand(told['end'] - t, z)
    h = 1e-2 * (1 - t)  # and of the way from z to x̂ so much
    ahead, behind = (network(z + s * (here - z), t + s * (1 - t), **told) for s in (1e-2, -1e-2))
    change = length * (ahead - behind) / expand(2 * h, z)
    expected = x + change + share * (network(z, t, **told) - here)
    scale = np.abs(change).max()
    np.testing.assert_allclose(learned[0], expected, atol=0.01 * scale)
    assert scale > 0.1 and np.abs(learned[0] - x - change).max() > 0.01


@pytest.mark.parametrize('garbage', [np.nan, 3e38])
def test_nothing_in_a_dead_slot_matters(learn, learned, conditioning, garbage):
    """Neither to what x̂ is regressed on, through derivatives, nor to the gradients."""
    some, dirty = conditioning['several'], {}

    def soiled(image, live):
        rows, columns = image.shape[1] // 2, image.shape[2] // 2
        pixels = live.reshape(5, rows, columns).repeat(2, 1).repeat(2, 2)[..., None]
        return np.where(pixels, image, np.float32(garbage))

    dirty['cond'] = soiled(some['cond'], some['cond_valid'])
    recalled = np.split(some['references_valid'], [16], 1)
    dirty['references'] = tuple(map(soiled, some['references'], recalled))
    known = some['cond_tokens_valid'][..., None]
    dirty['cond_tokens'] = np.where(known, some['cond_tokens'], np.float32(garbage))
    dirty['label'] = np.where(some['label_valid'], some['label'], 2)
    found = learn(drawn(conditioning, **dirty))
    jax.tree.map(np.testing.assert_array_equal, found, learned)


def test_bfloat16_is_close_to_float32(learn, learned, conditioning):
    truth = learn(drawn(conditioning), jnp.bfloat16)
    error = np.linalg.norm(truth - learned[0]) / np.linalg.norm(learned[0])
    assert truth.dtype == np.float32 and 0 < error < 0.03
