"""A `Source`: random access by index to decoded, cropped examples of a data set of any kind.

Broken files are skipped in a way that depends on the files alone, so that position i holds the
same example on every machine and after every restart.
"""

import os
import threading

import numpy as np
from absl import logging

from jit_jax.data import captions, preprocess
from jit_jax.data.embeddings import Embeddings
from jit_jax.data.folders import open_folder
from jit_jax.data.handwriting import open_handwriting
from jit_jax.data.listing import existing_folder
from jit_jax.data.omniglot import open_omniglot
from jit_jax.data.pairs import open_pairs
from jit_jax.data.records import Records
from jit_jax.data.tfds_reader import open_digits, open_tfds
from jit_jax.errors import UserError

KINDS = ('digits', 'handwriting', 'omniglot', 'tfds', 'folder', 'pairs', 'memory')
_TRIED = 8  # examples that are tried before a data set is said to be unreadable


def open_source(
    kind: str,
    *,
    split: str,
    image_size: int,
    path: str | os.PathLike | None = None,
    name: str | None = None,
    channels: int = 3,
    max_broken: float = 0.01,
    holdout: str = 'spread',
    palette: str = '',
    tokens: int = 0,
    embeddings: str = '',
) -> 'Source':
    """Opens a source of examples, and tries to read one.

    Args:
      kind: where the images are:
        'digits': scikit-learn's digits, written once under the TFDS directory `path`.
        'handwriting': the same, each with another digit by the same hand as its 'cond'.
        'omniglot': drawings of characters, each with two more of it as its 'cond' and 'cond2'.
        'tfds': a TFDS data set in array_record format: by `name` ('imagenet2012', 'name/config')
          in the TFDS directory `path`, or without a name at `path` itself, the data set's folder
          or one version's.
        'folder': images in `path`, in one sub-folder per class (nested: 'parent/child' is the
          class) or none at all; or as a metadata.jsonl there lists them.
        'pairs': `path`/target/… and `path`/cond/…, images of equal name up to the ending.
        A TFDS directory defaults to $TFDS_DATA_DIR, or ~/tensorflow_datasets.
      split: 'train' or 'test'; for 'tfds' any split expression, such as 'train[:90%]'. If all
        sub-folders of a folder (or of pairs) are named train, test, val or validation, they are
        the splits; else, or if there is only train, 'test' is a twentieth of the files (at least
        one), and 'train' the others.
      image_size: S, the side of the square that each image is cropped and scaled to.
      channels: C, 3 for RGB or 1 for grayscale.
      max_broken: the share of the examples that may turn out broken before reading raises. One
        always may, unless 0.
      holdout: which twentieth: 'spread', every 20th file in sorted order, or 'tail', the last
        ones, for frames of a video, which resemble their neighbours.
      palette: 'voc' where the condition images of pairs hold numbers of classes, which get colours.
      tokens: the most tokens of a caption, of which examples then hold all; 0 for no captions.
      embeddings: the folder with embeddings of the captions; '' where their bytes are tokens.

    Raises:
      UserError: when there is nothing to read, or nothing that fits the description.
    """
    if name is not None and kind != 'tfds':
        raise UserError(f"Only 'tfds' data sets have a name; leave {name!r} out and give the path.")
    records = _open_records(kind, path, name, split, holdout)
    return Source(
        records,
        image_size=image_size,
        channels=channels,
        max_broken=max_broken,
        palette=palette,
        tokens=tokens,
        embeddings=embeddings,
        split=split,
    )


def _open_records(kind, path, name, split, holdout) -> Records:
    match kind:
        case 'digits':
            return open_digits(path, split)
        case 'handwriting':
            return open_handwriting(split)
        case 'omniglot':
            return open_omniglot(split)
        case 'tfds':
            return open_tfds(path, name, split)
        case 'folder':
            return open_folder(existing_folder(path), split, holdout)
        case 'pairs':
            return open_pairs(existing_folder(path), split, holdout)
        case 'memory':
            raise UserError(
                'This run has images in memory, which only those who have them can give: '
                'jit_jax.train(config, workdir, images=…).'
            )
    raise UserError(f'--config.data.kind must be one of {", ".join(KINDS)}, not {kind!r}.')


def absolute(path: str) -> str:
    """A path that means the same from any folder; '' and addresses of object stores as they are."""
    if not path or '://' in path:
        return path
    return os.path.abspath(os.path.expanduser(path))


