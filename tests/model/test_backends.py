"""The fused kernels of attention: splash runs here in interpret mode, cuDNN's is only lowered, its
arguments are checked.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from jit_jax.diffusion.objective import Diffusion
from jit_jax.model import attention, sharding
from jit_jax.model.attention import choose, live_first, take
from jit_jax.model.jit import JiT
from jit_jax.training import step
from jit_jax.training.ema import EMA
from jit_jax.training.state import init_state

S = 128
D = Diffusion(noise_scale=1.0)
H100, T4 = 'NVIDIA H100 80GB HBM3', 'Tesla T4'
PATTERNS = {
    'all live': None,
    'the target alone': np.arange(S) >= 64,
    'a prefix beside it': (np.arange(S) < 9) | (np.arange(S) >= 64),
    'one key': np.arange(S) == 77,
    'scattered': np.random.default_rng(0).random(S) < 0.4,
}


def pod(platform, shape=(1, 1, 1)):
    """A mesh of devices that this machine does not have."""
    kind = platform
    if kind in (H100, T4):
        platform = 'gpu'
    device = AbstractDevice(kind, 1, platform)
    return AbstractMesh(
        shape, sharding.AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=device
    )


def heads_first(f):
    """A backend for q, k, v [B, H, S, K]."""

    def run(q, k, v, valid):
        return f(*(x.swapaxes(1, 2) for x in (q, k, v)), valid).swapaxes(1, 2)

    return run


xla = heads_first(attention.xla)


@heads_first
def splash(q, k, v, valid):
    return attention.splash(q * q.shape[-1] ** -0.5, k, v, valid, interpret=True)


def value_and_gradient(f, q, k, v, valid):
    w = np.random.default_rng(1).standard_normal(q.shape).astype(np.float32)
    value, pull = jax.vjp(lambda *qkv: f(*qkv, valid), q, k, v)
    return value, pull(w)


def rows(name, B):
    pattern = PATTERNS[name]
    return None if pattern is None else jnp.stack([jnp.roll(pattern, 3 * b) for b in range(B)])


@pytest.mark.parametrize('K', [64, 80])
@pytest.mark.parametrize('name', PATTERNS)
def test_splash_is_xla(name, K):
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 2, S, K)).astype(np.float32)
    both = [jax.jit(partial(value_and_gradient, f))(q, k, v, rows(name, 2)) for f in (xla, splash)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), *both)


def test_scaled_queries_are_rounded_once(monkeypatch):
    """A head of 80 or 104 channels has a scale that is no power of two."""
    seen = {}

    def kept(q, k, v, valid):
        seen.update(q=q, k=k)
        return v

    monkeypatch.setattr(attention, 'splash', kept)
    q, k = np.random.default_rng(0).standard_normal((2, 1, S, 1, 80)).astype(np.float32)
    attention.attend(q, k, k.astype(jnp.bfloat16), attention.Layout('splash', 0, 0, None))
    np.testing.assert_array_equal(seen['q'], (q * 80**-0.5).astype(jnp.bfloat16))
    np.testing.assert_array_equal(seen['k'], k.astype(jnp.bfloat16))
    assert not np.array_equal(seen['q'], q.astype(jnp.bfloat16) * jnp.bfloat16(80**-0.5))


def test_splash_is_xla_on_a_mesh():
    q, k, v = np.random.default_rng(0).standard_normal((3, 4, 2, S, 64)).astype(np.float32)
    mesh = sharding.make_mesh((2, 2, 2))
    fused = jax.jit(sharding.within(mesh, partial(value_and_gradient, splash)))
    args = (
        *(
            jax.device_put(x, jax.NamedSharding(mesh, jax.P(('data', 'fsdp'), 'tensor')))
            for x in (q, k, v)
        ),
        rows('scattered', 4),
    )
    value, gradients = fused(*args)
    assert {s.data.shape for s in value.addressable_shards} == {
        (1, 1, S, 64)
    }  # each device kept its rows and heads
    expected = value_and_gradient(xla, q, k, v, rows('scattered', 4))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5),
        (value, gradients),
        expected,
    )


@pytest.mark.parametrize(
    'dead_slots, name', [('skip', 'uncond'), ('keep', 'whole'), ('skip', 'full'), ('keep', 'mixed')]
)
def test_live_slots_first_is_the_same_function(
    tiny, params, conditioning, run, monkeypatch, name, dead_slots
):
    model = tiny(dead_slots=dead_slots)
    expected = run(model, params, conditioning['z'], conditioning['t'], **conditioning[name])
    seen, plain = [], jax.nn.dot_product_attention

    def by_length(
        q, k, v, key_value_seq_lengths, implementation
    ):  # what cuDNN is asked for, by plain products
        seen.append(key_value_seq_lengths)
        return plain(q, k, v, key_value_seq_lengths=key_value_seq_lengths)

    monkeypatch.setattr(attention, 'choose', lambda *_: 'cudnn')
    monkeypatch.setattr(attention.jax.nn, 'dot_product_attention', by_length)
    found = run(
        model.clone(attention='cudnn'),
        params,
        conditioning['z'],
        conditioning['t'],
        **conditioning[name],
    )
    assert seen and all(
        (lengths is None) == (dead_slots == 'skip' and name in ('uncond', 'whole'))
        for lengths in seen
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3, rtol=1e-4), found, expected
    )


def test_live_first_keeps_the_order_of_live_slots():
    valid = jnp.array([[0, 1, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]], bool)
    order, back = live_first(valid)
    np.testing.assert_array_equal(order, [[1, 2, 4, 0, 3], [0, 1, 2, 3, 4], [4, 0, 1, 2, 3]])
    x = np.arange(30).reshape(3, 5, 2)
    np.testing.assert_array_equal(take(take(x, order), back), x)


@pytest.mark.parametrize(
    'platform, dtype, shape, mesh, chosen',
    [
        ('cpu', 'float32', (4, 256, 2, 64), (1, 1, 1), 'xla'),
        (H100, 'bfloat16', (4, 288, 2, 64), (1, 1, 1), 'cudnn'),
        (H100, 'float32', (4, 288, 2, 64), (1, 1, 1), 'xla'),
        (H100, 'bfloat16', (4, 271, 2, 64), (1, 1, 1), 'xla'),
        (H100, 'bfloat16', (4, 256, 2, 132), (1, 1, 1), 'xla'),
        (T4, 'bfloat16', (4, 256, 2, 64), (1, 1, 1), 'xla'),  # it has no such kernel
        ('gpu', 'bfloat16', (4, 256, 2, 64), (1, 1, 1), 'xla'),  # nor may a card nobody knows
        ('tpu', 'bfloat16', (4, 256, 2, 104), (2, 2, 2), 'splash'),
        ('tpu', 'bfloat16', (4, 288, 2, 64), (1, 1, 1), 'splash'),  # padded to whole blocks
        ('tpu', 'bfloat16', (1, 256, 2, 64), (2, 2, 2), 'xla'),
        ('tpu', 'bfloat16', (4, 256, 3, 64), (2, 2, 2), 'xla'),
    ],
)
def test_auto_is_the_fused_kernel_where_it_can(platform, dtype, shape, mesh, chosen):
    with jax.sharding.use_abstract_mesh(pod(platform, mesh)):
        assert choose('auto', dtype, shape) == chosen
        assert choose('xla', dtype, shape) == 'xla'
        for backend in {'cudnn', 'splash'} - {chosen}:
            with pytest.raises(
                ValueError, match=f'compute.attention={backend} needs .*; use auto.'
            ) as error:
                choose(backend, dtype, shape)
            assert '\n' not in str(error.value)


KERNELS = {
    'gpu': (r'__cudnn\$fmhaSoftmax\b', r'__cudnn\$fmhaSoftmaxBackward'),
    'tpu': ('splash_mha_fwd', 'splash_mha_dkv'),
}


@pytest.mark.parametrize('platform', KERNELS)
@pytest.mark.parametrize('partial_condition', [False, True])
def test_the_train_step_lowers_with_the_fused_kernel(platform, partial_condition, monkeypatch):
    monkeypatch.setattr(
        'jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version', lambda: 91000
    )  # none is here
    sizes = dict(depth=2, width=128, heads=2, bottleneck=8, class_tokens=4, class_start=1)
    model = JiT(
        **sizes,
        image_size=32,
        dead_slots='keep' if partial_condition else 'skip',
        dtype=jnp.bfloat16,
    )
    optimizer, conditioning = (
        optax.adamw(1e-4),
        lambda x, batch, key: {'cond': x, 'cond_valid': x[:, :, :8, 0].reshape(-1, 256) > 0},
    )
    recipe = step.Recipe(
        model=model,
        diffusion=D,
        condition=conditioning if partial_condition else lambda *_: {},
        drop=0.1,
        optimizer=optimizer,
        learning_rate=optax.constant_schedule(1e-4),
        ema=EMA((0.99,)),
        accumulate=1,
        log_every=1,
    )
    with jax.sharding.use_abstract_mesh(pod(H100 if platform == 'gpu' else platform)):
        key = jax.random.key(0)
        state = jax.eval_shape(partial(init_state, model, optimizer=optimizer, decays=(0.99,)), key)
        batch = {
            'image': jax.ShapeDtypeStruct((4, 32, 32, 3), np.uint8),
            'label': jax.ShapeDtypeStruct((4,), np.int32),
        }
        text = (
            jax.jit(partial(step.train_step, recipe=recipe))
            .trace(state, batch, key)
            .lower(lowering_platforms=({'gpu': 'cuda'}.get(platform, platform),))
            .as_text()
        )
    assert all(re.search(kernel, text) for kernel in KERNELS[platform])
    assert not re.search(r'tensor<4x(1|2)x(256|512)x\d+xi1>', text)  # no mask of all pairs
