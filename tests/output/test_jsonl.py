"""metrics.jsonl: whole lines in order, after kills and on full disks."""

import errno
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jit_jax.output import files
from jit_jax.output.jsonl import Lines, drop_lines_after
from jit_jax.output.warnings_once import Trouble


def line(step, **values):
    return json.dumps({'step': step, **values}) + '\n'


@given(
    steps=st.lists(st.integers(1, 9), max_size=6), last=st.integers(0, 10), torn=st.integers(0, 30)
)
def test_a_killed_run_leaves_whole_lines_up_to_its_checkpoint(tmp_path_factory, steps, last, torn):
    path = tmp_path_factory.mktemp('lines') / 'metrics.jsonl'
    whole = [line(step, loss=0.5) for step in steps]
    text = ''.join(whole)
    text = text[: len(text) - torn] if torn else text  # anywhere in the file
    path.write_text(text)
    drop_lines_after(str(path), last)
    kept = [
        one
        for i, one in enumerate(whole)
        if len(''.join(whole[: i + 1])) <= len(text) and json.loads(one)['step'] <= last
    ]
    assert path.read_text() == ''.join(kept)
    assert [p.name for p in path.parent.iterdir()] == ['metrics.jsonl']


@pytest.mark.parametrize(
    'torn', ['{"step": 3, "lo', '{"step": 3}', '{', '{"loss": 1}\n', '\x00\x00\x00']
)
def test_a_last_line_that_is_no_line_is_dropped(tmp_path, torn):
    path = tmp_path / 'metrics.jsonl'
    path.write_text(line(1) + line(2) + torn)
    drop_lines_after(str(path), 10)
    assert path.read_text() == line(1) + line(2)


def test_no_file_is_no_error(tmp_path):
    drop_lines_after(str(tmp_path / 'metrics.jsonl'), 3)
    assert not list(tmp_path.iterdir())


def test_what_a_full_disk_refuses_waits_and_keeps_its_order(tmp_path, monkeypatch):
    """Half of a line gets onto the disk, then there is no room: no torn line, none lost, none out
    of order.
    """
    said = []
    lines = Lines(tmp_path / 'metrics.jsonl', Trouble('metrics.jsonl', said.append))
    lines.add({'step': 1})

    def half(file, content):
        file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(files, '_write_all', half)
    lines.add({'step': 2})
    lines.add({'step': 3})
    assert (tmp_path / 'metrics.jsonl').read_text() == line(1)
    monkeypatch.undo()
    lines.add({'step': 4})
    assert (tmp_path / 'metrics.jsonl').read_text() == line(1) + line(2) + line(3) + line(4)
    assert said == [
        'metrics.jsonl cannot be written (No space left on device); the run goes on without.',
        'metrics.jsonl can be written again.',
    ]


def test_nothing_to_drop_writes_nothing(tmp_path, monkeypatch):
    path = tmp_path / 'metrics.jsonl'
    path.write_text(line(1) + line(2))
    monkeypatch.setattr('jit_jax.output.jsonl.write_whole', None)
    drop_lines_after(path, 2)
    assert path.read_text() == line(1) + line(2)
