"""On an NVIDIA GPU: fused attention, the network in bfloat16 and the train step agree with plain
operations in float32.

    JAX_PLATFORMS=cuda pytest -n 0 tests/test_gpu.py

Without that variable, or without a GPU, nothing here runs.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import measure
from configs import cond
from jit_jax.model import attention, sharding
from jit_jax.model.attention import Layout, live_first
from jit_jax.model.jit import JiT
from jit_jax.recipe import build

pytestmark = pytest.mark.skipif(
    jax.default_backend() != 'gpu', reason='needs JAX_PLATFORMS=cuda and a GPU'
)
B, H = 4, 2
SLOTS = (256, 288, 320, 512)
EXACT = jax.default_matmul_precision('highest')  # a GPU's float32 products are TF32 otherwise


def error(found, expected) -> float:
    """‖found − expected‖ / ‖expected‖; NaN where either has one."""
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def scattered(slots: int):
    """bool [B, slots]: the last 256 are live, and of those before every row has others."""
    random = np.random.default_rng(slots).random((B, slots))
    return jnp.asarray((random < np.linspace(0, 1, B)[:, None]) | (np.arange(slots) >= slots - 256))


def value_and_gradients(backend, q, k, v, valid, w):
    """Attention's output, and the gradients of its product with w [B, S, H, K]."""
    value, pull = jax.vjp(lambda *qkv: backend(*qkv, valid), q, k, v)
    return value, *pull(w.astype(value.dtype))


@pytest.mark.parametrize('K', [64, 80, 104])  # of B and L, of H, of G
@pytest.mark.parametrize('dead', [False, True])
@pytest.mark.parametrize('S', SLOTS)
def test_fused_attention_errs_as_plain_bfloat16_does(S, dead, K):
    random = np.random.default_rng(0)
    q, k, v, w = (jnp.asarray(random.standard_normal((B, S, H, K)), jnp.bfloat16) for _ in range(4))
    valid = scattered(S) if dead else None
    if dead:
        order, _ = live_first(valid)
        rows = jax.vmap(lambda x, order: x[order])
        q, k, v, w = (rows(x, order) for x in (q, k, v, w))
        valid = jnp.sort(valid, 1, descending=True)
        w = jnp.where(valid[:, :, None, None], w, 0)  # what a dead query says is not read
    whole = [x.astype(jnp.float32) for x in (q, k, v)]
    with EXACT:
        expected = jax.jit(partial(value_and_gradients, attention.xla))(*whole, valid, w)
    plain = jax.jit(partial(value_and_gradients, attention.xla))(q, k, v, valid, w)
    fused = jax.jit(partial(value_and_gradients, attention.cudnn))(q, k, v, valid, w)
    live = np.ones((B, S), bool) if valid is None else np.asarray(valid)
    for name, a, b, truth in zip(('out', 'dq', 'dk', 'dv'), fused, plain, expected, strict=True):
        # Its backward pass rounds the weights and their gradient to bfloat16; XLA's need not.
        assert error(a[live], truth[live]) <= 2 * error(b[live], truth[live]) + 1e-3, name
        if name != 'out':
            assert not np.asarray(a, np.float32)[~live].any(), f'{name} of a dead slot'


def test_what_a_dead_key_holds_does_not_matter():
    S = 320
    q, k, v = (jax.random.normal(jax.random.key(i), (B, S, H, 64), jnp.bfloat16) for i in range(3))
    valid = jnp.sort(scattered(S), 1, descending=True)
    dead = ~valid[:, :, None, None]
    layout = Layout('cudnn', None, None, valid)

    @jax.jit
    def attended(held):
        return attention.attend(q, jnp.where(dead, held, k), jnp.where(dead, held, v), layout)

    out = [attended(jnp.bfloat16(held)) for held in (0, 1e4)]
    live = np.asarray(valid)
    np.testing.assert_array_equal(*(np.asarray(x, np.float32)[live] for x in out))


def network(**computation) -> JiT:
    """Two blocks with heads of 64 channels, on images of 32×32."""
    sizes = dict(depth=2, width=128, heads=2, bottleneck=16, class_tokens=4, class_start=1)
    return JiT(**sizes, image_size=32, num_classes=5, dropout=0.0, **computation)


@pytest.mark.parametrize('dead_slots', ['skip', 'keep'])
@pytest.mark.parametrize('grid', [None, 4, 8, 16])
def test_the_network_errs_no_more_with_fused_attention(grid, dead_slots):
    key = jax.random.key(0)
    z, cond_image = jax.random.normal(key, (2, B, 32, 32, 3))
    conditioning = {'label': jnp.arange(B), 'label_valid': jnp.arange(B) < 2}
    if grid is None:
        conditioning = {}
    elif grid < 16:
        conditioning['cond'] = cond_image[:, : 2 * grid, : 2 * grid]
        conditioning['cond_valid'] = jax.random.bernoulli(key, 0.5, (B, grid**2))
    else:
        conditioning = {'cond': cond_image}
    t = jnp.linspace(0.1, 0.9, B)
    shapes = jax.eval_shape(network().init, key, z, t)['params']
    params = jax.tree.map(
        lambda x: 0.05 * jax.random.normal(jax.random.key(x.size), x.shape), shapes
    )

    def run(**computation):
        model = network(dead_slots=dead_slots, scan=False, **computation)

        def loss(params, z):
            out = model.apply({'params': params}, z, t, **conditioning)
            return (out * cond_image).sum(), out

        (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, z)
        flat = [np.asarray(x, np.float32).ravel() for x in jax.tree.leaves(gradients)]
        return np.asarray(out), np.concatenate(flat)

    with EXACT:
        expected = run(attention='xla')
    plain = run(dtype=jnp.bfloat16, attention='xla')
    fused = run(dtype=jnp.bfloat16, attention='cudnn')
    for a, b, truth in zip(fused, plain, expected, strict=True):
        assert error(a, truth) <= 1.2 * error(b, truth)
        assert error(a, truth) < 0.03


def test_training_on_the_card():
    """The default recipe, with dead slots: bfloat16, cuDNN, and a loss that falls."""
    config = cond.get_config()
    sizes = 'depth=2,width=128,heads=2,bottleneck=16,class_tokens=0,class_start=1,dropout=0.0'
    config.model.variant = sizes
    config.batch_size, config.mesh, config.optimizer.warmup = 8, (1, 1, 1), 1
    run = build.programs(config, build.mesh(config, jax.devices()[:1]))
    assert run.model.dtype == jnp.bfloat16
    batch = sharding.to_device(measure.noise(config), run.mesh)
    step = run.step.lower(run.like, batch, jax.random.key(0)).compile()
    assert 'cudnn$fmha' in step.as_text()
    state, losses = run.init(jax.random.key(0)), []
    for _ in range(30):
        state, metrics = step(state, batch, jax.random.key(0))
        losses.append(float(metrics['loss']))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
