"""What a folder of images holds: its files, and which of them are held out from training."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jit_jax.data.captions import Captions
from jit_jax.data.records import Records, if_few, in_classes
from jit_jax.errors import UserError

ENDINGS = ('.bmp', '.gif', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
HOLDOUTS = ('spread', 'tail')
_TEST_FOLDERS = ('test', 'val', 'validation')  # the first of them that is there
HELD_OUT = 20  # without such a folder, one in 20 examples is for testing
EVERY = f'every {HELD_OUT}th'  # how they were chosen: spread among the others


class Example(NamedTuple):
    """The files of one example, the name of its class, '' for none, and what is said about it: the
    captions themselves, or the path of a file with one in each line.
    """

    paths: tuple[str, ...]
    label: str | int = ''
    captions: tuple[str, ...] | str = ()


class Listing(NamedTuple):
    """The examples in a folder, in an order that is the same everywhere, and what was left out."""

    examples: list[Example]
    ignored: Counter  # 'files ending in .txt' → how many


class Splits(NamedTuple):
    """The folders of the two splits: one and the same where images are held out of it."""

    train: Path
    test: Path
    unused: tuple[Path, ...]


@dataclass(frozen=True)
class Division:
    """A folder's examples, divided into those for training and those held out."""

    root: Path
    splits: Splits
    train: list[Example]
    test: list[Example]
    how: str  # how the test examples were chosen, for the summary
    ignored: Counter

    def part(self, split: str) -> list[Example]:
        """The examples of 'train' or 'test'. Raises UserError when there is nothing to train on."""
        if split == 'test':
            return self.test
        if self.test and not self.train:
            raise UserError(
                f'{self.root} holds one image, and that is held out for testing: add more, '
                'or a folder named test.'
            )
        return self.train

    def whole(self, split: str) -> list[Example]:
        """All examples in the folder of a split, whether held out of it or not."""
        if self.splits.train == self.splits.test:
            return self.train + self.test
        return self.test if split == 'test' else self.train

    def folder(self, split: str) -> Path:
        """Where the examples of a split are."""
        return self.splits.test if split == 'test' else self.splits.train

    def records(self, split, images, classes, *, noun, details='') -> Records:
        """The examples of a split: `images` names their files, `classes` their labels."""
        examples = self.part(split)
        number = {'': -1} | {name: i for i, name in enumerate(classes)}
        names = tuple(str(name) for name in classes)
        summary = (
            f'{self.root}: {len(self.train):,} {noun} for training, {len(self.test):,} held out '
            f'({self.how}){in_classes(names)}{details}{_with_captions(self.train)}'
            f'{_list_ignored(self.ignored)}'
            f'{if_few(len(self.train))}.'
        )

        def read(i):
            paths = dict(zip(images, examples[i].paths, strict=True))
            return paths, number[examples[i].label]

        def name(i):
            return ' + '.join(examples[i].paths)

        def said(i):
            return captions_of(examples[i])

        captions = None
        if any(example.captions for example in examples):
            captions = Captions(said)
        return Records(len(examples), images, read, name, names, summary, self.how, captions)


def captions_of(example: Example) -> tuple[str, ...]:
    """The captions of an example. Raises UserError for a file that is no text."""
    if not isinstance(example.captions, str):
        return example.captions
    try:
        lines = Path(example.captions).read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f'{example.captions} cannot be read as text ({error}): write a caption in each line, '
            'in UTF-8.'
        ) from error
    return tuple(line for line in lines if line.strip())


def divide(root: Path, split: str, holdout: str, list_folder: Callable) -> Division:
    """Divides what `list_folder(folder) → Listing` finds into examples to train on and to test.

    If all sub-folders of `root` are named train, test, val or validation, they are the splits.
    Else, or if there is only train, test is every 20th example ('spread') or the last twentieth
    ('tail') in sorted order, at least one.

    Raises:
      UserError: for a split or a `holdout` that does not exist, or test folders without train.
    """
    check_split(split)
    splits = find_splits(root)
    examples, ignored = list_folder(splits.train)
    if splits.train == splits.test:
        train, test, how = hold_out(examples, holdout)
        return Division(root, splits, train, test, how, ignored)
    test, more = list_folder(splits.test)
    ignored = ignored + more
    for folder in splits.unused:
        ignored[f'in {folder.name}/'] += len(list_folder(folder).examples)
    ignored[f'beside train/ and {splits.test.name}/'] += len(_images(next(walk(root))[2]))
    return Division(root, splits, examples, test, f'in {splits.test.name}/', ignored)


