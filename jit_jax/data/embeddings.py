"""Captions as embeddings that a text model made once: a folder, written by `jit-jax embed`.

    photos-t5/encoder.json         the text model, the width of its embeddings, the longest caption
    photos-t5/captions.txt         a caption a line; caption number i is record number i
    photos-t5/00000.array_record   records: float16 [n, E], one caption's n tokens

A file is whole or not there. What is missing, `append` writes, so a stopped command goes on, and
captions that are new join those that are there.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jit_jax.data.captions import Captions, clean, padded, rounded_up
from jit_jax.errors import UserError
from jit_jax.output.files import write_whole

ABOUT, CAPTIONS = 'encoder.json', 'captions.txt'
SHARD = 1024  # captions in a file


@dataclass(frozen=True)
class Encoder:
    """What is known about the text model of a folder.

    Attributes:
      name: of a model of `transformers`, or its folder.
      width: E, of an embedding.
      most: the tokens that a longer caption is cut to.
      longest: the tokens of the longest caption.
    """

    name: str
    width: int
    most: int
    longest: int

    def same_as(self, other: 'Encoder') -> bool:
        """Whether both give the same embeddings, whatever the captions."""
        return dataclasses.replace(self, longest=other.longest) == other


def read_encoder(folder: str | os.PathLike) -> Encoder:
    """What the folder's encoder.json says. Raises UserError where there is none."""
    path = Path(folder).expanduser() / ABOUT
    try:
        return Encoder(**json.loads(path.read_text()))
    except FileNotFoundError:
        raise UserError(
            f'{folder} holds no embeddings of captions; write them with: jit-jax embed '
            f'--captions=… --encoder=… --out={folder}.'
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f'{path} cannot be read ({error}): remove {folder}, and embed again.'
        ) from error


def append(
    folder: Path,
    encoder: Encoder,
    captions: Iterable[str],
    encode: Callable[[Sequence[str]], list[np.ndarray]],
    *,
    batch: int,
) -> Iterator[tuple[int, int]]:
    """Writes the embeddings of captions that are not there yet, and yields (done, of all) after
    each file.

    encode: captions → float [n, E] for each. batch: how many it is given at a time. Raises
    UserError where the folder holds those of another encoder.
    """
    before = _lines(folder)
    if before:
        there = read_encoder(folder)
        if not there.same_as(encoder):
            raise UserError(
                f'{folder} holds embeddings by {there.name} ({there.width} wide, at most '
                f'{there.most} tokens), not by {encoder.name} ({encoder.width}, {encoder.most}): '
                'name another folder with --out.'
            )
        longest = max(there.longest, encoder.longest)
        encoder = dataclasses.replace(encoder, longest=longest)
    every = list(dict.fromkeys([*before, *filter(None, map(clean, captions))]))
    if not every:
        raise UserError('None of the captions says anything: write some.')
    write_whole(folder / ABOUT, json.dumps(dataclasses.asdict(encoder), indent=1).encode())
    write_whole(folder / CAPTIONS, ''.join(f'{line}\n' for line in every).encode())
    for first in range(0, len(every), SHARD):
        part, path = every[first : first + SHARD], _shard(folder, first)
        if _count(path) != len(part):
            _write(path, part, encode, batch)
        yield first + len(part), len(every)


def _write(path: Path, captions: list[str], encode: Callable, batch: int) -> None:
    """One file of records, whole or not at all."""
    from array_record.python import array_record_module

    part = f'{path}.tmp'
    writer = array_record_module.ArrayRecordWriter(part, 'group_size:1')  # each is read alone
    for first in range(0, len(captions), batch):
        for rows in encode(captions[first : first + batch]):
            writer.write(np.ascontiguousarray(rows, np.float16).tobytes())
    writer.close()
    os.replace(part, path)


def _lines(folder: Path) -> list[str]:
    """The captions of a folder in their order; [] where there are none."""
    path = folder / CAPTIONS
    return path.read_text(encoding='utf-8').splitlines() if path.exists() else []


def _shard(folder: Path, first: int) -> Path:
    """The file whose first record is caption number `first`."""
    return folder / f'{first // SHARD:05d}.array_record'


def _count(path: Path) -> int:
    """The records of a file; −1 where it is not there."""
    from array_record.python import array_record_module

    if not path.exists():
        return -1
    reader = array_record_module.ArrayRecordReader(str(path))
    count = reader.num_records()
    reader.close()
    return count


class Embeddings:
    """The embeddings of a folder, read one by one.

    Raises UserError where it is not finished.
    """

    def __init__(self, folder: str | os.PathLike):
        from array_record.python import array_record_data_source

        self.folder, self.encoder = Path(folder).expanduser(), read_encoder(folder)
        self._captions = _lines(self.folder)
        self._number = {caption: i for i, caption in enumerate(self._captions)}
        paths = [_shard(self.folder, i) for i in range(0, len(self._captions), SHARD)]
        there = [str(path) for path in paths if path.exists()]
        if len(there) == len(paths) > 0:
            self._records = array_record_data_source.ArrayRecordDataSource(there)
        if len(there) < len(paths) or len(self._records) != len(self._captions):
            raise UserError(
                f'The embeddings in {folder} are not finished ({len(there)} of {len(paths)} '
                'files): the same jit-jax embed again goes on.'
            )

    def __contains__(self, caption: str) -> bool:
        return clean(caption) in self._number

    def numbers(self, captions: Sequence[str]) -> np.ndarray:
        """Of captions those in the folder: int32 [C], −1 for one that says nothing.

        Without any, that one alone. Raises UserError for one that is not there.
        """
        found = []
        for caption in captions:
            caption = clean(caption)
            if caption and caption not in self._number:
                raise UserError(
                    f'{caption!r} is not among the captions of {self.folder}: the same jit-jax '
                    'embed again, with all captions, adds it.'
                )
            found.append(self._number[caption] if caption else -1)
        return np.array(found or [-1], np.int32)

    def caption(self, number: int) -> str:
        """The caption of a number; '' for −1."""
        return '' if number < 0 else self._captions[number]

    def tokens(self, number: int, slots: int) -> dict[str, np.ndarray]:
        """'tokens' float16 [slots, E], zeros after their end, and 'token_count' int32: at most
        `slots` of them.
        """
        record = self._records[int(number)] if number >= 0 else b''
        rows = np.frombuffer(record, np.float16).reshape(-1, self.encoder.width)[:slots]
        return {name: array[0] for name, array in padded([rows], slots).items()}

    def slots_for(self, captions: Captions, count: int, most: int) -> int:
        """The tokens of a program for a data set of `count` examples, at most `most`.

        Raises UserError for a caption that is not in the folder, where they can be listed.
        """
        if captions.listed:
            for i in range(count):
                self.numbers(captions.read(i))
        return min(rounded_up(self.encoder.longest), most)
