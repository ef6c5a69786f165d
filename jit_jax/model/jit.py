"""JiT in Flax Linen: one parameter tree for every regime, over the 512 slots of `sequence.py`.

Around the published blocks (`block.py`), condition patches, tokens and class tokens share the first
256 slots. Parameters of the L blocks are stacked along a leading axis, whether the blocks run as a
scan or one by one.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers

from jit_jax.errors import UserError
from jit_jax.model import attention, sequence, shapes, sharding
from jit_jax.model.block import Block, init_blocks, kept_by, modulation_of
from jit_jax.model.layers import Linear, PatchEmbed, RMSNorm, time_features
from jit_jax.model.sequence import COND, GRID, Slots
from jit_jax.model.token_embed import TokenEmbed

LAYERED = ('blocks', 'modulation_kernel', 'modulation_bias')  # parameters [L, …]


class JiT(nn.Module):
    """Denoises images: z and its condition → x̂.

    Architecture (these decide the parameter tree or the function):
      image_size, channels: of the target; the patch is image_size / 16.
      depth, width, heads, bottleneck, class_tokens, class_start, dropout: a row of VARIANTS.
      num_classes: rows of the label table less one (the last is the null class); 0: no labels.
      reference_images: how many there may be beside the condition image; 0: no parameters for them.
      reference_place: 'aligned' with the target, or 'free' beside it.
      token_width: E, of condition tokens; 0: none.
      vocabulary: where tokens come as numbers, how many there are; 0: they come as embeddings.
      end_time, guidance: whether a step's end, and a scale of guidance, enter beside t (MeanFlow).
      tables: 'sincos' or 'zero', the start of both pairs of position tables.
      freeze_tables: the target's pair stays as it starts.
      null: what no condition is: 'mask' (zeros, dead) or 'token' (a learned token, live, in all 256
        slots).
    Computation (the same function either way):
      dead_slots: 'skip' runs only the slots that can be live, 'keep' runs all 512.
      scan: blocks as one scanned body, or one by one.
      remat: a key of REMAT, what the backward pass computes again.
      dtype: of the products. attention: 'auto', or a backend of `attention.py`.
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
    reference_images: int = 0
    reference_place: str = 'aligned'
    token_width: int = 0
    vocabulary: int = 0
    end_time: bool = False
    guidance: bool = False
    tables: str = 'sincos'
    freeze_tables: bool = True
    null: str = 'mask'
    dead_slots: str = 'skip'
    scan: bool = True
    remat: str = 'none'
    dtype: jnp.dtype = jnp.float32
    attention: str = 'auto'

    @property
    def patch(self) -> int:
        """The side of a patch in pixels."""
        return sequence.patch_size(self.image_size)

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def setup(self) -> None:
        normal, zeros = initializers.normal(0.02), initializers.zeros
        embed = dict(
            width=self.width, bottleneck=self.bottleneck, tables=self.tables, dtype=self.dtype
        )
        self.target_embed = PatchEmbed(freeze=self.freeze_tables, **embed)
        self.cond_embed = PatchEmbed(freeze=False, **embed)
        if self.token_width:
            self.token_embed = TokenEmbed(self.width, self.token_width, self.vocabulary, self.dtype)
        self.no_condition = self.param('no_condition', normal, (self.width,))
        self.time_in = Linear((self.width,), normal)
        self.time_out = Linear((self.width,), normal)
        if self.num_classes:
            self.classes = self.param('classes', normal, (self.num_classes + 1, self.width))
        if self.num_classes and self.class_tokens:
            shape = (self.class_tokens, self.width)
            self.class_positions = self.param('class_positions', normal, shape)
        shape = (self.depth, self.width, 6, self.width)
        self.modulation_kernel = self.param('modulation_kernel', zeros, shape)
        self.modulation_bias = self.param('modulation_bias', zeros, (self.depth, 6, self.width))
        self.blocks = self.param('blocks', self._init_blocks)
        self.final_norm = RMSNorm()
        self.final_modulation = Linear((2, self.width), zeros, dtype=self.dtype)
        self.final = Linear((self.patch**2 * self.channels,), zeros, dtype=self.dtype)
        # Last, so that all others start as they do without it.
        if self.reference_images:
            shape = (self.reference_images, self.width)
            self.which_reference = self.param('which_reference', normal, shape)
        # Their last layers are zero: a model begins with what it does without them.
        if self.end_time:
            self.end_in, self.end_out = Linear((self.width,), normal), Linear((self.width,), zeros)
        if self.guidance:
            self.guidance_in = Linear((self.width,), normal)
            self.guidance_out = Linear((self.width,), zeros)

    def _init_blocks(self, key):
        return init_blocks(key, self.depth, self.width, self.heads, self.dtype)

    def __call__(
        self,
        z,
        t,
        cond=None,
        cond_valid=None,
        label=None,
        label_valid=None,
        cond_grid=None,
        cond_tokens=None,
        cond_tokens_valid=None,
        references=(),
        references_valid=None,
        *,
        end=None,
        guidance=None,
        layers: list | None = None,
        train: bool = False,
    ):
        """Predicts the clean image.

        z: [B, H, W, C] noisy images. t: [B] times in [0, 1], or [1] when all rows share one.
        cond: [B, Hc, Wc, C] condition images of 1×1 to 16×16 patches of the target's size, or None.
        cond_valid: bool [B, n], the live condition patches of each row (rows first); None: all.
        label: int [B] in [0, num_classes], num_classes being the null class, or None.
        label_valid: bool [B], the rows that have a label at all; None: all.
        cond_grid: int [B, 2], where rows mix grids: cond is as large as the largest, and row b's
          own h×w patches lie at its top left, the rest being dead in cond_valid. None: cond is
          every row's grid.
        cond_tokens: [B, m, E] embeddings, or int [B, m] in [0, vocabulary), or None.
        cond_tokens_valid: bool [B, m], the live tokens of each row; None: all.
        references: more images like cond, [B, Hr, Wr, C] each, at most reference_images of them.
        references_valid: bool [B, r], their live patches, image after image; None: all.
        end: like t, where the step ends that x̂ is of, with end_time alone; None: at t.
        guidance: like t, a scale other than 0, with the model's guidance alone; None: 1.
        layers: the blocks' weights one by one, as `layers_of` gives them: for many passes without a
          gradient that share them. None: those of the parameters.
        train: dropout is on, and needs rngs={'dropout': key}.
        Returns x̂ float32 [B, H, W, C]. Raises UserError for shapes that do not fit.
        """
        shapes.check_images(self, z, cond, cond_valid)
        shapes.check_references(self, len(z), references, references_valid)
        shapes.check_tokens(self, len(z), cond_tokens, cond_tokens_valid)
        if label is not None and not self.num_classes:
            raise UserError('label was given to a model without classes; set num_classes.')
        valid = {'cond': cond_valid, 'references': references_valid, 'tokens': cond_tokens_valid}
        slots = self._slots(
            len(z), cond, references, cond_tokens, valid, label, label_valid, cond_grid
        )
        condition = self._condition_slots(slots, cond, references, cond_tokens)
        target = self.target_embed(sequence.patchify(z, self.patch), GRID, GRID)
        x = jnp.concatenate([condition, target], 1)  # [B, S, D]

        c = self._time_embedding(t, end, guidance)  # [B or 1, D]
        class_tokens = None
        if label is not None:
            y = self._label_embedding(label, label_valid)  # [B, D]
            c = c + y
            class_tokens = self._class_tokens(y, label_valid)
        c = sharding.by_rows(jax.nn.silu(c))

        x = self._run_blocks(x, c, class_tokens, slots, layers, train=train)
        shift, scale = jnp.unstack(self.final_modulation(c), axis=1)
        x = self.final_norm(x[:, -GRID * GRID :], shift, scale)
        return sequence.unpatchify(self.final(x).astype(jnp.float32), self.patch)

    def _slots(self, B, cond, references, tokens, valid, label, label_valid, cond_grid) -> Slots:
        """Which slots the program computes, and which of them are live.

        valid: the flags of patches, of references and of tokens, each None where all are live.
        """
        grid, grids = (0, 0), self._grids(references)
        if cond is not None:
            (grid,) = self._grids([cond])
        places = sequence.reference_places(grids, self.reference_place)
        n, r, m = math.prod(grid), len(places), 0 if tokens is None else tokens.shape[1]
        counts = {'cond': n, 'references': r, 'tokens': m}
        flags = sequence.joined(B, [(count, valid[name]) for name, count in counts.items()])
        either = flags is not None and label_valid is not None
        sequence.check_room(n + r, m, 0 if label is None else self.class_tokens, either=either)
        empty = None
        if self.null == 'token':
            empty = sequence.rows_without_condition(B, n + r + m, flags, label, label_valid)
        literal = self.dead_slots == 'keep' or empty is not None
        return Slots(B, grid, m, literal, places, flags, label_valid, cond_grid, empty)

    def _grids(self, images) -> tuple[tuple[int, int], ...]:
        """The rows and columns of patches of each image."""
        return tuple(sequence.condition_grid(image.shape, self.patch) for image in images)

    def _condition_slots(self, slots: Slots, cond, references, tokens):
        """What stands before the target, up to the block where class tokens enter: [B, ·, D]."""
        parts = [jnp.zeros((slots.batch, 0, self.width), self.dtype)]
        if cond is not None:
            parts.append(self._embed_image(cond, slots.live(0, slots.patches)))
        elif self.is_initializing():  # one tree for every regime
            self.cond_embed(jnp.zeros((1, 1, self.patch**2 * self.channels)), 1, 1)
        start = slots.patches
        for i, (h, w) in enumerate(self._grids(references)):
            live = slots.live(start, start + h * w)
            parts.append(self._embed_image(references[i], live, self.which_reference[i]))
            start += h * w
        if tokens is not None:
            parts.append(self._embed_tokens(tokens, slots.live(start, slots.n)))
        elif self.token_width and self.is_initializing():
            self.token_embed(self._no_tokens())
        x = jnp.concatenate(parts, 1)
        if slots.literal:
            padding = COND.stop - slots.n
            x = jnp.pad(x, ((0, 0), (0, padding), (0, 0)))
        if slots.empty is not None:
            token = self.no_condition.astype(jnp.float32)
            x = jnp.where(slots.empty[:, None, None], token, x.astype(jnp.float32))
        return x.astype(self.dtype)

    def _embed_image(self, image, live, which=None):
        """A condition image → tokens [B, h·w, D], plus the vector that says which reference it is.

        live: bool [B, h·w, 1], or None; what is dead is zero.
        """
        patches, (grid,) = sequence.patchify(image, self.patch), self._grids([image])
        if live is not None:
            # Zero at the pixels too, or a NaN there would reach the gradient of the kernel.
            patches = jnp.where(live, patches, 0)
        x = self.cond_embed(patches, *grid)
        if which is not None:
            x = (x.astype(jnp.float32) + which).astype(self.dtype)
        return x if live is None else jnp.where(live, x, 0)

    def _embed_tokens(self, tokens, live):
        """Condition tokens [B, m, E] or [B, m] → [B, m, D]; live as in `_embed_image`."""
        if live is None:
            return self.token_embed(tokens)
        entering = live[:, :, 0] if self.vocabulary else live
        return jnp.where(live, self.token_embed(jnp.where(entering, tokens, 0)), 0)

    def _no_tokens(self):
        """A token that says nothing, for its shape."""
        if self.vocabulary:
            return jnp.zeros((1, 1), jnp.int32)
        return jnp.zeros((1, 1, self.token_width))

    def _time_embedding(self, t, end, guidance):
        """float32 [B or 1, D]: of t, and of what else the model takes beside it."""
        c = self.time_out(jax.nn.silu(self.time_in(time_features(t))))
        if self.end_time:
            step = jnp.zeros_like(t) if end is None else end - t
            c = c + self.end_out(jax.nn.silu(self.end_in(time_features(step))))
        if self.guidance:
            beyond = jnp.zeros(1) if guidance is None else 1 - 1 / guidance
            c = c + self.guidance_out(jax.nn.silu(self.guidance_in(time_features(beyond))))
        return c

    def _label_embedding(self, label, label_valid):
        """float32 [B, D]; zero for rows that have no label at all."""
        y = self.classes[label]
        if label_valid is None:
            return y
        return jnp.where(label_valid[:, None], y, 0)

    def _class_tokens(self, y, label_valid):
        """Label embeddings [B, D] → class tokens [B, class_tokens, D], or None where there are
        none.
        """
        if not self.class_tokens:
            return None
        tokens = y[:, None] + self.class_positions
        if label_valid is not None:
            tokens = jnp.where(label_valid[:, None, None], tokens, 0)
        return tokens

    def _run_blocks(self, x, c, class_tokens, slots: Slots, layers, *, train: bool):
        """All blocks on x [B, S, D]; S grows where class tokens enter and have no padding to
        take.
        """
        stacked = (self.blocks, self.modulation_kernel, self.modulation_bias)
        for start, stop, dropout in self._runs(labelled=class_tokens is not None, train=train):
            if start == self.class_start and self.dtype != jnp.float32:
                # As in the official code under autocast, where class tokens are float32.
                x = x.astype(jnp.float32)
            if start == self.class_start and class_tokens is not None:
                x = insert(x, class_tokens, slots)
            entered = 0
            if start >= self.class_start and class_tokens is not None:
                entered = self.class_tokens
            if layers is None:
                run = jax.tree.map(lambda p: p[start:stop], stacked)  # noqa: B023 used at once
            else:
                run = layers[start:stop]
            x = self._run(x, c, run, stop - start, dropout, slots, entered)
        return x

    def _runs(self, *, labelled: bool, train: bool) -> list[tuple[int, int, float]]:
        """Runs of blocks that share a program, as (first, last + 1, dropout).

        Class tokens and a float32 stream enter at `class_start`; dropout is in the middle half.
        """
        first, last = self.depth // 4, self.depth // 4 * 3
        dropout = self.dropout if train else 0.0
        cuts = {0, self.depth}
        if labelled or self.dtype != jnp.float32:
            cuts.add(self.class_start)
        if dropout:
            cuts |= {first, last}
        cuts = sorted(cuts)
        runs = []
        for start, stop in zip(cuts[:-1], cuts[1:]):
            inside = first <= start < last
            runs.append((start, stop, dropout if inside else 0.0))
        return runs

    def _run(self, x, c, layers, depth: int, dropout: float, slots: Slots, class_tokens: int):
        """`depth` blocks that run over the same slots, scanned or one by one.

        layers: their weights, stacked or as a list.
        """
        B, S, _ = x.shape
        backend = attention.choose(self.attention, self.dtype, (B, S, self.heads, self.head_width))
        valid, places = slots.valid(class_tokens), slots.places(class_tokens)
        x, layout = attention.prepare(x, valid, places, backend, self.head_width)
        block = Block(self.heads, dropout, self.dtype, parent=None)
        keys = jax.random.split(self.make_rng('dropout'), depth) if dropout else None

        def run_block(x, layer):
            params, kernel, bias, key = layer
            rngs = {'dropout': key} if dropout else None
            # Rounded here, block by block: so the blocks' gradients of c are summed in float32.
            modulation = modulation_of(c.astype(self.dtype), kernel, bias)
            return block.apply({'params': params}, x, modulation, layout, rngs=rngs)

        # Without a scan, XLA merges what is computed again with what was computed before, unless
        # it is told not to. With 'none' it may: what it merges, it keeps in the model's dtype.
        prevent_cse = self.remat != 'none' and not self.scan
        run_block = jax.checkpoint(run_block, policy=kept_by(self.remat), prevent_cse=prevent_cse)
        if isinstance(layers, list):
            for layer in layers:
                x = run_block(x, (*layer, None))
            return attention.restore(x, layout)
        layers = (*layers, keys)
        if self.scan:
            x, _ = jax.lax.scan(lambda x, layer: (run_block(x, layer), None), x, layers)
        else:
            for layer in unstack(layers, depth):
                x = run_block(x, layer)
        return attention.restore(x, layout)


