"""Whether digits are those that were asked for, and by the hand of the reference.

    python -m benchmarks.same_hand --workdir=runs/cond-handwriting --out=same-hand.png

Of each reference, a digit of a hand that training never saw, all ten digits are drawn. A classifier
of the training digits says which they are. Their hand is that of the nearest real digit of their
class among the held-out hands, and the same is asked of those real digits.
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
    real, labels, hands = held_out_digits()
    chosen = np.linspace(0, len(real) - 1, args.references).astype(int)
    references = [np.repeat(real[chosen], CLASSES, 0)]
    asked = np.tile(np.arange(CLASSES), len(chosen))
    drawn = jit_jax.sample(
        model,
        params,
        jax.random.key(0),
        len(asked),
        references=references,
        label=asked,
        guidance=args.guidance,
    )
    print(f'{args.workdir}, step {model.step}, {len(asked)} images of {len(chosen)} references.\n')
    print('| | as asked | by the hand of the reference |\n|---|---|---|')
    print(f'| chance | {1 / CLASSES:.1%} | {1 / len(handwriting.HELD_OUT):.1%} |')
    those = (real, labels, hands)
    for name, (images, classes, by) in (
        ('real digits', those),
        ('generated', (drawn, asked, np.repeat(hands[chosen], CLASSES))),
    ):
        right = np.mean(judge.predict(images) == classes)
        same = np.mean(nearest_hands(images, classes, *those) == by)
        print(f'| {name} | {right:.1%} | {same:.1%} |')
    if args.out:
        shown = drawn.reshape(len(chosen), CLASSES, *drawn.shape[1:])
        beside = np.broadcast_to(real[chosen][:, None], (len(chosen), 1, *drawn.shape[1:]))
        groups = np.concatenate([beside, shown], 1)[:8]
        save_png(args.out, grid(groups, 1, heads=('reference', *map(str, range(CLASSES)))))


def held_out_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The digits of held-out hands: uint8 [N, 32, 32, 1], their classes and their hands."""
    levels, classes, hands = handwriting.written()
    chosen = np.isin(hands, handwriting.HELD_OUT)
    images = np.stack([np.asarray(handwriting.enlarged(one)) for one in levels[chosen]])
    return images[..., None], classes[chosen], hands[chosen]


def nearest_hands(images, classes, real, labels, hands) -> np.ndarray:
    """The hand of the real digit of its class that is nearest to each image, itself aside: [N]."""
    found = []
    for image, of in zip(images.astype(np.float64), classes, strict=True):
        far = ((real - image) ** 2).sum((1, 2, 3))
        far[(labels != of) | (far == 0)] = np.inf
        found.append(hands[far.argmin()])
    return np.asarray(found)


if __name__ == '__main__':
    environment.restart_with_variables()
    command_line.run(sys.modules[__name__], sys.argv[1:], 'python -m benchmarks.same_hand')
