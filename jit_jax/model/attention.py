"""Attention over the live slots of a sequence, and the rotation that places queries and keys.

A run of blocks over the same slots goes through three functions:

    tokens, layout = prepare(tokens, valid, places, backend, head_width)   # once, before the blocks
    out = attend(q, k, v, layout)                                          # in each block
    tokens = restore(tokens, layout)                                       # once, after them

What a backend wants of the order of slots stays in here. q, k, v and out are [B, S, H, K].
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import linear_call
from jax.sharding import PartitionSpec

from jit_jax.errors import UserError
from jit_jax.hardware import cards
from jit_jax.model import sharding

BACKENDS = ('auto', 'xla', 'cudnn', 'splash')
FORWARD_MODE = 'xla'  # the one with derivatives in forward mode: cudnn's and splash's have none
KEPT = 'attention'  # the name under which rematerialisation may keep what attention returns
THETA = 10000.0
SPLASH_BLOCK = 128  # slots; splash takes whole blocks of them


@dataclass(frozen=True)
class Layout:
    """What attention needs beside q, k and v, the same for every block of a run."""

    backend: str  # 'xla', 'cudnn' or 'splash'
    cos: jax.Array | np.ndarray  # float32 [S, 1, K/2], or [B, S, 1, K/2]
    sin: jax.Array | np.ndarray
    valid: jax.Array | None  # bool [B, S]; None: every slot is live
    back: jax.Array | None = None  # int [B, S], the order that undoes the backend's own


def prepare(tokens, valid, places, backend: str, head_width: int) -> tuple[jax.Array, Layout]:
    """Tokens [B, S, D] in the order that a backend wants, and the layout for their blocks.

    valid: bool [B, S] or None when every slot is live. places: [S, 2] or [B, S, 2], as in
    `sequence.place`. backend: what `choose` returned.
    """
    if backend != 'cudnn' or valid is None:
        cos, sin = rotation(places, head_width)
        return tokens, Layout(backend, cos, sin, valid)
    # cuDNN makes a bias of [B, 1, S, S] from a mask. The length of each row costs nothing, but
    # needs the live slots first.
    order, back = live_first(valid)
    places = take(jnp.broadcast_to(places, (*order.shape, 2)), order)
    cos, sin = rotation(places, head_width)
    valid = jnp.sort(valid, 1, descending=True)
    return take(tokens, order), Layout(backend, cos, sin, valid, back)


def restore(tokens, layout: Layout) -> jax.Array:
    """Tokens [B, S, D] in the order of the sequence again."""
    return tokens if layout.back is None else take(tokens, layout.back)


def rotation(places, head_width: int) -> tuple:
    """cos and sin, float32 [S, 1, K/2], for slots at `places` [S, 2]; at (0, 0) nothing turns.

    Places [B, S, 2] give [B, S, 1, K/2]. The first half of the pairs turns with the row, the second
    with the column; pair i of a half of d = K/2 channels turns by position / 10000^(2i/d)
    (official: `VisionRotaryEmbeddingFast`).
    """
    xp = np if isinstance(places, np.ndarray) else jnp
    d = head_width // 2
    frequency = THETA ** -(np.arange(0, d, 2) / d)  # [K/4]
    rows, cols = places[..., :1], places[..., 1:]
    angles = xp.concatenate([rows * frequency, cols * frequency], -1)[..., None, :]
    return xp.cos(angles).astype(jnp.float32), xp.sin(angles).astype(jnp.float32)


def rotate(x, cos, sin) -> jax.Array:
    """Turns x [B, S, H, K] by the angles of its slots: float32. Channel j pairs with j + K/2.

    The published code pairs neighbours (2j, 2j + 1). Here a head's even channels are stored first
    and its odd channels second, which makes of the shuffle a roll by half a head; `official.py`
    reorders the weights.
    """
    return _turn(x.astype(jnp.float32), cos, sin)


@jax.custom_jvp
def _turn(x, cos, sin):
    """`rotate` of a float32 x, with a gradient of its own."""
    cos = jnp.concatenate([cos, cos], -1)
    sin = jnp.concatenate([-sin, sin], -1)
    return x * cos + jnp.roll(x, x.shape[-1] // 2, -1) * sin


@_turn.defjvp
def _turn_tangent(primals, tangents):
    """The gradient of a rotation is the rotation back; JAX's own of a roll adds padded halves.

    The angles are those of slots, and never have a tangent.
    """
    x, *angles = primals

    def turn(angles, x):
        return _turn(x, *angles)

    def turn_back(angles, x):
        cos, sin = angles
        return _turn(x, cos, -sin)

    return _turn(x, *angles), linear_call(turn, turn_back, angles, tangents[0])


def attend(q, k, v, layout: Layout) -> jax.Array:
    """softmax(q·kᵀ/√K)·v over live keys, with float32 logits and softmax.

    q, k, v: [B, S, H, K]; q and k may be float32, and are rounded to v's dtype here. What a dead
    key holds does not matter as long as it is finite. Every row needs a live key; a target always
    is one. Returns [B, S, H, K] in v's dtype.
    """
    if layout.backend == 'splash':
        # It does not scale. Before q is rounded: a factor that is no power of two rounds again.
        q = q * q.shape[-1] ** -0.5
    q, k = q.astype(v.dtype), k.astype(v.dtype)
    backends = {'xla': xla, 'cudnn': cudnn, 'splash': splash}
    out = backends[layout.backend](q, k, v, layout.valid)
    return checkpoint_name(out, KEPT)


def xla(q, k, v, valid) -> jax.Array:
    """Plain products, on any platform and of any shape."""
    # Heads before slots: on a CPU the products of [B, H, S, K] are twice as fast.
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    logits = jnp.einsum('bhqk,bhsk->bhqs', q, k, preferred_element_type=jnp.float32)
    logits = logits * q.shape[-1] ** -0.5
    if valid is not None:
        logits = jnp.where(valid[:, None, None, :], logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum('bhqs,bhsk->bhqk', weights, v).transpose(0, 2, 1, 3)


def cudnn(q, k, v, valid) -> jax.Array:
    """cuDNN's flash attention, over the first live slots of each row."""
    lengths = None if valid is None else valid.sum(1, dtype=jnp.int32)
    return jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=lengths, implementation='cudnn'
    )