def insert(x, class_tokens, slots: Slots) -> jax.Array:
    """x [B, S, D] with class tokens [B, K, D] in the slots that `first_class_slot` gives them.

    In the literal sequence they take the place of padding. Rows whose condition slots hold the
    no-condition token keep it, and so do rows without a label where patches have these slots.
    """
    n, K = slots.n, class_tokens.shape[1]
    first = sequence.first_class_slot(n, K)
    rest = first + K if slots.literal else n
    room = x[:, first:rest]
    room = jnp.pad(room, ((0, 0), (0, K - room.shape[1]), (0, 0)))
    if first < n:
        class_tokens = jnp.where(slots.label_valid[:, None, None], class_tokens, room)
    if slots.empty is not None:
        class_tokens = jnp.where(slots.empty[:, None, None], room, class_tokens)
    return jnp.concatenate([x[:, :first], class_tokens.astype(x.dtype), x[:, rest:]], 1)


def layers_of(params: dict, depth: int) -> list:
    """The blocks' weights one by one, as `JiT.__call__` takes them."""
    return unstack([params[name] for name in LAYERED], depth)


def unstack(layers, depth: int) -> list:
    """A tree of arrays [L, …] as a list of L trees."""
    # By `split`, whose gradient is one concatenation; indexing's is a sum of L padded arrays.
    leaves, tree = jax.tree.flatten(layers)
    split = [jax.lax.split(leaf, [1] * depth) for leaf in leaves]
    return [tree.unflatten([leaf[0] for leaf in layer]) for layer in zip(*split)]
