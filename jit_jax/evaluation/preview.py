"""Pictures of a run: the grid that refreshes while it learns, and condition, result and truth."""

import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from jit_jax import data
from jit_jax.diffusion import conditions
from jit_jax.diffusion.generate import compiled_sampler, noise
from jit_jax.evaluation import held_out
from jit_jax.model import sharding
from jit_jax.output.images import across, grid, to_uint8
from jit_jax.recipe import build

LATEST = 'latest.npz'  # arr_0 uint8 [N, H, W, C], the images of the newest grid without labels


class Preview:
    """The grid of a run: the same noise and, with a condition, the same held-out images each time.

    Every process of a run takes part; the first one writes.
    """

    def __init__(self, run: build.Run, workdir: str):
        self.run, self.workdir = run, workdir
        self.num = run.config.sample.num
        seed, how = run.config.seed, run.settings
        rows = sharding.whole_rows(self.num, run.mesh)  # all devices draw; the rest is dropped
        # A grid is no reason to end a run whose held-out images break.
        self.conditioning, self.truth = held_out.examples(
            run.config, rows, seed, run.test, or_blank=True
        )
        self.order = np.arange(self.num)
        if self.truth is not None:
            self.order = by_condition(self.num, len(run.test))
        self.kinds = held_out.kinds(run.config, self.num, seed)
        self.said = held_out.captions(run.config, self.num, run.test)
        z = noise(jax.random.key(seed), 0, rows, run.model)
        self.inputs = sharding.spread((z, self.conditioning), run.mesh)
        self.generate = compiled_sampler(
            run.model, run.diffusion, how.sampler, how.steps, how.t_eps, run.mesh, how.skip
        )

    def due(self, step: int) -> bool:
        """Whether a grid is drawn after `step`: by `config.sample.every`, and at the end."""
        config = self.run.config
        return step % config.sample.every == 0 or step == config.steps

    def draw(self, state, step: int, writer) -> None:
        """Writes samples/<step>.png, the same picture as samples/latest.png, and the images
        themselves as samples/latest.npz.
        """
        how = self.run.settings
        images = self.generate(state.ema['ema1'], *self.inputs, how.guidance, how.interval)
        images = to_uint8(multihost_utils.process_allgather(images, tiled=True))
        images, conditioning, truth = jax.tree.map(
            lambda x: x[self.order], (images, self.conditioning, self.truth)
        )
        classes = self.run.train.classes
        how = {'kinds': self._ordered(self.kinds), 'said': self._ordered(self.said)}
        picture = sheet(images, conditioning, truth, self.run.model, classes, **how)
        folder = os.path.join(self.workdir, 'samples')
        paths = [os.path.join(folder, name) for name in (f'{step:07d}.png', 'latest.png')]
        archives = {os.path.join(folder, LATEST): images}
        writer.images(step, 'samples', picture, *paths, archives=archives)

    def _ordered(self, words: list[str]) -> list[str]:
        return [words[i] for i in self.order] if words else []


def by_condition(num: int, held_out: int) -> np.ndarray:
    """The numbers below `num`, int [num], those of one held-out image side by side: row i shows
    image i % held_out.
    """
    return np.argsort(np.arange(num) % held_out, kind='stable')


def sheet(
    images: np.ndarray,
    conditioning: dict,
    truth: np.ndarray | None,
    model,
    classes=(),
    kinds=(),
    begun_from: np.ndarray | None = None,
    said=(),
) -> np.ndarray:
    """A grid of samples: uint8 [N, S, S, C] → uint8 [·, ·, 3].

    With condition images each is condition · references · result · truth. The truth is left out
    where that is None, and what sampling began from, uint8 as `images`, stands in its place if
    given. Below a sample stand its kind of condition, where `kinds` names one for each, its class,
    and its caption: its bytes, or what `said` says of tokens that are embeddings.
    """
    heads, parts = (), {'result': images}
    shown = conditions.picture(conditioning, model.image_size)
    given = {} if shown is None else {'condition': to_uint8(shown)}
    for i, image in enumerate(conditioning.get('references', ()), 1):
        shown = conditions.picture({'cond': image}, model.image_size)
        given[f'reference {i}'] = to_uint8(shown)
    parts = given | parts
    if given and truth is not None:
        parts['truth'] = truth
    elif begun_from is not None:
        parts = {'picture': begun_from} | parts
    if len(parts) > 1:
        heads, images = tuple(parts), np.stack(list(parts.values()), 1)
    lines = captions(len(images), conditioning, classes, kinds, said)
    columns = across(images, heads, lines)
    return grid(images, columns, heads=heads, captions=lines)


def captions(count: int, conditioning: dict, classes, kinds, said=()) -> list[str]:
    """What stands below each sample; nothing at all where there is nothing to say of any."""
    lines = [[kind] for kind in kinds] if kinds else [[] for _ in range(count)]
    if 'label' in conditioning:
        names = dict(enumerate(classes))
        said = conditioning.get('label_valid', np.ones(count, bool))
        for line, label, is_said in zip(lines, conditioning['label'], said, strict=True):
            if is_said:
                line.append(names.get(int(label), str(label)))
    if 'cond_tokens' in conditioning:
        spoken = conditioning['cond_tokens']
        live = conditioning.get('cond_tokens_valid', np.ones(spoken.shape[:2], bool))
        for i, (line, tokens, is_live) in enumerate(zip(lines, spoken, live, strict=True)):
            if spoken.ndim == 2:  # bytes
                line += filter(None, [data.decode_caption(tokens[is_live])])
            elif said and is_live.any():
                line.append(said[i])
    joined = [' · '.join(line) for line in lines]
    return joined if any(joined) else []


def strip(path: list[tuple], count: int) -> np.ndarray:
    """How one image comes to be: z above x̂ at `count` of the recorded times, evenly spread.

    path: (t, z, x̂) at each time, the images float32 [H, W, C]. Returns a labelled picture, uint8
    [·, ·, 3].
    """
    chosen = [path[i] for i in np.linspace(0, len(path) - 1, count).round().astype(int)]
    times, noisy, clean = zip(*chosen, strict=True)
    images = to_uint8(np.stack([*noisy, *clean]))
    heads = [f't = {t:.2f}' for t in times]
    return grid(images, count, heads=heads, rows=('z, noisy', 'x̂, predicted'))
