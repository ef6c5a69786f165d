"""JiT in Flax Linen: one parameter tree for every regime, over the 512-slot sequence of `sequence.py`.

The block is the published one (arXiv 2511.13720 and its official code). Around it, condition patches and class
tokens share the first 256 slots. Parameters of the L blocks are stacked along a leading axis, whether the blocks
run as a scan or one by one.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from jit_jax.model import sequence
from jit_jax.model.attention import RESIDUAL, attend, choose, live_first, rotate, rotation, take
from jit_jax.model.sequence import COND, GRID, Slots, join
from jit_jax.model.sharding import by_rows, split_by_tensor
from jit_jax.model.sizes import hidden_width

REMAT = {
    'none': None,
    'dots': jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(RESIDUAL),
    ),
    'full': jax.checkpoint_policies.nothing_saveable,
}


def xavier(key, shape, dtype=jnp.float32) -> jax.Array:
    """Xavier uniform on the fused matrix [shape[0], prod(shape[1:])], as the published initialisation has it."""
    limit = math.sqrt(6 / (shape[0] + math.prod(shape[1:])))
    return jax.random.uniform(key, shape, dtype, -limit, limit)


class Linear(nn.Module):
    """x [..., D] → [..., *features], with a fused kernel [D, *features]; parameters float32, arithmetic in `dtype`."""

    features: tuple[int, ...]
    kernel_init: initializers.Initializer = xavier
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        D = x.shape[-1]
        kernel = self.param('kernel', self.kernel_init, (D, *self.features)).astype(self.dtype)
        if not split_by_tensor():  # which a flat kernel could not be
            kernel = kernel.reshape(D, -1)
        # Rows flattened: the gradient of a 3-D product is 2.5 times slower on CPUs.
        y = jax.lax.dot_general(
            x.astype(self.dtype).reshape(-1, D), kernel, (((1,), (0,)), ((), ()))
        )
        if self.use_bias:
            y = y + self.param('bias', initializers.zeros, self.features).astype(
                self.dtype
            ).reshape(kernel.shape[1:])
        return y.reshape(*x.shape[:-1], *self.features)


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last axis, float32 inside, in x's dtype outside."""

    @nn.compact
    def __call__(self, x):
        weight = self.param('weight', initializers.ones, x.shape[-1:])
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + 1e-6)
        return (y * weight).astype(x.dtype)


