"""Whole files or none, on disks and in object stores."""

import errno
import io
import json
import sys

import numpy as np
import pytest
from etils import epath
from PIL import Image

from jit_jax.output import files, jsonl
from jit_jax.output.images import save_png


def test_a_full_disk_leaves_what_was_there_and_nothing_beside(tmp_path, monkeypatch):
    path = tmp_path / 'a.txt'
    files.write_whole(path, b'before')

    def half(self, content):
        with self.open('wb') as file:
            file.write(content[:2])
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(type(epath.Path(path)), 'write_bytes', half)
    with pytest.raises(OSError, match='No space'):
        files.write_whole(path, b'after')
    assert path.read_bytes() == b'before'
    assert [one.name for one in tmp_path.iterdir()] == ['a.txt']


def test_a_write_in_parts_is_whole(tmp_path):
    class Small(io.FileIO):
        """A file that takes three bytes at a time."""

        def write(self, content):
            return super().write(content[:3])

    with Small(tmp_path / 'a.txt', 'w') as file:
        files._write_all(file, b'0123456789')
    assert (tmp_path / 'a.txt').read_bytes() == b'0123456789'


def test_an_object_store_gets_the_same_files(tmp_path, monkeypatch):
    """gs:// as fsspec serves it, in memory; it can neither append nor rename."""
    import fsspec.registry  # noqa: F401
    from fsspec.implementations.memory import MemoryFileSystem

    class Store(MemoryFileSystem):
        store, pseudo_dirs = {}, ['']  # its own

        def _open(self, path, mode='rb', **kwargs):
            assert mode in ('rb', 'wb'), f'an object store has no mode {mode}'
            return super()._open(path, mode, **kwargs)

        def mv(self, *args, **kwargs):
            raise AssertionError('an object store does not rename')

    for name in ('gs', 'gcs'):
        monkeypatch.setitem(sys.modules['fsspec.registry']._registry, name, Store)
    for folder in ('gs://bucket/run', tmp_path):
        for step in (1, 2, 3):
            files.append(epath.Path(folder) / 'metrics.jsonl', json.dumps({'step': step}) + '\n')
        jsonl.drop_lines_after(epath.Path(folder) / 'metrics.jsonl', 2)
        save_png(f'{folder}/samples/latest.png', np.full((4, 4, 3), 7, np.uint8))
        assert (epath.Path(folder) / 'metrics.jsonl').read_text() == '{"step": 1}\n{"step": 2}\n'
        picture = Image.open(io.BytesIO((epath.Path(folder) / 'samples/latest.png').read_bytes()))
        assert np.asarray(picture).tolist() == np.full((4, 4, 3), 7).tolist()
