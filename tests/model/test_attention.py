import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jit_jax.model import attention
from jit_jax.model.attention import Layout, rotation
from jit_jax.model.sequence import GRID, place

B, H, S, K = 2, 2, 7, 16


def arrays(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def heads_first(x):
    """[B, S, H, K] ↔ [B, H, S, K], in which the references below are written."""
    return x.swapaxes(1, 2)


def attend(q, k, v, valid=None):
    layout = Layout('xla', cos=None, sin=None, valid=valid)
    return heads_first(attention.attend(*map(heads_first, (q, k, v)), layout))


def rotate(x, cos, sin):
    return heads_first(attention.rotate(heads_first(x), cos, sin))


def softmax_attention(q, k, v, valid):
    """One query at a time, over the live keys only, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for b, h, i in np.ndindex(q.shape[:3]):
        keys = np.flatnonzero(valid[b])
        logits = np.array([q[b, h, i] @ k[b, h, s] / np.sqrt(q.shape[-1]) for s in keys])
        weights = np.exp(logits - logits.max())
        out[b, h, i] = weights @ v[b, h, keys] / weights.sum()
    return out


@jax.jit
def attended(q, k, v, valid):
    """attend and the gradient of a fixed projection of it."""
    w = jnp.asarray(arrays(9, B, H, S, K))
    value, pull = jax.vjp(lambda *qkv: attend(*qkv, valid), q, k, v)
    return value, pull(w)


masks = st.lists(
    st.lists(st.booleans(), min_size=S, max_size=S).filter(any), min_size=B, max_size=B
)


@given(masks, st.integers(0, 99))
def test_attend_is_softmax_over_live_keys(valid, seed):
    q, k, v = arrays(seed, 3, B, H, S, K)
    np.testing.assert_allclose(
        attended(q, k, v, np.array(valid))[0],
        softmax_attention(q, k, v, np.array(valid)),
        atol=1e-5,
    )


@given(masks, st.sampled_from([1.0, -7.5, 1e6, 1e30]))
def test_what_dead_keys_hold_changes_nothing_and_gets_no_gradient(valid, garbage):
    valid = np.array(valid)
    q, k, v = arrays(1, 3, B, H, S, K)
    dead = ~valid[:, None, :, None]
    clean, gradients = attended(q, np.where(dead, 0, k), np.where(dead, 0, v), valid)
    dirty, dirty_gradients = attended(
        q, np.where(dead, garbage, k), np.where(dead, garbage, v), valid
    )
    np.testing.assert_array_equal(clean, dirty)
    for a, b in zip(gradients, dirty_gradients):
        np.testing.assert_array_equal(a, b)
    dk, dv = (np.moveaxis(np.asarray(g), 2, 1) for g in gradients[1:])  # [B, S, H, K]
    assert (dk[~valid] == 0).all() and (dv[~valid] == 0).all() and (dv[valid] != 0).any()


def test_no_mask_is_every_slot_live():
    q, k, v = arrays(2, 3, B, H, S, K)
    np.testing.assert_allclose(
        attend(q, k, v), softmax_attention(q, k, v, np.ones((B, S), bool)), atol=1e-5
    )


def test_logits_and_softmax_are_float32_in_bfloat16():
    q, k, v = arrays(3, 3, B, H, S, K)
    q[..., 0] = k[..., 0] = 16  # logits of 64 ± 1, which bfloat16 would round to halves
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))
    out = attend(q, k, v)
    exact = softmax_attention(q, k, v, np.ones((B, S), bool))  # of the same bfloat16 numbers
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), exact, atol=0.02)


def published_rotation(x, places):
    """Neighbours (2j, 2j + 1) as complex numbers: the first half of the head turns with the row,
    the second with the column.
    """
    K = x.shape[-1]
    out = np.zeros(x.shape)
    for s, (row, col) in enumerate(places):
        for j in range(K // 2):
            position, i = (row, j) if j < K // 4 else (col, j - K // 4)
            turned = (x[..., s, 2 * j] + 1j * x[..., s, 2 * j + 1]) * np.exp(
                1j * position / 10000 ** (2 * i / (K // 2))
            )
            out[..., s, 2 * j], out[..., s, 2 * j + 1] = turned.real, turned.imag
    return out


def halves(x):
    """Our order of a head's channels: even ones first, odd ones second."""
    return np.concatenate([x[..., 0::2], x[..., 1::2]], -1)


@settings(max_examples=20)
@given(st.lists(st.tuples(*[st.floats(0, 15, width=16)] * 2), min_size=S, max_size=S))
def test_rotation_is_the_published_one_on_neighbours(places):
    places = np.array(places)
    x = arrays(4, B, H, S, K)
    np.testing.assert_allclose(
        rotate(halves(x), *rotation(places, K)), halves(published_rotation(x, places)), atol=2e-6
    )


def test_rotation_of_rows_with_places_of_their_own():
    places = np.random.default_rng(0).uniform(0, 15, (B, S, 2))
    x = arrays(5, B, H, S, K)
    cos, sin = rotation(jnp.asarray(places), K)
    assert cos.shape == (B, S, 1, K // 2)
    expected = np.stack([published_rotation(x[b], places[b]) for b in range(B)])
    np.testing.assert_allclose(rotate(halves(x), cos, sin), halves(expected), atol=5e-6)


def test_the_origin_does_not_turn():
    cos, sin = rotation(np.zeros((S, 2)), K)
    assert (cos == 1).all() and (sin == 0).all()
    x = arrays(6, B, H, S, K)
    np.testing.assert_array_equal(rotate(x, cos, sin), x)


def test_a_16x16_condition_has_exactly_the_angles_of_the_target():
    target = [(row, col) for row in range(GRID) for col in range(GRID)]
    for ours, theirs in zip(rotation(place(16, 16), 64), rotation(np.array(target, float), 64)):
        np.testing.assert_array_equal(ours, theirs)


def test_logits_depend_on_the_distance_of_places_only():
    q, k = arrays(7, 2, 1, 1, 1, K)

    def logit(a, b):
        turned_q = rotate(q, *rotation(np.array([a]), K))
        turned_k = rotate(k, *rotation(np.array([b]), K))
        return float((turned_q * turned_k).sum())

    assert logit([3.0, 5.0], [1.0, 2.0]) == pytest.approx(logit([12.5, 8.0], [10.5, 5.0]), abs=1e-5)
    assert logit([3.0, 5.0], [1.0, 2.0]) != pytest.approx(
        logit([5.0, 3.0], [2.0, 1.0]), abs=1e-2
    )  # row is not column
