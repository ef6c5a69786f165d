"""Attention over the live slots of a sequence, and the rotation that places queries and keys in the picture."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.nn import dot_product_attention as fused
from jax.sharding import PartitionSpec

from jit_jax.model import sharding

BACKENDS = ('auto', 'xla', 'cudnn', 'splash')
RESIDUAL = 'attention'  # the name under which rematerialisation may keep what attention returns
THETA = 10000.0


def rotation(places, head_width: int) -> tuple:
    """cos and sin, float32 [S, K/2], for slots at `places` [S, 2] (row, column); at (0, 0) nothing turns.

    Places [B, S, 2] give [B, 1, S, K/2]. The first half of the pairs turns with the row, the second with the column;
    pair i of a half of d = K/2 channels turns by position / 10000^(2i/d) (official: `VisionRotaryEmbeddingFast`).
    """
    xp = np if isinstance(places, np.ndarray) else jnp
    d = head_width // 2
    frequency = THETA ** -(np.arange(0, d, 2) / d)  # [K/4]
    angles = xp.concatenate(
        [places[..., :1] * frequency, places[..., 1:] * frequency], -1
    )  # [S, K/2]
    angles = angles if angles.ndim == 2 else angles[:, None]
    return xp.cos(angles).astype(jnp.float32), xp.sin(angles).astype(jnp.float32)


def rotate(x, cos, sin) -> jax.Array:
    """Turns x [B, H, S, K] by the angles of its slots; channel j pairs with channel j + K/2.

    The published code pairs neighbours (2j, 2j + 1). Here a head's even channels are stored first and its odd
    channels second, which turns the shuffle into two contiguous halves; `convert.py` reorders the weights.
    """
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1).astype(x.dtype)


def attend(q, k, v, valid=None, backend: str = 'xla') -> jax.Array:
    """softmax(q·kᵀ/√K)·v over live keys, with float32 logits and softmax.

    q, k, v: [B, H, S, K]; valid: bool [B, S] or None when every slot is live. What a dead key holds does not
    matter as long as it is finite. Every row needs a live key (a target always is one). backend: what `choose`
    returned; 'cudnn' wants the live slots of each row first (`live_first`). Returns [B, H, S, K].
    """
    return checkpoint_name(
        {'xla': xla, 'cudnn': cudnn, 'splash': splash}[backend](q, k, v, valid), RESIDUAL
    )


def xla(q, k, v, valid) -> jax.Array:
    """Plain products, on any platform and of any shape."""
    scale = q.shape[-1] ** -0.5
    logits = jnp.einsum('bhqk,bhsk->bhqs', q * scale, k, preferred_element_type=jnp.float32)
    if valid is not None:
        logits = jnp.where(valid[:, None, None, :], logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum('bhqs,bhsk->bhqk', weights, v)


def cudnn(q, k, v, valid) -> jax.Array:
    """cuDNN's flash attention. A mask would become a bias of [B, 1, S, S]; the length of each row costs nothing."""
    lengths = None if valid is None else valid.sum(1, dtype=jnp.int32)
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    out = fused(q, k, v, key_value_seq_lengths=lengths, implementation='cudnn')
    return out.transpose(0, 2, 1, 3)


def splash(q, k, v, valid, interpret: bool = False) -> jax.Array:
    """The TPU's flash attention. Segments tell dead keys: every query is of segment 0, a dead key of segment 1.

    A kernel is opaque to the partitioner, so each device of the mesh in context runs it on its rows and heads.
    """
    from jax.experimental.pallas.ops.tpu import (
        splash_attention as kernels,
    )  # seconds of import that only a TPU needs

    def local(q, k, v, *valid):
        B, H, S, K = q.shape
        mask = kernels.MultiHeadMask([kernels.FullMask((S, S))] * H)
        one = kernels.make_splash_mha(
            mask,
            head_shards=1,
            q_seq_shards=1,
            residual_checkpoint_name=RESIDUAL,
            interpret=interpret,
        )
        segments = [
            kernels.SegmentIds(jnp.zeros((B, S), jnp.int32), jnp.where(live, 0, 1))
            for live in valid
        ]
        return jax.vmap(one)(q * K**-0.5, k, v, *segments)

    args = (q, k, v) if valid is None else (q, k, v, valid)
    if jax.sharding.get_abstract_mesh().empty:
        return local(*args)
    rows = PartitionSpec(sharding.BATCH[0], 'tensor')
    return jax.shard_map(
        local,
        in_specs=(rows,) * 3 + (sharding.BATCH,) * (len(args) - 3),
        out_specs=rows,
        check_vma=False,
    )(*args)


def choose(backend: str, dtype, shape: tuple[int, int, int, int]) -> str:
    """'xla', 'cudnn' or 'splash' for q of `shape` [B, H, S, K]: `backend` itself, or for 'auto' the fastest that can.

    The platform is that of the mesh in context, or JAX's own without one. Raises ValueError, in one sentence, where
    the one asked for cannot.
    """
    mesh = jax.sharding.get_abstract_mesh()
    platform = (
        jax.default_backend() if mesh.abstract_device is None else mesh.abstract_device.platform
    )
    rows, heads, slots, head_width = shape
    data, fsdp, tensor = (1, 1, 1) if mesh.empty else (mesh.shape[axis] for axis in sharding.AXES)
    needs = {
        'xla': (),
        'cudnn': (
            (platform == 'gpu', 'a GPU'),
            (jnp.dtype(dtype).itemsize == 2, 'compute.dtype=bfloat16'),
            (
                head_width % 8 == 0 and head_width <= 128,
                'a head width that is a multiple of 8 up to 128',
            ),
            (slots % 2 == 0, 'an even number of slots'),
        ),
        'splash': (
            (platform == 'tpu', 'a TPU'),
            (slots % 128 == 0, 'a multiple of 128 slots'),
            (
                rows % (data * fsdp) == 0 and heads % tensor == 0,
                'a batch and heads that split over the mesh',
            ),
            (not mesh.empty or jax.device_count() == 1, 'a mesh in context'),
        ),
    }
    wanted = (
        {'gpu': 'cudnn', 'tpu': 'splash'}.get(platform, 'xla') if backend == 'auto' else backend
    )
    missing = [need for met, need in needs[wanted] if not met]
    if missing and backend != 'auto':
        raise ValueError(
            f'compute.attention={backend} needs {missing[0]} (here {platform}, {jnp.dtype(dtype)}, {slots} slots of {head_width}); use auto.'
        )
    return 'xla' if missing else wanted


def live_first(valid) -> tuple[jax.Array, jax.Array]:
    """The order of each row's slots with live ones first, int [B, S], and its inverse: take(take(x, a), b) is x."""
    order = jnp.argsort(~valid, axis=1, stable=True)
    return order, jnp.argsort(order, axis=1)


def take(x, order) -> jax.Array:
    """x [B, S, …] with the slots of each row in `order` [B, S]."""
    return jnp.take_along_axis(x, order[:, :, None], 1)
