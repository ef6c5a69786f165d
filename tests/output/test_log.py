import io
import json
import math
import re
import struct
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from jit_jax.output import files, log
from jit_jax.output.images import grid, save_png, to_uint8
from jit_jax.output.log import Clock, Writer, drop_lines_after


def line(step, **values):
    return json.dumps({'step': step, **values}) + '\n'


# metrics.jsonl


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


def events(folder):
    """The events of TensorBoard's files, oldest first: (length, checksum, bytes, checksum) each."""
    found = []
    for path in sorted((folder / 'tensorboard').iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack('<Q', data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def scalars_shown(folder):
    """What TensorBoard shows: a START event drops earlier events at or after its step."""
    shown = {}
    for event in events(folder):
        if event.HasField('session_log') and event.session_log.status == event.session_log.START:
            shown = {key: values for key, values in shown.items() if key[1] < event.step}
        for value in event.summary.value:
            kind = value.simple_value if value.HasField('simple_value') else 'image'
            shown.setdefault((value.tag, event.step), []).append(kind)
    return shown


def write(folder, start, steps):
    for old in folder.glob('tensorboard/*'):  # whose names tell seconds; a test is faster
        old.rename(old.with_name('events.out.tfevents.1.host'))
    writer = Writer(str(folder), start=start, steps=10)
    for step in steps:
        writer.scalars(step, {'loss': np.float32(step / 2), 'rate': 0.25})
    writer.close()


def test_writer_writes_what_people_and_tensorboard_read(tmp_path, capsys):
    write(tmp_path, 0, [2, 4])
    lines = [json.loads(text) for text in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert lines == [{'step': 2, 'loss': 1.0, 'rate': 0.25}, {'step': 4, 'loss': 2.0, 'rate': 0.25}]
    assert scalars_shown(tmp_path) == {
        ('loss', 2): [1.0],
        ('rate', 2): [0.25],
        ('loss', 4): [2.0],
        ('rate', 4): [0.25],
    }
    assert re.search(
        r'step 2/10 loss 1 rate 0.25 left \d+\.\d min\n', capsys.readouterr().out
    )  # plain lines where there is no terminal


@pytest.mark.parametrize('checkpoint', [0, 4])
def test_a_resumed_run_has_nothing_twice(tmp_path, checkpoint):
    write(
        tmp_path, 0, [2, 4, 6]
    )  # killed after step 6, with a checkpoint at 4 or before the first one
    again = [step for step in (2, 4, 6, 8) if step > checkpoint]
    write(tmp_path, checkpoint, again)
    lines = [
        json.loads(text)['step'] for text in (tmp_path / 'metrics.jsonl').read_text().splitlines()
    ]
    assert lines == [2, 4, 6, 8]
    assert scalars_shown(tmp_path) == {
        (tag, s): [s / 2 if tag == 'loss' else 0.25] for tag in ('loss', 'rate') for s in lines
    }


def test_each_line_is_on_disk_at_once(tmp_path):
    writer = Writer(str(tmp_path), start=0, steps=10)
    writer.scalars(2, {'loss': 1})
    assert (tmp_path / 'metrics.jsonl').read_text() == line(2, loss=1.0)
    writer.close()


def test_writer_saves_images_and_shows_them(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)
    writer = Writer(str(tmp_path), start=0, steps=10)
    writer.images(3, 'samples', picture, str(tmp_path / 'samples' / '3.png'))
    writer.close()
    np.testing.assert_array_equal(Image.open(tmp_path / 'samples/3.png'), picture)
    assert ('samples', 3) in scalars_shown(tmp_path)
    assert [path.name for path in (tmp_path / 'samples').iterdir()] == ['3.png']


def test_processes_but_the_first_write_nothing(tmp_path, capsys):
    writer = Writer(str(tmp_path), start=0, steps=10, enabled=False)
    writer.scalars(2, {'loss': 1})
    writer.images(2, 'samples', np.zeros((2, 2, 3), np.uint8), str(tmp_path / 'x.png'))
    writer.say('hello')
    writer.close()
    assert not list(tmp_path.iterdir()) and capsys.readouterr().out == ''


def test_clock_counts_training_only(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(log.time, 'perf_counter', lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    clock = Clock(10, ideal=0.02)  # seconds an image
    passes(3)
    with clock.waiting():
        passes(1)
    with clock.pause():
        passes(100)
    assert clock.lap(20, 8) == pytest.approx(
        {'images_per_second': 10 * 8 / 4, 'mfu': 0.4, 'data_wait': 0.25}
    )
    passes(2)
    assert clock.lap(21, 8) == pytest.approx(
        {'images_per_second': 4, 'mfu': 0.08, 'data_wait': 0}
    )  # nothing carried over


def test_time_left_is_told(tmp_path, capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(log.time, 'perf_counter', lambda: now[0])
    seen = []
    writer = Writer(str(tmp_path), start=10, steps=50, follow=seen.append)
    now[0] += 120
    writer.scalars(30, {'loss': 1})
    writer.close()
    assert 'left 2.0 min' in capsys.readouterr().out and seen == [30]


CONFIG = {
    'wandb': {'project': ''},
    'steps': 10,
    'mesh': (1, -1, 1),
    'data': {'kind': 'digits', 'flip': False},
}


def test_tensorboard_shows_the_hyperparameters(tmp_path):
    Writer(str(tmp_path), start=0, steps=10, config=CONFIG).close()
    found = [
        value.metadata.plugin_data.content
        for event in events(tmp_path)
        for value in event.summary.value
        if 'hparams' in value.tag
    ]
    assert any(b'data.kind' in one and b'digits' in one and b'mesh' in one for one in found)


WANDB = """
import json, types
calls = open('calls.jsonl', 'a')
say = lambda *call: (calls.write(json.dumps(call) + chr(10)), calls.flush())
def init(**kwargs):
    say('init', kwargs)
    return types.SimpleNamespace(log=lambda values, step: say('log', step, values), finish=lambda: say('finish'))
Image = lambda array: list(array.shape)
"""


def test_weights_and_biases_resumes_the_same_run(tmp_path, monkeypatch):
    (tmp_path / 'module').mkdir()
    (tmp_path / 'run').mkdir()
    (tmp_path / 'module/wandb.py').write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path / 'module')
    monkeypatch.chdir(tmp_path)
    for start in (0, 2):
        writer = Writer(
            'run', start=start, steps=10, config=CONFIG | {'wandb': {'project': 'digits'}}
        )
        writer.scalars(start + 2, {'loss': 0.5})
        writer.images(start + 2, 'samples', np.zeros((4, 6, 3), np.uint8), 'run/x.png')
        writer.close()
    sys.modules.pop('wandb')
    calls = [json.loads(text) for text in (tmp_path / 'calls.jsonl').read_text().splitlines()]
    first, again = (kwargs for name, *rest in calls if name == 'init' for kwargs in rest)
    assert (
        first == again
        and first['project'] == 'digits'
        and first['resume'] == 'allow'
        and first['config']['steps'] == 10
    )
    assert (
        len(first['id']) == 8
        and (tmp_path / 'run/wandb_id').read_text() == first['id']
        and first['name'] == 'run'
    )
    assert [call for call in calls if call[0] == 'log'] == [
        ['log', s, v] for s in (2, 4) for v in ({'loss': 0.5}, {'samples': [4, 6, 3]})
    ]
    assert [call[0] for call in calls] == ['init', 'log', 'log', 'finish'] * 2


def test_without_a_project_nothing_is_imported(tmp_path):
    Writer(str(tmp_path), start=0, steps=10, config=CONFIG).close()
    assert 'wandb' not in sys.modules and not (tmp_path / 'wandb_id').exists()


# Pictures


def test_to_uint8_inverts_the_scale_of_training():
    pixels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(pixels / np.float32(127.5) - 1), pixels)


@given(st.floats(-1, 1, width=32))
def test_to_uint8_is_the_nearest_level(x):
    exact = (x + 1) * 127.5
    assert abs(int(to_uint8(np.float32([x]))[0]) - exact) <= 0.5 + 1e-4


def test_to_uint8_clips():
    images = to_uint8(np.array([-math.inf, -1.5, -1, 1, 1.01, 300, math.inf]))
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, [0, 0, 0, 255, 255, 255, 255])


@given(
    st.integers(1, 7),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([1, 3]),
    st.integers(0, 3),
)
def test_grid_geometry(N, columns, h, w, C, gap):
    images = np.random.default_rng(0).integers(0, 255, (N, h, w, C), np.uint8)  # never white
    sheet = grid(images, columns, gap)
    rows = math.ceil(N / columns)
    assert (
        sheet.shape == (rows * h + (rows + 1) * gap, columns * w + (columns + 1) * gap, 3)
        and sheet.dtype == np.uint8
    )
    for i, image in enumerate(images):
        top, left = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        np.testing.assert_array_equal(
            sheet[top : top + h, left : left + w], np.broadcast_to(image, (h, w, 3))
        )
    assert (sheet == 255).all(-1).sum() == sheet.shape[0] * sheet.shape[1] - N * h * w - (
        images == 255
    ).all(-1).sum()


def test_save_png_makes_folders_and_leaves_nothing_beside(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    for _ in range(2):  # the second time over the first
        save_png(str(tmp_path / 'a' / 'b.png'), image)
    np.testing.assert_array_equal(Image.open(tmp_path / 'a/b.png'), image)
    assert [path.name for path in (tmp_path / 'a').iterdir()] == ['b.png']


def test_an_object_store_gets_the_same_files(tmp_path, monkeypatch):
    """gs:// as fsspec serves it, in memory; it can neither append nor rename."""
    import fsspec.registry  # noqa: F401
    from etils import epath
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
        log.drop_lines_after(epath.Path(folder) / 'metrics.jsonl', 2)
        save_png(f'{folder}/samples/latest.png', np.full((4, 4, 3), 7, np.uint8))
        assert (epath.Path(folder) / 'metrics.jsonl').read_text() == '{"step": 1}\n{"step": 2}\n'
        picture = Image.open(io.BytesIO((epath.Path(folder) / 'samples/latest.png').read_bytes()))
        assert np.asarray(picture).tolist() == np.full((4, 4, 3), 7).tolist()
