"""The fixed 512-slot sequence: 256 condition slots, then 256 target patches.

    slot      0 ─────────────── 255 │ 256 ─────────────── 511
    uncond    ·  ·  ·  ·  ·  ·  ·   │  T₀  T₁  …       T₂₅₅      · dead slot: zeros, masked
    partial   C₀ … C₆₃  ·  ·  ·  ·  │  T₀  T₁  …       T₂₅₅      64 of 256 condition slots live
    cond      C₀ C₁ …        C₂₅₅   │  T₀  T₁  …       T₂₅₅
    class     K₀ … K₃₁  ·  ·  ·  ·  │  T₀  T₁  …       T₂₅₅      32 class tokens in the same slots
    text      E₀ … E₁₅  ·  ·  ·  ·  │  T₀  T₁  …       T₂₅₅      16 tokens of a text, or of anything
    several   C₀ … R₀ … E₀ … K₀ …   │  T₀  T₁  …       T₂₅₅      image, references, tokens, class

`valid: bool[B, 512]` says which slots are live, row by row, so one batch may mix them all.
A dead slot is zero where it enters the network and masked as a key in attention; nothing reads
what it becomes as a query. What a row has of each kind stands in the order of the last line.

Shape letters, here and everywhere: B batch, S slots, N target patches, D width, H heads,
K head width, P pixels of a patch (p · p · channels), r patches of reference images, m condition
tokens, E their width, n condition patches and tokens of a program, L depth.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jit_jax.errors import UserError

GRID = 16  # patches along each side of the target, at every resolution
COND = slice(0, 256)
TARGET = slice(256, 512)
SLOTS = 512


def patch_size(image_size: int) -> int:
    """The side of a patch in pixels: image_size / 16, so that a target is always 256 patches."""
    if image_size < GRID or image_size % GRID:
        raise UserError(
            f'image_size must be a multiple of {GRID}, so that a target is 16×16 patches; '
            f'got {image_size}.'
        )
    return image_size // GRID


def patchify(images, p: int) -> jnp.ndarray:
    """[B, h·p, w·p, C] → [B, h·w, P], rows first; a patch's pixels are in the order (row, column,
    channel).
    """
    B, height, width, C = images.shape
    h, w = height // p, width // p
    x = images.reshape(B, h, p, w, p, C).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, h * w, p * p * C)


def unpatchify(patches, p: int, h: int = GRID, w: int = GRID) -> jnp.ndarray:
    """[B, h·w, P] → [B, h·p, w·p, C]: the inverse of `patchify`."""
    B, _, P = patches.shape
    x = patches.reshape(B, h, w, p, p, P // (p * p)).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, h * p, w * p, P // (p * p))


def condition_grid(cond_shape, p: int) -> tuple[int, int]:
    """The (rows, columns) of patches of a condition image [B, Hc, Wc, C].

    Raises UserError unless both sides are whole patches and the grid fits in 16×16.
    """
    height, width = cond_shape[1:3]
    h, w = height // p, width // p
    if height % p or width % p or not (1 <= h <= GRID and 1 <= w <= GRID):
        raise UserError(
            f'A condition image is 1 to {GRID} patches of {p}×{p} pixels along each side '
            f'({p} to {GRID * p} pixels in steps of {p}); got {height}×{width}.'
        )
    return h, w


def place(h: int, w: int, grid=None) -> np.ndarray | jnp.ndarray:
    """Where an h×w array of patches lies in the picture, in units of target patches: [h·w, 2] of
    (row, column).

    Patch i of h rows sits at the centre of what it covers, (i + ½)·16/h − ½, so a 16×16 grid is at
    0…15. With grid int [B, 2], row b's picture is covered by its own grid[b] patches instead: [B,
    h·w, 2].
    """
    rows, cols = np.meshgrid(np.arange(h), np.arange(w), indexing='ij')
    patches = np.stack([rows, cols], -1).reshape(h * w, 2)
    if grid is None:
        return (patches + 0.5) * GRID / np.array([h, w]) - 0.5
    return (patches + 0.5) * GRID / grid[:, None, :] - 0.5


def reference_places(grids: tuple[tuple[int, int], ...], where: str) -> np.ndarray:
    """Where the patches of reference images lie: [r, 2], image after image.

    where: 'aligned', over the target as a condition image is; or 'free', beside it: image i is as
    many widths to the right, so that its patches meet none of the target's.
    """
    found = [np.zeros((0, 2))]
    for i, (h, w) in enumerate(grids, 1):
        beside = (0, GRID * i) if where == 'free' else (0, 0)
        found.append(place(h, w) + np.array(beside))
    return np.concatenate(found)


def slot_mask(batch: int, cond_valid=None, label_valid=None, class_tokens: int = 0) -> jnp.ndarray:
    """`valid` of the literal sequence: bool [B, 512], from cond_valid [B, n] (of patches, then of
    tokens) and label_valid [B].

    This is the picture in this module's docstring, from the block where class tokens enter.
    """
    n = 0 if cond_valid is None else cond_valid.shape[1]
    valid = jnp.zeros((batch, SLOTS), bool).at[:, TARGET].set(True)
    if cond_valid is not None:
        valid = valid.at[:, :n].set(cond_valid)
    if label_valid is not None:
        first = first_class_slot(n, class_tokens)
        # Where they share slots with patches, a row has one or the other.
        valid = valid.at[:, first : first + class_tokens].max(label_valid[:, None])
    return valid


def first_class_slot(n: int, class_tokens: int) -> int:
    """Class tokens follow the n condition patches and tokens, or end with the last condition slot.

    The latter where both do not fit beside each other; then no row may have both.
    """
    return min(n, COND.stop - class_tokens)


def check_room(patches: int, tokens: int, class_tokens: int, *, either: bool = False) -> None:
    """Raises UserError where what stands before the target does not fit in 256 slots.

    either: no row has class tokens beside others, so that they may share slots.
    """
    if either:
        class_tokens = 0
    if patches + tokens + class_tokens <= COND.stop:
        return
    counts = {'condition patches': patches, 'tokens': tokens, 'class tokens': class_tokens}
    words = [f'{count} {name}' for name, count in counts.items() if count]
    words = ' and '.join(filter(None, [', '.join(words[:-1]), words[-1]]))
    raise UserError(
        f'{words} do not fit in {COND.stop} slots; use a smaller condition image, a shorter text '
        'or no label.'
    )


def joined(B: int, parts: list[tuple]) -> jax.Array | None:
    """Flags bool [B, count], or None for all, of parts (count, flags) that follow each other.

    bool [B, n], or None where everything is live.
    """
    if all(flags is None for _, flags in parts):
        return None
    whole = [jnp.ones((B, count), bool) if flags is None else flags for count, flags in parts]
    return jnp.concatenate(whole, 1)


def rows_without_condition(B: int, n: int, valid, label, label_valid) -> jax.Array | None:
    """bool [B], the rows that have none of n patches and tokens and no label, or None when no row
    can be one.
    """
    if n and valid is None:
        return None
    if label is not None and label_valid is None:
        return None
    empty = jnp.ones(B, bool)
    if n:
        empty = empty & ~valid.any(1)
    if label is not None:
        empty = empty & ~label_valid
    return empty


def slot_places(h: int, w: int, grid=None, references=()) -> np.ndarray | jnp.ndarray:
    """Where all 512 slots lie, with an h×w condition: [512, 2], or [B, 512, 2] with grid [B, 2].

    references: where their patches lie, [r, 2]. Tokens, class tokens and dead slots are at (0, 0),
    which attention does not rotate.
    """
    cond = place(h, w, grid)
    references = np.reshape(references, (-1, 2))
    padding = np.zeros((COND.stop - h * w - len(references), 2))
    rest = np.concatenate([references, padding, place(GRID, GRID)])
    if grid is None:
        return np.concatenate([cond, rest])
    rest = jnp.broadcast_to(rest, (len(cond), *rest.shape))
    return jnp.concatenate([cond, rest], 1)


@dataclass(frozen=True)
class Slots:
    """Which of the 512 slots a program computes, which of them are live, and where they lie.

    Flags are None where every row has what they speak of. The methods take the number of class
    tokens in the sequence: 0 up to the block where they enter.
    """

    batch: int
    grid: tuple[int, int]  # rows and columns of condition patches; (0, 0) without a condition image
    tokens: int  # condition tokens
    literal: bool  # all 512 slots are computed, not only those that can be live
    references: np.ndarray = ()  # where the patches of reference images lie, [r, 2]
    cond_valid: jax.Array | None = None  # bool [B, n], of patches, of references and of tokens
    label_valid: jax.Array | None = None  # bool [B]
    cond_grid: jax.Array | None = None  # int [B, 2], where rows differ in their grids
    empty: jax.Array | None = (
        None  # bool [B], rows whose condition slots hold the no-condition token
    )

    @property
    def patches(self) -> int:
        """Patches of the condition image, and so the first slot of references."""
        h, w = self.grid
        return h * w

    @property
    def n(self) -> int:
        """All patches and tokens of the condition, and so the first slot of class tokens."""
        return self.patches + len(self.references) + self.tokens

    def live(self, start: int, stop: int) -> jax.Array | None:
        """Which of condition slots start … stop − 1 are live: bool [B, ·, 1], or None for all."""
        return None if self.cond_valid is None else self.cond_valid[:, start:stop, None]

    def computed(self, class_tokens: int) -> np.ndarray:
        """The slots that are computed: int [S]."""
        if self.literal:
            return np.arange(SLOTS)
        target = np.arange(TARGET.start, TARGET.stop)
        stop = first_class_slot(self.n, class_tokens) + class_tokens
        return np.concatenate([np.arange(stop), target])

    def valid(self, class_tokens: int) -> jax.Array | None:
        """The mask over the computed slots: bool [B, S], or None when all are live in every row."""
        flagged = self.cond_valid is not None
        if class_tokens and self.label_valid is not None:
            flagged = True
        if not flagged and not self.literal:
            return None
        cond, label = self.cond_valid, self.label_valid
        if cond is None:
            cond = jnp.ones((self.batch, self.n), bool)
        if label is None:
            label = jnp.ones(self.batch, bool)
        mask = slot_mask(self.batch, cond, label, class_tokens)
        if self.empty is not None:
            mask = mask | (self.empty[:, None] & _IN_COND)
        return mask[:, self.computed(class_tokens)]

    def places(self, class_tokens: int) -> np.ndarray | jax.Array:
        """Where the computed slots lie: [S, 2], or [B, S, 2] where rows differ."""
        places = slot_places(*self.grid, self.cond_grid, self.references)
        if self.empty is not None:
            unrotated = self.empty[:, None, None] & _IN_COND[:, None]
            places = jnp.where(unrotated, 0, places)
        first = first_class_slot(self.n, class_tokens)
        if first < self.n:  # rows with a label have class tokens where others have patches
            slots = np.arange(SLOTS)
            shared = (first <= slots) & (slots < first + class_tokens)
            unrotated = self.label_valid[:, None, None] & shared[:, None]
            places = jnp.where(unrotated, 0, places)
        return places[..., self.computed(class_tokens), :]


_IN_COND = np.arange(SLOTS) < COND.stop  # bool [512]


def draw(valid) -> str:
    """One line a row of `valid` [B, 512]: runs of 16 slots as █ (all live), ▒ (some) or · (dead),
    condition │ target.
    """
    share = np.asarray(valid).reshape(len(valid), SLOTS // GRID, GRID).mean(-1)
    marks = np.where(share == 1, '█', np.where(share > 0, '▒', '·'))
    return '\n'.join(''.join(row[:GRID]) + '│' + ''.join(row[GRID:]) for row in marks)