class Source:
    """Random access to examples.

    An example is {'image': uint8 [S, S, C], 'label': int32, −1 for none}, and 'cond' for pairs,
    which is like 'image'. Where its captions are asked for, it also has all of them: their bytes as
    `captions.to_tokens` makes them, or 'captions' int32 [C], their numbers in a folder of
    embeddings. `with_caption` leaves one, as tokens.

    Attributes:
      classes: the names of the labels in order; empty without labels.
      summary: what was found, in one line: how many images for training and held out, and what
        was ignored.
      images: the names of the images in an example.
      held_out: how those for testing were chosen, as `Records.held_out`.
      palette: the colours that the numbers in its condition images get; '' for none.
      tokens: how many of a caption there are in an example, 0 for no captions.

    Raises:
      UserError: for other channels than 1 and 3, or when none of a few examples can be read.
    """

    def __init__(
        self,
        records: Records,
        *,
        image_size: int,
        channels: int,
        max_broken: float,
        palette: str = '',
        tokens: int = 0,
        embeddings: str = '',
        split: str = '',
    ):
        if channels not in (1, 3) or image_size < 1:
            raise UserError(
                f'Images need 1 or 3 channels and a positive size, not {channels} and '
                f'{image_size}: set --config.model.channels and --config.model.image_size.'
            )
        self.classes, self.images = records.classes, records.images
        self.held_out, self.palette = records.held_out, palette
        self._records = records
        self._image_size = image_size
        self._channels = channels
        self._broken = {}
        self._allowed = max(1, int(max_broken * records.count)) if max_broken else 0
        self._lock = threading.Lock()
        self.tokens, self._embeddings = 0, None
        if tokens:
            captions.check_there(records.captions)
            self._embeddings = Embeddings(embeddings) if embeddings else None
            longest = self._embeddings or captions
            self.tokens = longest.slots_for(records.captions, records.count, tokens)
        self.summary = records.summary
        self._try_some(held_out=split == 'test')

    def __len__(self):
        return self._records.count

    def __getitem__(self, index):
        """Returns example `index`, or when it is broken the next intact one, in a circle.

        Raises:
          UserError: when more examples are broken than allowed.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        example = first_intact(self, index)
        if example is None:
            raise UserError(
                f'None of the {len(self)} images can be read; the first is {self.broken[0]}.'
            )
        return example

    def load(self, index) -> dict[str, np.ndarray] | None:
        """Returns example `index`, or None when it is broken."""
        if index in self._broken:
            return None
        try:
            return self._read(index)
        except MemoryError:
            raise
        except Exception as error:  # a damaged file makes decoders raise almost anything
            self._report(index, error)
            return None

    def sizes(self, index) -> dict[str, tuple[int, int]]:
        """The width and height of each picture of example `index` before it is scaled; {} where it
        is broken.
        """
        try:
            encoded, _ = self._records.read(index)
            return {name: preprocess.decode(image).size for name, image in encoded.items()}
        except Exception:  # noqa: BLE001 - `load` tells of damage, in its own time
            return {}

    def blank(self) -> dict[str, np.ndarray]:
        """Returns an example that shows nothing: gray, without a label."""
        shape = (self._image_size, self._image_size, self._channels)
        images = {name: np.full(shape, 128, np.uint8) for name in self.images}
        return images | {'label': np.int32(-1)} | self._captions(())

    def intact_or_blank(self, index) -> dict[str, np.ndarray]:
        """Returns example `index` counted in a circle, or the next intact one; a blank one where
        none is, as when the only held-out image breaks while a run is under way.
        """
        example = first_intact(self, index % len(self))
        return self.blank() if example is None else example

    def with_caption(self, example: dict[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
        """An example with caption `number` alone, counted round, as tokens; one without captions as
        it is.

        'tokens' is uint8 [m] or float16 [m, E], 'token_count' int32.
        """
        if self._embeddings is None:
            return captions.with_caption(example, number)
        rest = dict(example)
        numbers = rest.pop('captions')
        return rest | self._embeddings.tokens(numbers[number % len(numbers)], self.tokens)

    def caption(self, example: dict[str, np.ndarray], number: int) -> str:
        """What `with_caption` leaves, in words; '' where the tokens themselves say it."""
        if 'captions' not in example:
            return ''
        return self._embeddings.caption(example['captions'][number % len(example['captions'])])

    def said(self, index: int) -> tuple[str, ...]:
        """All captions of example `index`."""
        return tuple(self._records.captions.read(index))

    @property
    def broken(self) -> tuple[str, ...]:
        """The names of the broken examples that were found so far."""
        return tuple(self._broken.values())

    def _read(self, index):
        encoded, label = self._records.read(index)
        arrays = {
            key: preprocess.to_array(
                image,
                self._image_size,
                self._channels,
                self.palette if key == 'cond' else '',
            )
            for key, image in encoded.items()
        }
        said = self.said(index) if self.tokens else ()
        return arrays | {'label': np.int32(label)} | self._captions(said)

    def _captions(self, said) -> dict[str, np.ndarray]:
        if self._embeddings is not None:
            return {'captions': self._embeddings.numbers(said)}
        return captions.to_tokens(said, self.tokens) if self.tokens else {}

    def _try_some(self, *, held_out: bool) -> None:
        """Raises UserError unless one of a few examples can be read; none counts as broken."""
        tried = range(0, len(self), max(1, len(self) // _TRIED))[:_TRIED]
        failures = []
        for index in tried:
            try:
                self._read(index)
                return
            except MemoryError:
                raise
            except Exception as error:  # as in `load`
                failures.append(f'{self._records.name(index)} ({_one_line(error)})')
        of_all = f', of {len(self):,},' if len(tried) < len(self) else ''
        what, found, fix = 'images', '', 'repair or remove them'
        if held_out:
            what, found = 'held-out images', f' ({self.summary.partition(";")[0].rstrip(".")})'
            if not self.held_out.endswith('/'):  # no folder of their own
                fix += ', and others are held out instead'
        raise UserError(
            f'None of the {len(tried)} {what} that were tried{of_all} can be read{found}: {fix}; '
            f'the first is {failures[0]}.'
        )

    def _report(self, index, error):
        with self._lock:
            if index in self._broken:
                return
            name = self._broken[index] = self._records.name(index)
            count = len(self._broken)
        logging.warning('Skipping %s, which is broken: %s', name, error)
        if count > self._allowed:
            raise UserError(
                f'{count} of {len(self)} examples are broken, more than allowed: repair or remove '
                'them or raise --config.data.max_broken; the latest is '
                f'{name} ({_one_line(error)}).'
            ) from error


def first_intact(source, index: int) -> dict[str, np.ndarray] | None:
    """Returns the first intact example from `index` on, the first following the last, or None."""
    for i in range(index, index + len(source)):
        example = source.load(i % len(source))
        if example is not None:
            return example
    return None


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())
