"""The learning rate's schedule and the optimizers, by hand and beside optax's own."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jit_jax.training.optimizer import learning_rate
from jit_jax.training.optimizer import optimizer as make_optimizer


def test_learning_rate_by_hand():
    peak = 5e-5 * 1024 / 256
    rate = learning_rate(5e-5, 1024, 1000, 100, 'constant')
    assert [float(rate(s)) for s in (0, 25, 100, 500, 10_000)] == pytest.approx(
        [0, peak / 4, peak, peak, peak]
    )
    assert peak == 2e-4  # as published, at batch 1024
    cosine = learning_rate(5e-5, 1024, 1100, 100, 'cosine')
    expected = [peak / 2, peak, peak * (1 + math.cos(math.pi / 4)) / 2, peak / 2, 0, 0]
    assert [float(cosine(s)) for s in (50, 100, 350, 600, 1100, 2000)] == pytest.approx(
        expected, abs=1e-11
    )


def test_learning_rate_without_warmup_starts_at_its_peak():
    assert float(learning_rate(1e-3, 256, 10, 0, 'constant')(0)) == pytest.approx(1e-3)


def shaped(seed):
    """A small tree with the paths of the real one."""
    random = np.random.default_rng(seed)
    blocks = {'qkv': (2, 8, 3, 2, 4), 'proj': (2, 8, 8), 'w12': (2, 8, 2, 16), 'w3': (2, 16, 8)}

    def array(*shape):
        return jnp.asarray(random.standard_normal(shape), jnp.float32)

    return {
        'blocks': {
            name: {'kernel': array(*s), 'bias': array(s[0], *s[2:])} for name, s in blocks.items()
        },
        'modulation_kernel': array(2, 8, 6, 8),
        'modulation_bias': array(2, 6, 8),
        'classes': array(5, 8),
        'final': {'kernel': array(8, 12)},
        'final_norm': {'weight': array(8)},
        'target_embed': {'rows': array(16, 8)},
    }


def kernels(tree):
    return {
        jax.tree_util.keystr(p): x
        for p, x in jax.tree_util.tree_leaves_with_path(tree)
        if 'kernel' in jax.tree_util.keystr(p)
    }


def test_adamw_by_hand():
    rate, b1, b2, decay = 0.01, 0.9, 0.95, 0.1
    optimizer = make_optimizer(optax.constant_schedule(rate), b1, b2, decay, 0.0)
    params, opt = shaped(0), None
    opt, m, v = optimizer.init(params), 0.0, 0.0
    update = jax.jit(optimizer.update)
    for i in (1, 2):
        gradients = shaped(i)
        updates, opt = update(gradients, opt, params)
        g, p = (np.asarray(tree['final']['kernel'], np.float64) for tree in (gradients, params))
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        step = -rate * (m / (1 - b1**i) / (np.sqrt(v / (1 - b2**i)) + 1e-8) + decay * p)
        np.testing.assert_allclose(updates['final']['kernel'], step, rtol=1e-4, atol=1e-7)
        params = optax.apply_updates(params, updates)


@pytest.mark.parametrize('muon_rms', [0.0, 0.2])
def test_the_first_moment_in_bfloat16(muon_rms):
    params, updates = shaped(0), {}
    for dtype in ('float32', 'bfloat16'):
        optimizer = make_optimizer(optax.constant_schedule(0.01), 0.9, 0.95, 0.1, muon_rms, dtype)
        updates[dtype], opt = jax.jit(optimizer.update)(shaped(1), optimizer.init(params), params)
        assert ('bfloat16' in {str(x.dtype) for x in jax.tree.leaves(opt)}) == (dtype == 'bfloat16')
    for a, b in zip(
        jax.tree.leaves(updates['float32']), jax.tree.leaves(updates['bfloat16']), strict=True
    ):
        assert b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=0.02 * np.abs(a).max())


@pytest.mark.parametrize('muon_rms', [0.0, 0.2])
def test_only_kernels_decay(muon_rms):
    optimizer = make_optimizer(optax.constant_schedule(0.01), 0.9, 0.95, 0.1, muon_rms)
    params = shaped(0)
    updates, _ = jax.jit(optimizer.update)(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        name = jax.tree_util.keystr(path)
        decays = name in kernels(params) and (
            'blocks' in name or not muon_rms
        )  # with Muon, its own alone
        expected = -0.01 * 0.1 * kernels(params)[name] if decays else 0
        np.testing.assert_allclose(
            update, np.broadcast_to(expected, update.shape), rtol=1e-5, atol=1e-9, err_msg=name
        )


def test_muon_takes_the_matrices_of_blocks_and_adamw_the_rest():
    rate = optax.constant_schedule(0.01)
    muon, adamw = (
        make_optimizer(rate, 0.9, 0.95, 0.0, 0.2),
        optax.adamw(rate, 0.9, 0.95, weight_decay=0.0, nesterov=True),
    )
    params, gradients = shaped(0), shaped(1)
    update = jax.jit(muon.update)
    ours, _ = update(gradients, muon.init(params), params)
    rest, _ = jax.jit(adamw.update)(gradients, adamw.init(params), params)
    blocks, rest_blocks = ours.pop('blocks'), rest.pop('blocks')
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, rest)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        *({n: x['bias'] for n, x in t.items()} for t in (blocks, rest_blocks)),
    )

    q = np.asarray(blocks['qkv']['kernel'])[:, :, 0].reshape(2, 8, 8)
    w1 = np.asarray(blocks['w12']['kernel'])[:, :, 0]
    for matrix in (
        *q,
        *w1,
        *np.asarray(blocks['proj']['kernel']),
        *np.asarray(blocks['w3']['kernel']),
    ):
        singular = np.linalg.svd(matrix, compute_uv=False)
        assert (
            singular.max() / singular.min() < 3
        )  # near orthogonal, where the gradient's ratio is 10 and more
        assert np.sqrt(np.mean(matrix**2)) == pytest.approx(0.01 * 0.2, rel=0.35)

    gradients['blocks']['qkv']['kernel'] = (
        gradients['blocks']['qkv']['kernel'].at[:, :, 1:].multiply(100)
    )
    changed, _ = update(gradients, muon.init(params), params)
    np.testing.assert_allclose(
        changed['blocks']['qkv']['kernel'][:, :, 0],
        blocks['qkv']['kernel'][:, :, 0],
        rtol=1e-4,
        atol=1e-6,
    )
