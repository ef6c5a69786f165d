"""The fixed 512-slot sequence: 256 condition slots, then 256 target patches.

    slot      0 ─────────────── 255 │ 256 ─────────────── 511
    uncond    ·  ·  ·  ·  ·  ·  ·   │  T₀  T₁  …       T₂₅₅      · dead slot: zeros, masked
    partial   C₀ … C₆₃  ·  ·  ·  ·  │  T₀  T₁  …       T₂₅₅      64 of 256 condition slots live
    cond      C₀ C₁ …        C₂₅₅   │  T₀  T₁  …       T₂₅₅
    class     K₀ … K₃₁  ·  ·  ·  ·  │  T₀  T₁  …       T₂₅₅      32 class tokens in the same slots

`valid: bool[B, 512]` says which slots are live, row by row, so one batch may mix all four.
A dead slot is zero where it enters the network and masked as a key in attention; nothing reads
what it becomes as a query. Class tokens take the slots right after the image patches.

Shape letters, here and everywhere: B batch, S slots, N target patches, D width, H heads,
K head width, P pixels of a patch (p · p · channels), n condition patches of a program, L depth.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

GRID = 16  # patches along each side of the target, at every resolution
COND = slice(0, 256)
TARGET = slice(256, 512)
SLOTS = 512


def patch_size(image_size: int) -> int:
    """The side of a patch in pixels: image_size / 16, so that a target is always 256 patches."""
    if image_size < GRID or image_size % GRID:
        raise ValueError(
            f'image_size must be a multiple of {GRID}, so that a target is 16×16 patches; got {image_size}.'
        )
    return image_size // GRID


def patchify(images, p: int) -> jnp.ndarray:
    """[B, h·p, w·p, C] → [B, h·w, P], rows first; a patch's pixels are in the order (row, column, channel)."""
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

    Raises ValueError unless both sides are whole patches and the grid fits in 16×16.
    """
    height, width = cond_shape[1:3]
    h, w = height // p, width // p
    if height % p or width % p or not (1 <= h <= GRID and 1 <= w <= GRID):
        raise ValueError(
            f'A condition image is 1 to {GRID} patches of {p}×{p} pixels along each side '
            f'({p} to {GRID * p} pixels in steps of {p}); got {height}×{width}.'
        )
    return h, w


def place(h: int, w: int, grid=None) -> np.ndarray | jnp.ndarray:
    """Where an h×w array of patches lies in the picture, in units of target patches: [h·w, 2] of (row, column).

    Patch i of h rows sits at the centre of what it covers, (i + ½)·16/h − ½, so a 16×16 grid is at 0…15. With
    grid int [B, 2], row b's picture is covered by its own grid[b] patches instead: [B, h·w, 2].
    """
    patches = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing='ij'), -1).reshape(h * w, 2)
    grid = np.array([h, w]) if grid is None else grid[:, None, :]
    return (patches + 0.5) * GRID / grid - 0.5


def slot_mask(batch: int, cond_valid=None, label_valid=None, class_tokens: int = 0) -> jnp.ndarray:
    """`valid` of the literal sequence: bool [B, 512], from cond_valid [B, n] and label_valid [B].

    This is the picture in this module's docstring, from the block where class tokens enter.
    """
    n = 0 if cond_valid is None else cond_valid.shape[1]
    valid = jnp.zeros((batch, SLOTS), bool).at[:, TARGET].set(True)
    if cond_valid is not None:
        valid = valid.at[:, :n].set(cond_valid)
    if label_valid is not None:
        valid = valid.at[:, n : n + class_tokens].set(label_valid[:, None])
    return valid


class Slots(NamedTuple):
    """A sequence on its way through the blocks."""

    tokens: jax.Array  # [B, S, D]
    valid: jax.Array | None  # bool [B, S]; None: all live
    places: (
        np.ndarray | jax.Array
    )  # [S, 2] or, where rows differ, [B, S, 2]: where a slot lies; (0, 0) is not rotated
    n: int  # image patches of the condition: the class tokens' first slot

    def insert(self, class_tokens, label_valid) -> 'Slots':
        """Class tokens [B, K, D] take slots n … n + K − 1: padding when all 512 run, new slots otherwise."""
        B, K = class_tokens.shape[:2]
        S = self.tokens.shape[1]
        room, padded = slice(self.n, self.n + K), S == SLOTS
        rest = self.n + K if padded else self.n
        valid, live = (
            self.valid,
            jnp.ones((B, K), bool) if label_valid is None else label_valid[:, None].repeat(K, 1),
        )
        if label_valid is not None and padded:
            class_tokens = jnp.where(live[:, :, None], class_tokens, self.tokens[:, room])
            live = live | valid[:, room]
        if valid is None and label_valid is not None:
            valid = jnp.ones((B, S), bool)
        if valid is not None:
            valid = jnp.concatenate([valid[:, : self.n], live, valid[:, rest:]], 1)
        return self._replace(
            tokens=jnp.concatenate(
                [self.tokens[:, : self.n], class_tokens, self.tokens[:, rest:]], 1
            ),
            valid=valid,
            places=join(
                self.places[..., : self.n, :], np.zeros((K, 2)), self.places[..., rest:, :]
            ),
        )


def join(*places) -> np.ndarray | jax.Array:
    """Concatenates places [·, 2] and [B, ·, 2] along their slots."""
    rows = [len(x) for x in places if x.ndim == 3]
    if not rows:
        return np.concatenate(places)
    return jnp.concatenate([jnp.broadcast_to(x, (rows[0], *x.shape[-2:])) for x in places], 1)


def draw(valid) -> str:
    """One line a row of `valid` [B, 512]: runs of 16 slots as █ (all live), ▒ (some) or · (dead), condition │ target."""
    share = np.asarray(valid).reshape(len(valid), SLOTS // GRID, GRID).mean(-1)
    marks = np.where(share == 1, '█', np.where(share > 0, '▒', '·'))
    return '\n'.join(''.join(row[:GRID]) + '│' + ''.join(row[GRID:]) for row in marks)
