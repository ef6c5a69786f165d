"""Attention over the live slots of a sequence, and the rotation that places queries and keys in the picture."""

import jax
import jax.numpy as jnp
import numpy as np

THETA = 10000.0


def rotation(places, head_width: int):
    """cos and sin, float32 [S, K/2], for slots at `places` [S, 2] (row, column); at (0, 0) nothing turns.

    Places [B, S, 2] give [B, 1, S, K/2]. The first half of the pairs turns with the row, the second with the column;
    pair i of a half of d = K/2 channels turns by position / 10000^(2i/d) (official: `VisionRotaryEmbeddingFast`).
    """
    xp = np if isinstance(places, np.ndarray) else jnp
    d = head_width // 2
    frequency = THETA ** -(np.arange(0, d, 2) / d)  # [K/4]
    angles = xp.concatenate([places[..., :1] * frequency, places[..., 1:] * frequency], -1)  # [S, K/2]
    angles = angles if angles.ndim == 2 else angles[:, None]
    return xp.cos(angles).astype(jnp.float32), xp.sin(angles).astype(jnp.float32)


def rotate(x, cos, sin):
    """Turns x [B, H, S, K] by the angles of its slots; channel j pairs with channel j + K/2.

    The published code pairs neighbours (2j, 2j + 1). Here a head's even channels are stored first and its odd
    channels second, which turns the shuffle into two contiguous halves; `convert.py` reorders the weights.
    """
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1).astype(x.dtype)


def attend(q, k, v, valid=None):
    """softmax(q·kᵀ/√K)·v over live keys, with float32 logits and softmax.

    q, k, v: [B, H, S, K]; valid: bool [B, S] or None when every slot is live. What a dead key holds does not
    matter as long as it is finite. Every row needs a live key (a target always is one). Returns [B, H, S, K].
    """
    scale = q.shape[-1] ** -0.5
    logits = jnp.einsum('bhqk,bhsk->bhqs', q * scale, k, preferred_element_type=jnp.float32)
    if valid is not None:
        logits = jnp.where(valid[:, None, None, :], logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum('bhqs,bhsk->bhqk', weights, v)
