"""Whether a drawing made from two references is of their character, which training never saw.

    python -m benchmarks.one_shot --workdir=runs/cond-omniglot --out=one-shot.png

A drawing is said to be of the character whose reference is nearest, among the two references of
each held-out character. The same is asked of real third drawings, by other people. Ink that is
shared with the nearest own reference would be all of it for a model that copies.
"""

import sys

import jax
import numpy as np
from PIL import Image, ImageFilter

import jit_jax
from benchmarks import preset_run
from jit_jax import data
from jit_jax.commands import command_line, environment
from jit_jax.evaluation import held_out
from jit_jax.output.images import grid, save_png
from jit_jax.recipe import build

BLUR = 1.5  # pixels: strokes that lie beside each other are near
INK = 128  # a pixel at least so bright is ink


def define_flags(parser):
    preset_run.define_flags(parser, 'omniglot')
    add = parser.add_argument
    add('--people', type=command_line.whole_number(1), default=4, help='of 20, whose references')
    add('--out', help='a .png with references, result and a real drawing of each character')


def main(args):
    model, params = preset_run.load(args, 'omniglot', kind='omniglot')
    real, references = examples(build.source(model.config, 'test'), args.people)
    flat = real.reshape(-1, *real.shape[2:])
    conditioning, _ = held_out.examples(model.config, len(flat), 0)
    drawn = jit_jax.sample(
        model, params, jax.random.key(0), len(flat), guidance=args.guidance, **conditioning
    )
    drawn = drawn.reshape(real.shape)
    print(f'{args.workdir}, step {model.step}, {len(flat)} images of {real.shape[1]} characters.\n')
    print('| | of the character | ink shared with a reference |\n|---|---|---|')
    print(f'| chance | {1 / real.shape[1]:.1%} | |')
    for name, drawings in (('real third drawings', real), ('generated', drawn)):
        print(
            f'| {name} | {right(drawings, references):.1%} | {shared(drawings, references):.0%} |'
        )
    if args.out:
        first = [references[0, :, 0], references[0, :, 1], drawn[0], real[0]]
        heads = ('reference', 'reference', 'result', 'real')
        save_png(args.out, grid(np.stack(first, 1), 3, heads=heads))


def examples(source: data.Source, people: int) -> tuple[np.ndarray, np.ndarray]:
    """Real drawings uint8 [people, characters, S, S, 1], and the references of each, [people,
    characters, 2, S, S, 1].
    """
    characters = len(source) // 20
    rows = [source[i] for i in range(min(people, 20) * characters)]
    real = np.stack([row['image'] for row in rows])
    references = np.stack([[row['cond'], row['cond2']] for row in rows])
    shape = (-1, characters)
    return real.reshape(*shape, *real.shape[1:]), references.reshape(*shape, *references.shape[1:])


def right(drawings: np.ndarray, references: np.ndarray) -> float:
    """The share of drawings whose nearest reference is one of their own character."""
    found = []
    for some, those in zip(drawings, references, strict=True):  # of one person's turn
        near = _distances(some, those.reshape(-1, *those.shape[2:]))
        near = near.reshape(len(some), len(those), -1).min(-1)
        found.append(near.argmin(1) == np.arange(len(some)))
    return float(np.mean(found))


def shared(drawings: np.ndarray, references: np.ndarray) -> float:
    """The mean of ink in both, over ink in either, of a drawing and the reference of its own where
    that is more.
    """
    ink, theirs = drawings[:, :, None] >= INK, references >= INK
    both = (ink & theirs).sum((-3, -2, -1))
    either = np.maximum((ink | theirs).sum((-3, -2, -1)), 1)
    return float((both / either).max(-1).mean())


def _distances(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """uint8 [N, S, S, 1], [M, S, S, 1] → [N, M]."""
    a, b = (np.stack([_blurred(one[..., 0]) for one in each]) for each in (some, others))
    return ((a[:, None] - b[None]) ** 2).sum(-1)


def _blurred(drawing: np.ndarray) -> np.ndarray:
    """A drawing with its centre of mass in the middle, blurred, of length 1: [S·S]."""
    side, weight = len(drawing), np.maximum(drawing.sum(dtype=np.float64), 1e-9)
    middle = [int((drawing.sum(1 - axis) * np.arange(side)).sum() / weight) for axis in (0, 1)]
    moved = np.roll(drawing, [side // 2 - at for at in middle], (0, 1))
    soft = np.asarray(Image.fromarray(moved).filter(ImageFilter.GaussianBlur(BLUR)), np.float64)
    return soft.ravel() / max(np.linalg.norm(soft), 1e-9)


if __name__ == '__main__':
    environment.restart_with_variables()
    command_line.run(sys.modules[__name__], sys.argv[1:], 'python -m benchmarks.one_shot')
