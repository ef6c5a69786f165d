"""Held-out images and the conditions made from them, the same ones each time."""

import jax
import numpy as np

from jit_jax.diffusion.conditions import choose
from jit_jax.recipe import build
from jit_jax.recipe.kinds import condition, each_row, embeddings


def examples(
    config, count: int, seed: int, source=None, start: int = 0, *, or_blank: bool = False
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Test images number start … start + count − 1, again from the first after the last.

    Returns their conditioning (keywords of `JiT.__call__`) and the images themselves, uint8
    [count, S, S, C]. Row i depends on the seed and i, not on the other rows. For a run without a
    condition: ({}, None), and its data is not opened. Raises UserError where none can be read;
    with `or_blank` they are blank then.
    """
    if config['condition']['kind'] == 'none':
        return {}, None
    source = build.source(config, 'test') if source is None else source
    index = range(start, start + count)
    read = source.intact_or_blank if or_blank else source.__getitem__
    rows = [source.with_caption(read(i % len(source)), i) for i in index]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    conditioning = each_row(batch, jax.random.key(seed), np.asarray(index), condition(config))
    return jax.tree.map(np.asarray, conditioning), batch['image']


def captions(config, count: int, source=None, start: int = 0) -> list[str]:
    """The captions of the rows of `examples` where tokens are embeddings, of which nobody reads
    them; else none. Raises UserError where no image can be read.
    """
    if not embeddings(config):
        return []
    source = build.source(config, 'test') if source is None else source
    index = range(start, start + count)
    return [source.caption(source.intact_or_blank(i), i) for i in index]


def kinds(config, count: int, seed: int, start: int = 0) -> list[str]:
    """The kind of condition of each row of `examples`, where config.condition.kind joins several by
    |; else none.
    """
    options = config['condition']['kind'].split('|')
    if len(options) == 1:
        return []
    key = jax.random.key(seed)

    def one(i):
        return choose(len(options), jax.random.fold_in(key, i), 1)[0]

    chosen = jax.vmap(one)(np.arange(start, start + count))
    return [options[i] for i in np.asarray(chosen)]