def modulate(x, shift, scale) -> jax.Array:
    return x * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    """One transformer block: adaLN-Zero around attention and around SwiGLU."""

    heads: int
    dropout: float
    dtype: jnp.dtype
    attention: str = 'xla'

    @nn.compact
    def __call__(self, x, modulation, cos, sin, valid):
        """x [B, S, D]; modulation [B or 1, 6, D]; cos, sin [S, K/2]; valid bool [B, S] or None → [B, S, D]."""
        x = by_rows(x)
        B, S, D = x.shape
        drop = nn.Dropout(self.dropout, deterministic=self.dropout == 0)
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation[:, i] for i in range(6))

        h = modulate(RMSNorm(name='norm1')(x), shift1, scale1)
        qkv = Linear((3, self.heads, D // self.heads), dtype=self.dtype, name='qkv')(h)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)  # each [B, H, S, K]
        q = rotate(RMSNorm(name='q_norm')(q), cos, sin)
        k = rotate(RMSNorm(name='k_norm')(k), cos, sin)
        h = attend(q, k, v, valid, self.attention).transpose(0, 2, 1, 3).reshape(B, S, D)
        h = drop(Linear((D,), dtype=self.dtype, name='proj')(h))
        x = x + gate1[:, None] * h

        h = modulate(RMSNorm(name='norm2')(x), shift2, scale2)
        h = Linear((2, hidden_width(D)), dtype=self.dtype, name='w12')(h)
        h = drop(jax.nn.silu(h[:, :, 0]) * h[:, :, 1])
        return x + gate2[:, None] * Linear((D,), dtype=self.dtype, name='w3')(h)


class PatchEmbed(nn.Module):
    """Patches [B, n, P] of an h×w grid → tokens [B, n, D]: a bottleneck, then row entry + column entry."""

    width: int
    bottleneck: int
    tables: str
    freeze: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, patches, h: int, w: int):
        x = Linear((self.bottleneck,), use_bias=False, dtype=self.dtype, name='pixels')(patches)
        x = Linear((self.width,), dtype=self.dtype, name='out')(x)
        rows, cols = (
            sincos_tables(self.width)
            if self.tables == 'sincos'
            else [np.zeros((GRID, self.width))] * 2
        )
        rows = self.param('rows', lambda key: jnp.asarray(rows, jnp.float32))
        cols = self.param('cols', lambda key: jnp.asarray(cols, jnp.float32))
        positions = (rows[:h, None] + cols[None, :w]).reshape(h * w, self.width)
        if self.freeze:
            positions = jax.lax.stop_gradient(positions)
        return x + positions.astype(x.dtype)


def sincos_tables(width: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column tables [16, D] whose sums are the published 2-D sin-cos table.

    The first half of the channels encodes the column, the second half the row, each as [sin | cos].
    """
    omega = 10000.0 ** -(np.arange(width // 4) / (width / 4))
    angles = np.arange(GRID)[:, None] * omega
    half = np.concatenate([np.sin(angles), np.cos(angles)], 1)
    zero = np.zeros_like(half)
    return np.concatenate([zero, half], 1), np.concatenate([half, zero], 1)


def time_features(t, size: int = 256) -> jax.Array:
    """t [B] in [0, 1], not scaled → [B, size] of [cos | sin] with periods up to 10000."""
    frequency = jnp.exp(-math.log(10000) * jnp.arange(size // 2) / (size // 2))
    angles = t.astype(jnp.float32)[:, None] * frequency
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


class JiT(nn.Module):
    """Denoises images: z and its condition → x̂.

    Architecture (these decide the parameter tree or the function):
      image_size, channels: of the target; the patch is image_size / 16.
      depth, width, heads, bottleneck, class_tokens, class_start, dropout: a row of VARIANTS.
      num_classes: rows of the label table less one (the last is the null class); 0: no labels.
      tables: 'sincos' or 'zero', the start of both pairs of position tables; freeze_tables: the target's pair stays.
      null: what no condition is: 'mask' (zeros, dead) or 'token' (a learned token, live, in all 256 slots).
    Computation (the same function either way):
      dead_slots: 'skip' runs only the slots that can be live, 'keep' runs all 512.
      scan: blocks as one scanned body, or one by one; remat: a key of REMAT; dtype: of the arithmetic.
      attention: 'auto', or a backend of `attention.py`.
    """

    image_size: int
    depth: int
    width: int
    heads: int
    bottleneck: int
    class_tokens: int
    class_start: int
    dropout: float = 0.0
    channels: int = 3
    num_classes: int = 0
    tables: str = 'sincos'
    freeze_tables: bool = True
    null: str = 'mask'
    dead_slots: str = 'skip'
    scan: bool = True
    remat: str = 'none'
    dtype: jnp.dtype = jnp.float32
    attention: str = 'auto'

    def setup(self) -> None:
        embed = dict(
            width=self.width, bottleneck=self.bottleneck, tables=self.tables, dtype=self.dtype
        )
        self.target_embed = PatchEmbed(freeze=self.freeze_tables, **embed)
        self.cond_embed = PatchEmbed(freeze=False, **embed)
        normal, zeros = initializers.normal(0.02), initializers.zeros
        self.no_condition = self.param('no_condition', normal, (self.width,))
        self.time_in = Linear((self.width,), normal)
        self.time_out = Linear((self.width,), normal)
        if self.num_classes:
            self.classes = self.param('classes', normal, (self.num_classes + 1, self.width))
        if self.num_classes and self.class_tokens:  # a checkpoint cannot hold an empty array
            self.class_positions = self.param(
                'class_positions', normal, (self.class_tokens, self.width)
            )
        self.modulation_kernel = self.param(
            'modulation_kernel', zeros, (self.depth, self.width, 6, self.width)
        )
        self.modulation_bias = self.param('modulation_bias', zeros, (self.depth, 6, self.width))
        self.blocks = self.param('blocks', self._init_blocks)
        self.final_norm = RMSNorm()
        self.final_modulation = Linear((2, self.width), zeros, dtype=self.dtype)
        self.final = Linear(
            (sequence.patch_size(self.image_size) ** 2 * self.channels,), zeros, dtype=self.dtype
        )

    def _init_blocks(self, key):
        x = jnp.zeros((1, 1, self.width), self.dtype)
        angles = jnp.zeros((1, self.width // self.heads // 2))
        block = Block(self.heads, 0.0, self.dtype, parent=None)
        one = lambda key: block.init(key, x, jnp.zeros((1, 6, self.width)), angles, angles, None)[
            'params'
        ]
        return jax.vmap(one)(jax.random.split(key, self.depth))

    def __call__(
        self,
        z,
        t,
        cond=None,
        cond_valid=None,
        label=None,
        label_valid=None,
        cond_grid=None,
        *,
        train: bool = False,
    ):
        """Predicts the clean image.

        z: [B, H, W, C] noisy images. t: [B] times in [0, 1], or [1] when all rows share one.
        cond: [B, Hc, Wc, C] condition images of 1×1 to 16×16 patches of the target's size, or None.
        cond_valid: bool [B, n], the live condition patches of each row (rows first); None: all.
        label: int [B] in [0, num_classes], num_classes being the null class, or None.
        label_valid: bool [B], the rows that have a label at all; None: all.
        cond_grid: int [B, 2], where rows mix grids: cond is as large as the largest, and row b's own h×w patches lie at
          its top left, the rest being dead in cond_valid. None: cond is every row's grid.
        train: dropout is on, and needs rngs={'dropout': key}.
        Returns x̂ float32 [B, H, W, C]. Raises ValueError for shapes that do not fit.
        """
        B = len(z)
        self._check(z, cond, cond_valid, label)
        x = self.target_embed(sequence.patchify(z, self.patch), GRID, GRID)
        slots = self._condition_slots(
            B, cond, cond_valid, label is not None, label_valid, cond_grid
        )
        slots = slots._replace(
            tokens=jnp.concatenate([slots.tokens, x], 1),
            valid=None
            if slots.valid is None
            else jnp.pad(slots.valid, ((0, 0), (0, GRID * GRID)), constant_values=True),
            places=join(slots.places, sequence.place(GRID, GRID)),
        )

        c = self.time_out(jax.nn.silu(self.time_in(time_features(t))))  # [B or 1, D]
        class_tokens = None
        if label is not None:
            y = self.classes[label]  # [B, D]
            if label_valid is not None:
                y = jnp.where(label_valid[:, None], y, 0)
            c = c + y
            if self.class_tokens:
                class_tokens = (y[:, None] + self.class_positions).astype(
                    self.dtype
                )  # [B, class_tokens, D]
        c = jax.nn.silu(c).astype(self.dtype)

        x = self._run_blocks(slots, c, class_tokens, label_valid, train)
        shift, scale = self.final_modulation(c).transpose(1, 0, 2)
        x = modulate(self.final_norm(x[:, -GRID * GRID :]), shift, scale)
        return sequence.unpatchify(self.final(x).astype(jnp.float32), self.patch)

    @property
    def patch(self) -> int:
        return sequence.patch_size(self.image_size)

    def _check(self, z, cond, cond_valid, label):
        want = (self.image_size, self.image_size, self.channels)
        if z.shape[1:] != want:
            raise ValueError(
                f'z is [B, {want[0]}, {want[1]}, {want[2]}] for this model; got {list(z.shape)}.'
            )
        n = 0 if cond is None else math.prod(sequence.condition_grid(cond.shape, self.patch))
        if cond is not None and (cond.shape[0] != len(z) or cond.shape[3] != self.channels):
            raise ValueError(
                f'cond is [B, Hc, Wc, C] with the batch and channels of z {list(z.shape)}; got {list(cond.shape)}.'
            )
        if cond_valid is not None and cond_valid.shape != (len(z), n):
            raise ValueError(
                f'cond_valid is [B, n] = [{len(z)}, {n}], one flag a condition patch; got {list(cond_valid.shape)}.'
            )
        if label is not None and not self.num_classes:
            raise ValueError('label was given to a model without classes; set num_classes.')
        if label is not None and n + self.class_tokens > COND.stop:
            raise ValueError(
                f'{n} condition patches and {self.class_tokens} class tokens do not fit in {COND.stop} slots; '
                'use a smaller condition image or no label.'
            )

    def _condition_slots(self, B, cond, cond_valid, labelled, label_valid, cond_grid) -> Slots:
        """What stands before the target up to the block where class tokens enter."""
        n, valid = 0, None
        tokens, places = jnp.zeros((B, 0, self.width), self.dtype), np.zeros((0, 2), np.float32)
        if cond is not None:
            h, w = sequence.condition_grid(cond.shape, self.patch)
            n, valid, places = h * w, cond_valid, sequence.place(h, w, cond_grid)
            patches = sequence.patchify(cond, self.patch)
            if (
                valid is not None
            ):  # at the pixels, or a NaN would reach the gradient of the embedding's kernel
                patches = jnp.where(valid[:, :, None], patches, 0)
            tokens = self.cond_embed(patches, h, w)
            if valid is not None:
                tokens = jnp.where(valid[:, :, None], tokens, 0)
        elif self.is_initializing():
            self.cond_embed(
                jnp.zeros((1, 1, self.patch**2 * self.channels)), 1, 1
            )  # one tree for every regime

        empty = self._empty_rows(B, cond, cond_valid, labelled, label_valid)
        if self.dead_slots == 'keep' or empty is not None:
            dead = COND.stop - n
            valid = jnp.ones((B, n), bool) if valid is None else valid
            valid = jnp.pad(valid, ((0, 0), (0, dead)))
            tokens = jnp.pad(tokens, ((0, 0), (0, dead), (0, 0)))
            places = join(places, np.zeros((dead, 2)))
        if empty is not None:
            places = jnp.where(empty[:, None, None], 0, places)
            tokens = jnp.where(empty[:, None, None], self.no_condition.astype(self.dtype), tokens)
            valid = valid | empty[:, None]
        return Slots(tokens, valid, places, n)

    def _empty_rows(self, B, cond, cond_valid, labelled, label_valid):
        """bool [B], the rows whose condition slots hold the no-condition token, or None when no row can."""
        with_image, with_label = cond is not None, labelled
        if (
            self.null == 'mask'
            or (with_image and cond_valid is None)
            or (with_label and label_valid is None)
        ):
            return None
        empty = jnp.ones(B, bool)
        if with_image:
            empty = empty & ~cond_valid.any(1)
        if with_label:
            empty = empty & ~label_valid
        return empty

    def _run_blocks(self, slots, c, class_tokens, label_valid, train):
        """All blocks in runs that share a program: class tokens enter at `class_start`, dropout is in the middle half."""
        modulation = jnp.einsum('bd,ldce->lbce', c, self.modulation_kernel.astype(self.dtype))
        modulation = (
            modulation + self.modulation_bias.astype(self.dtype)[:, None]
        )  # [L, B or 1, 6, D], once a sample
        dropout = self.dropout > 0 and train
        first, last = self.depth // 4, self.depth // 4 * 3
        cuts = {
            0,
            self.depth,
            *([first, last] if dropout else []),
            *([] if class_tokens is None else [self.class_start]),
        }
        cuts = sorted(cuts)
        for start, stop in zip(cuts[:-1], cuts[1:]):
            if class_tokens is not None and start == self.class_start:
                slots = slots.insert(class_tokens, label_valid)
            rate = self.dropout if dropout and first <= start < last else 0.0
            keys = jax.random.split(self.make_rng('dropout'), stop - start) if rate else None
            layers = jax.tree.map(lambda p: p[start:stop], (self.blocks, modulation)) + (keys,)
            slots = slots._replace(tokens=self._run(rate, slots, layers, stop - start))
        return slots.tokens

    def _run(self, dropout, slots, layers, depth):
        B, S, _ = slots.tokens.shape
        head_width, order = self.width // self.heads, None
        attention = choose(self.attention, self.dtype, (B, self.heads, S, head_width))
        if (
            attention == 'cudnn' and slots.valid is not None
        ):  # once for all blocks, and back after them
            order, back = live_first(slots.valid)
            places = jnp.broadcast_to(slots.places, (*order.shape, 2))
            slots = Slots(
                take(slots.tokens, order),
                jnp.sort(slots.valid, 1, descending=True),
                take(places, order),
                slots.n,
            )
        cos, sin = rotation(slots.places, head_width)
        block = Block(self.heads, dropout, self.dtype, attention, parent=None)

        def one(x, layer):
            params, modulation, key = layer
            rngs = None if key is None else {'dropout': key}
            return block.apply(
                {'params': params}, x, modulation, cos, sin, slots.valid, rngs=rngs
            ), None

        if self.remat != 'none':
            one = jax.checkpoint(one, policy=REMAT[self.remat], prevent_cse=not self.scan)
        x = slots.tokens
        if self.scan:
            x, _ = jax.lax.scan(one, x, layers)
        else:  # `split`, because its gradient is one concatenation, where indexing's is a sum of L padded arrays
            leaves, tree = jax.tree.flatten(layers)
            for layer in zip(*(jax.lax.split(leaf, [1] * depth) for leaf in leaves)):
                x, _ = one(x, tree.unflatten([leaf[0] for leaf in layer]))
        return x if order is None else take(x, back)