def splash(q, k, v, valid, *, interpret: bool = False) -> jax.Array:
    """The TPU's flash attention, of scaled queries. Segments mark dead keys: queries are of segment
    0, dead keys of 1.

    Slots are padded with dead ones to whole blocks. A kernel is opaque to the partitioner, so each
    device of the mesh in context runs it on its rows and heads.
    """
    B, S, _, _ = q.shape
    padding = -S % SPLASH_BLOCK
    if padding:
        valid = jnp.ones((B, S), bool) if valid is None else valid
        valid = jnp.pad(valid, ((0, 0), (0, padding)))
        q, k, v = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (q, k, v))
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))

    def local(q, k, v, valid=None):
        return _splash_rows(q, k, v, valid, interpret=interpret)

    arguments = (q, k, v) if valid is None else (q, k, v, valid)
    if not jax.sharding.get_abstract_mesh().empty:
        heads = PartitionSpec(sharding.BATCH[0], 'tensor')
        specs = (heads, heads, heads, sharding.BATCH)[: len(arguments)]
        local = jax.shard_map(local, in_specs=specs, out_specs=heads, check_vma=False)
    out = local(*arguments)
    return out.transpose(0, 2, 1, 3)[:, :S]


def _splash_rows(q, k, v, valid, *, interpret: bool):
    """Splash over q, k, v [B, H, S, K] of one device."""
    # Seconds of import that only a TPU needs.
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels

    B, H, S, _ = q.shape
    mask = kernels.MultiHeadMask([kernels.FullMask((S, S))] * H)
    kernel = kernels.make_splash_mha(
        mask, head_shards=1, q_seq_shards=1, residual_checkpoint_name=KEPT, interpret=interpret
    )
    if valid is None:
        return jax.vmap(kernel)(q, k, v)
    segments = kernels.SegmentIds(jnp.zeros((B, S), jnp.int32), jnp.where(valid, 0, 1))
    return jax.vmap(kernel)(q, k, v, segments)


def choose(backend: str, dtype, shape: tuple[int, int, int, int]) -> str:
    """'xla', 'cudnn' or 'splash' for q of `shape` [B, S, H, K].

    That is `backend` itself, or for 'auto' the fastest that can run. The platform is that of the
    mesh in context, or JAX's own without one. Raises UserError where the one asked for cannot run.
    """
    mesh = jax.sharding.get_abstract_mesh()
    platform, kind = _device(mesh)
    if backend == 'auto':
        fastest = {'gpu': 'cudnn', 'tpu': 'splash'}.get(platform, 'xla')
        return 'xla' if _missing(fastest, platform, kind, dtype, shape, mesh) else fastest
    missing = _missing(backend, platform, kind, dtype, shape, mesh)
    if missing:
        _, slots, _, head_width = shape
        here = f'{platform}, {jnp.dtype(dtype)}, {slots} slots of {head_width}'
        raise UserError(f'compute.attention={backend} needs {missing[0]} (here {here}); use auto.')
    return backend


def _device(mesh) -> tuple[str, str]:
    """Platform and kind of the devices of a mesh; of JAX's own where it names none."""
    if mesh.abstract_device is not None:
        return mesh.abstract_device.platform, mesh.abstract_device.device_kind
    return jax.default_backend(), jax.devices()[0].device_kind


def _missing(backend: str, platform: str, kind: str, dtype, shape, mesh) -> list[str]:
    """What a backend needs and does not have, in words."""
    rows, slots, heads, head_width = shape
    data, fsdp, tensor = (1, 1, 1)
    if not mesh.empty:
        data, fsdp, tensor = (mesh.shape[axis] for axis in sharding.AXES)
    if backend == 'cudnn':
        capability = cards.capability(kind) or (0, 0)
        needs = [
            (platform == 'gpu' and capability >= (8, 0), 'an NVIDIA GPU of compute capability 8.0'),
            (jnp.dtype(dtype).itemsize == 2, 'compute.dtype=bfloat16'),
            (head_width % 8 == 0 and head_width <= 128, 'a head width of 8, 16, … 128'),
            (slots % 2 == 0, 'an even number of slots'),
        ]
    elif backend == 'splash':
        splits = rows % (data * fsdp) == 0 and heads % tensor == 0
        needs = [
            (platform == 'tpu', 'a TPU'),
            (splits, 'a batch and heads that split over the mesh'),
            (not mesh.empty or jax.device_count() == 1, 'a mesh in context'),
        ]
    else:
        needs = []
    return [need for met, need in needs if not met]


def live_first(valid) -> tuple[jax.Array, jax.Array]:
    """The order of each row's slots with live ones first, int [B, S], and its inverse."""
    order = jnp.argsort(~valid, axis=1, stable=True)
    return order, jnp.argsort(order, axis=1)


def take(x, order) -> jax.Array:
    """x [B, S, …] with the slots of each row in `order` [B, S]."""
    return jnp.take_along_axis(x, order[:, :, None], 1)