def check_split(split: str) -> None:
    """Raises UserError for a split that only a TFDS data set could have."""
    if split not in ('train', 'test'):
        raise UserError(f"The split of such images must be 'train' or 'test', not {split!r}.")


def hold_out(examples: Sequence, holdout: str) -> tuple[Sequence, Sequence, str]:
    """Returns the examples to train on, those held out, and how they were chosen."""
    if holdout not in HOLDOUTS:
        raise UserError(f'--config.data.holdout must be spread or tail, not {holdout!r}.')
    count = max(1, len(examples) // HELD_OUT)
    if holdout == 'tail' or len(examples) < HELD_OUT:
        how = 'the last one' if count == 1 else f'the last {count:,}'
        return examples[:-count], examples[-count:], how
    test = examples[HELD_OUT - 1 :: HELD_OUT]
    train = [example for i, example in enumerate(examples, 1) if i % HELD_OUT]
    return train, test, EVERY


def find_splits(root: Path) -> Splits:
    """The folders of the splits below `root`. Raises UserError for test folders without train."""
    present = set(next(walk(root))[1])
    if not present or not present <= {'train', *_TEST_FOLDERS}:
        return Splits(root, root, ())  # not splits: a class may well be called train
    if 'train' not in present:
        raise UserError(f'{root} has a folder {min(present)} but none named train: add it.')
    train = root / 'train'
    tests = [root / name for name in _TEST_FOLDERS if name in present]
    return Splits(train, tests[0], tuple(tests[1:])) if tests else Splits(train, train, ())


def existing_folder(path) -> Path:
    """`path` as a folder that is there. Raises UserError, which names the flag that gives it."""
    flag = '--config.data.path=FOLDER'
    if path is None:
        raise UserError(f'The path of the folder of images is missing: give it as {flag}.')
    folder = Path(path).expanduser()
    if not folder.is_dir():
        problem = 'is a file' if folder.exists() else 'does not exist'
        raise UserError(f'{folder} {problem}: give the path of a folder of images as {flag}.')
    return folder


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """os.walk through links, without what is hidden.

    Raises:
      UserError: where a folder cannot be listed, which os.walk would leave out in silence.
    """

    def fail(error):
        raise UserError(
            f'{error.filename} cannot be listed ({error.strerror}): repair or remove it.'
        )

    for parent, children, files in os.walk(folder, followlinks=True, onerror=fail):
        children[:] = [child for child in children if not child.startswith('.')]
        yield parent, children, [file for file in files if not file.startswith('.')]


def images_in(folder: Path) -> tuple[list[str], Counter]:
    """The images anywhere below a folder, sorted paths relative to it; and what is no image."""
    found, ignored = [], Counter()
    for parent, _, files in walk(folder):
        images = _images(files)
        found += [os.path.relpath(os.path.join(parent, file), folder) for file in images]
        for file in set(files) - set(images):
            ending = os.path.splitext(file)[1].lower()
            ignored[f'ending in {ending}' if ending else 'without an ending'] += 1
    return sorted(found), ignored


def _images(files: list[str]) -> list[str]:
    return [file for file in files if os.path.splitext(file)[1].lower() in ENDINGS]


def _with_captions(examples: list[Example]) -> str:
    count = sum(bool(example.captions) for example in examples)
    return f', {count:,} with captions' if count else ''


def _list_ignored(ignored: Counter) -> str:
    kinds = [f'{count:,} {kind}' for kind, count in ignored.most_common(4) if count]
    return f'; ignored: {", ".join(kinds)}' if kinds else ''
