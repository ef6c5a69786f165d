"""Whether digits are those that were asked for, and by the hand of the reference.

    python -m benchmarks.same_hand --workdir=runs/cond-handwriting --out=same-hand.png

Of each reference, a digit by a writer whom training never saw, all ten digits are drawn. A
classifier of the training digits says which they are. How far a digit leans and how much ink it
has are measured in pixels, and less the mean of its class; a hand is kept as far as these of a
digit follow the reference's (the correlation: 1 would be always, 0 never). Real digits by the same
writer in the same style say how far they can.
"""

import sys

import jax
import numpy as np

import jit_jax
from benchmarks import preset_run
from jit_jax.commands import command_line, environment
from jit_jax.data import handwriting
from jit_jax.evaluation.classifier import Classifier
from jit_jax.output.images import grid, save_png
from jit_jax.recipe import build

CLASSES = 10


def define_flags(parser):
    preset_run.define_flags(parser, 'handwriting')
    add = parser.add_argument
    add('--references', type=command_line.whole_number(1), default=20, help='how many')
    add('--out', help='a .png: a reference in each row, and ten digits by its hand')


def main(args):
    model, params = preset_run.load(args, 'handwriting', kind='handwriting')
    train = build.source(model.config, 'train')
    rows = [train[i] for i in range(len(train) // handwriting.WAYS)]  # every digit once
    judge = Classifier(np.stack([r['image'] for r in rows]), np.stack([r['label'] for r in rows]))
    references, real = examples(args.references)
    asked = np.tile(np.arange(CLASSES), len(references))
    drawn = jit_jax.sample(
        model,
        params,
        jax.random.key(0),
        len(asked),
        references=[np.repeat(references, CLASSES, 0)],
        label=asked,
        guidance=args.guidance,
    )
    drawn = drawn.mean(-1).round().astype(np.uint8).reshape(real.shape)  # the digits are gray
    print(
        f'{args.workdir}, step {model.step}: {len(asked)} images of {len(references)} references.'
    )
    print('\n| | as asked | leans as the reference | ink as the reference |\n|---|---|---|---|')
    print(f'| chance | {1 / CLASSES:.1%} | 0 | 0 |')
    for name, digits in (('real digits of the hand', real), ('generated', drawn)):
        right = np.mean(judge.predict(digits.reshape(-1, *digits.shape[2:])) == asked)
        lean, ink = (follows(measure, digits, references) for measure in (leaning, amount))
        print(f'| {name} | {right:.1%} | {lean:.2f} | {ink:.2f} |')
    if args.out:
        groups = np.concatenate([references[:, None], drawn], 1)[:8]
        save_png(args.out, grid(groups, 1, heads=('reference', *map(str, range(CLASSES)))))


def examples(count: int) -> tuple[np.ndarray, np.ndarray]:
    """References, uint8 [count, 32, 32, 1], and of each ten real digits by the same writer in the
    same style, [count, 10, 32, 32, 1].
    """
    levels, classes, writers = handwriting.written()
    held_out = np.flatnonzero(np.isin(writers, handwriting.HELD_OUT))
    references, real = [], []
    for way, chosen in enumerate(held_out[np.linspace(0, len(held_out) - 1, count).astype(int)]):
        style = handwriting.style(chosen, way)
        theirs = np.flatnonzero((writers == writers[chosen]) & (np.arange(len(levels)) != chosen))
        ten = [theirs[classes[theirs] == digit][0] for digit in range(CLASSES)]
        references.append(np.asarray(handwriting.enlarged(levels[chosen], style)))
        real.append([np.asarray(handwriting.enlarged(levels[one], style)) for one in ten])
    return np.stack(references)[..., None], np.asarray(real)[..., None]


def leaning(images: np.ndarray) -> np.ndarray:
    """Pixels to the right for a pixel up, by the moments of the ink: uint8 [n, S, S, 1] → [n]."""
    ink = images[..., 0] / 255
    y, x = np.mgrid[: ink.shape[1], : ink.shape[2]]
    mass = ink.sum((1, 2)) + 1e-6
    x, y = (axis - ((ink * axis).sum((1, 2)) / mass)[:, None, None] for axis in (x, y))
    return -(ink * x * y).sum((1, 2)) / ((ink * y * y).sum((1, 2)) + 1e-6)


def amount(images: np.ndarray) -> np.ndarray:
    """The share of an image that is ink: uint8 [n, S, S, 1] → [n]."""
    return images.mean((1, 2, 3)) / 255


def follows(measure, digits: np.ndarray, references: np.ndarray) -> float:
    """The correlation of a measure of digits [n, 10, S, S, 1], less the mean of their class, with
    that of their references [n, S, S, 1].
    """
    of_digits = measure(digits.reshape(-1, *digits.shape[2:])).reshape(digits.shape[:2])
    of_digits = of_digits - of_digits.mean(0)
    of_references = np.repeat(measure(references)[:, None], digits.shape[1], 1)
    return float(np.corrcoef(of_digits.ravel(), of_references.ravel())[0, 1])


if __name__ == '__main__':
    environment.restart_with_variables()
    command_line.run(sys.modules[__name__], sys.argv[1:], 'python -m benchmarks.same_hand')
