"""Whether the digits that are drawn for captions are those that were asked for.

    python -m benchmarks.digits_text --workdir=runs/cond-digits_text

A classifier of the training digits judges. A caption of two digits is followed by either; those in
the last row join two that no training caption joins.
"""

import itertools
import sys

import jax
import numpy as np

import jit_jax
from jit_jax.commands import command_line, environment
from jit_jax.data import digit_captions
from jit_jax.evaluation.classifier import Classifier, evenly_spread
from jit_jax.output.images import grid, save_png
from jit_jax.recipe import build

COLUMNS = 14  # of the picture


def define_flags(parser):
    add = parser.add_argument
    add('--workdir', help='a run of cond.py:digits_text')
    add('--each', type=command_line.whole_number(1), default=8, help='images for each caption')
    add('--guidance', type=command_line.finite_number, help="the run's own by default")
    add('--out', help='a .png for one image of each caption')


def asked() -> dict[str, list[tuple[str, set[int]]]]:
    """Captions by kind, each with the digits that it is true of."""
    found = {}
    for language in digit_captions.NAMES:
        found[language] = [(digit_captions.name(d, language), {d}) for d in range(10)]
    unseen = list(digit_captions.UNSEEN)
    pairs = [set(pair) for pair in itertools.combinations(range(10), 2)]
    seen = [pair for pair in pairs if pair not in unseen]
    found['either of two'] = [(digit_captions.either(*pair), pair) for pair in seen]
    turned = [(digit_captions.either(*sorted(pair, reverse=True)), pair) for pair in unseen]
    found['two that were never joined'] = turned + [
        (digit_captions.either(*sorted(pair)), pair) for pair in unseen
    ]
    return found


def main(args):
    environment.use_cpu_cores(64)
    command_line.required(args, 'workdir', 'says which run, as --workdir=runs/cond-digits_text.')
    model, params = jit_jax.load(args.workdir)
    train, test = (build.source(model.config, which) for which in ('train', 'test'))
    judge, (images, labels) = Classifier(*evenly_spread(train)), evenly_spread(test)
    accuracy = np.mean(judge.predict(images) == labels)
    print(
        f'{args.workdir}, step {model.step}; the classifier is right on {accuracy:.1%} of held-out '
        'digits.\n'
    )
    print('| captions | images | as asked |\n|---|---|---|')
    rows = [row for rows in asked().values() for row in rows]
    captions = np.repeat([caption for caption, _ in rows], args.each).tolist()
    drawn = jit_jax.sample(
        model, params, jax.random.key(0), len(captions), text=captions, guidance=args.guidance
    )
    digits = judge.predict(drawn).reshape(-1, args.each)
    right = [np.isin(found, list(true)) for found, (_, true) in zip(digits, rows, strict=True)]
    print_shares(np.stack(right))
    if args.out:
        first = drawn[:: args.each]
        save_png(args.out, grid(first, COLUMNS, captions=captions[:: args.each]))


def print_shares(right: np.ndarray) -> None:
    """right: bool [captions, images of each], in the order of `asked`."""
    start = 0
    for kind, rows in asked().items():
        part = right[start : start + len(rows)]
        start += len(rows)
        print(f'| {kind} | {part.size} | {part.mean():.1%} |')
    print(f'| all | {right.size} | {right.mean():.1%} |')


if __name__ == '__main__':
    environment.restart_with_variables()
    command_line.run(sys.modules[__name__], sys.argv[1:], 'python -m benchmarks.digits_text')
