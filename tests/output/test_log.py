"""What a run tells people, and that none of it can stop the run."""

import contextlib
import errno
import json
import re
import struct
import sys

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from jit_jax.errors import UserError
from jit_jax.output import log
from jit_jax.output.log import Writer


def line(step, **values):
    return json.dumps({'step': step, **values}) + '\n'


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
        r'step 2/10   loss 1       left \d+ s\n', capsys.readouterr().out
    )  # plain lines where there is no terminal


def test_the_first_steps_say_how_long_the_others_take(tmp_path, capsys, monkeypatch):
    """Compiling is not what the other steps cost: neither then, nor in a later line."""
    now = 100.0
    monkeypatch.setattr('time.perf_counter', lambda: now)
    writer = Writer(str(tmp_path), start=10, steps=110)
    for step, seconds in ((11, 30.0), (12, 2.0), (13, 4.0)):
        now += seconds
        writer.finished(step)
        assert capsys.readouterr().out == (
            'Step 11 took 30 s, compiling included; the 99 after it take about 3.3 min.\n'
            if step == 12
            else ''
        )
    writer.scalars(13, {'loss': 1.0})
    assert capsys.readouterr().out.endswith('left 4.8 min\n')  # 97 steps of 3 s
    writer.close()


def test_time_left_has_what_comes_between_the_steps(tmp_path, capsys, monkeypatch):
    """Steps of 2 s after a first one of 30 s, a save of 5 s after every fourth, and one grid of
    samples, of 100 s, after the tenth and the last.
    """
    now = 100.0
    monkeypatch.setattr('time.perf_counter', lambda: now)
    writer = Writer(str(tmp_path), start=0, steps=14, every={'save': 4, 'draw': 10, 'measure': 0})
    left = []
    for step in range(1, 15):
        now += 30.0 if step == 1 else 2.0
        writer.finished(step)
        writer.scalars(step, {'loss': 1.0})
        left.append(writer._seconds_left(step))
        for name, seconds, due in (('save', 5.0, step % 4 == 0), ('draw', 100.0, step == 10)):
            if due:
                with writer.clock.pause(name):
                    now += seconds
    writer.close()
    assert left[1:4] == [24.0, 22.0, 20.0]  # nothing has been saved yet
    assert left[4:8] == [18 + 3 * 5, 16 + 3 * 5, 14 + 3 * 5, 12 + 3 * 5]  # after 8, 12 and 14
    assert left[8:10] == [10 + 2 * 5, 8 + 2 * 5]
    assert left[10] == 6 + 2 * 5 + 100 and left[13] == 5 + 100
    assert capsys.readouterr().out.splitlines()[-4].endswith('left 1.9 min')  # 116 s


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
    archives = {str(tmp_path / 'samples' / 'latest.npz'): picture[None]}
    path = str(tmp_path / 'samples' / '3.png')
    writer.images(3, 'samples', picture, path, archives=archives)
    writer.close()
    np.testing.assert_array_equal(np.load(tmp_path / 'samples/latest.npz')['arr_0'][0], picture)
    np.testing.assert_array_equal(Image.open(tmp_path / 'samples/3.png'), picture)
    assert ('samples', 3) in scalars_shown(tmp_path)
    assert {path.name for path in (tmp_path / 'samples').iterdir()} == {'3.png', 'latest.npz'}


def test_processes_but_the_first_write_nothing(tmp_path, capsys):
    writer = Writer(str(tmp_path), start=0, steps=10, enabled=False)
    writer.scalars(2, {'loss': 1})
    writer.images(2, 'samples', np.zeros((2, 2, 3), np.uint8), str(tmp_path / 'x.png'))
    writer.say('hello')
    writer.close()
    assert not list(tmp_path.iterdir()) and capsys.readouterr().out == ''


def test_time_left_is_shown(tmp_path, capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(log.time, 'perf_counter', lambda: now[0])
    seen = []
    writer = Writer(str(tmp_path), start=10, steps=50, follow=seen.append)
    now[0] += 120
    writer.scalars(30, {'loss': 1})
    writer.close()
    assert 'left 2.0 min' in capsys.readouterr().out and seen == [30]


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, 'No space left on device')


def test_a_full_disk_is_said_once_and_stops_nothing(tmp_path, capsys, monkeypatch):
    writer = Writer(str(tmp_path), start=0, steps=10)
    picture = np.zeros((4, 4, 3), np.uint8)
    monkeypatch.setattr('jit_jax.output.jsonl.append', full)
    monkeypatch.setattr('jit_jax.output.images.write_whole', full)
    for step in (1, 2, 3):
        writer.scalars(step, {'loss': step})
        writer.images(step, 'samples', picture, str(tmp_path / f'{step}.png'))
    monkeypatch.undo()
    assert not (tmp_path / 'metrics.jsonl').exists()
    writer.scalars(4, {'loss': 4})
    writer.images(4, 'samples', picture, str(tmp_path / '4.png'))
    writer.close()
    said = capsys.readouterr().out
    for what in ('metrics.jsonl', 'The pictures of samples'):
        sentence = f'{what} cannot be written (No space left on device); the run goes on without.'
        assert said.count(sentence) == said.count(f'{what} can be written again.') == 1
    assert (tmp_path / 'metrics.jsonl').read_text() == ''.join(
        line(step, loss=float(step)) for step in (1, 2, 3, 4)
    )
    assert not (tmp_path / '3.png').exists() and (tmp_path / '4.png').exists()


def test_what_waited_is_written_at_the_end(tmp_path, monkeypatch):
    writer = Writer(str(tmp_path), start=0, steps=10)
    monkeypatch.setattr('jit_jax.output.jsonl.append', full)
    writer.scalars(1, {'loss': 1})
    monkeypatch.undo()
    writer.close()
    assert (tmp_path / 'metrics.jsonl').read_text() == line(1, loss=1.0)


def test_standard_output_may_be_on_the_full_disk(tmp_path, monkeypatch):
    with open('/dev/full', 'w', buffering=1) as out:
        monkeypatch.setattr(sys, 'stdout', out)
        writer = Writer(str(tmp_path), start=0, steps=10)
        writer.say('hello')
        writer.scalars(1, {'loss': 1})
        writer.close()
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            out.close()
    assert (tmp_path / 'metrics.jsonl').read_text() == line(1, loss=1.0)


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
    return types.SimpleNamespace(
        log=lambda values, step: say('log', step, values), finish=lambda: say('finish'))
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


def test_a_board_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(UserError, match='config.wandb.project .* pip install wandb'):
        Writer(str(tmp_path), start=0, steps=10, config=CONFIG | {'wandb': {'project': 'digits'}})


def test_without_a_project_nothing_is_imported(tmp_path):
    Writer(str(tmp_path), start=0, steps=10, config=CONFIG).close()
    assert 'wandb' not in sys.modules and not (tmp_path / 'wandb_id').exists()


def test_each_start_of_a_run_is_kept_with_its_time(tmp_path, capsys):
    for step, how in ((0, 'Starting fresh.'), (4, 'Resuming, with steps changed.')):
        writer = Writer(str(tmp_path), start=step, steps=10)
        writer.started(how)
        writer.close()
    assert 'Resuming, with steps changed.' in capsys.readouterr().out
    first, second = map(json.loads, (tmp_path / 'history.jsonl').read_text().splitlines())
    assert (first['step'], second['step']) == (0, 4) and first['time'] <= second['time']
    assert second['how'] == 'Resuming, with steps changed.'
