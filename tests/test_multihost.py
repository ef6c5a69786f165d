"""Two real processes on one machine: the same run as one process, stopped together, resumed by any number."""

import re
import signal
import socket

import numpy as np
import pytest
from commands import lines, start, train, weights


def start_two(cwd, env, *flags, each=('', '')):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{s.getsockname()[1]}'
    processes = ('--num_processes=2', f'--coordinator={address}')
    return [start(cwd, env, *flags, *filter(None, [each[i]]), *processes, f'--process_id={i}') for i in range(2)]


def end(processes):
    said = [p.communicate(timeout=300)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], said
    return said


def assert_close(a, b):
    for x, y in zip(lines(a), lines(b), strict=True):
        assert x['step'] == y['step'] and x['loss'] == pytest.approx(y['loss'], rel=1e-4)
    (x, _), (y, _) = weights(a, 'params'), weights(b, 'params')
    assert np.mean([np.mean(np.abs(p - q)) for p, q in zip(x, y, strict=True)]) < 1e-4


def test_two_processes_equal_one_and_resume_as_one_or_two(finished, env, tmp_path):
    reference, _ = finished
    said = end(start_two(tmp_path, env, '--config.steps=6'))
    assert re.search('2 processes agree: parameters [0-9a-f]{8}. Starting fresh', said[0])
    assert 'Done: step 6' in said[0] and 'Done' not in said[1]  # the first process alone speaks and writes
    train(tmp_path, env, 'uncond', '--config.steps=9')  # one process
    assert 'Resuming runs/uncond at step 9' in end(start_two(tmp_path, env))[0]
    # The warm-up and cosine depend on config.steps, so only the first six steps of a shortened run are the reference's.
    assert [line['step'] for line in lines(tmp_path / 'runs/uncond')] == [2, 4, 6, 8, 9, 10, 12]
    for x, y in zip(lines(tmp_path / 'runs/uncond')[:3], lines(reference / 'runs/uncond')[:3]):
        assert x['loss'] == pytest.approx(y['loss'], rel=1e-3)


def test_processes_with_different_flags_are_refused(env, tmp_path):
    said = [p.communicate(timeout=300)[0] for p in start_two(tmp_path, env, each=('--config.seed=1', '--config.seed=2'))]
    assert all('error: The 2 processes of this run differ in their config; start each with the same command' in s for s in said), said
    assert not (tmp_path / 'runs/uncond/config.json').exists()


def test_sigterm_stops_both_at_one_step(finished, env, tmp_path):
    reference, _ = finished
    processes = start_two(tmp_path, env)
    for line in processes[0].stdout:
        if line.startswith('step 2/'):
            for process in processes:
                process.send_signal(signal.SIGTERM)
            break
    said = end(processes)
    assert 'SIGTERM' in said[0] and 'saved' in said[0]
    end(start_two(tmp_path, env))
    assert_close(tmp_path / 'runs/uncond', reference / 'runs/uncond')
