"""Two real processes on one machine: the same run as one process, stopped together, resumed by any
number.
"""

import re
import shutil
import signal

import numpy as np
import pytest
from shell import FIRST, lines, start, start_two, weights


def train_two(cwd, env, *flags, **each):
    return start_two([*FIRST, *flags], cwd, env, **each)


def end(processes):
    said = [p.communicate(timeout=300)[0] for p in processes]
    assert not any(p.returncode for p in processes), said
    return said


def assert_close(a, b):
    for x, y in zip(lines(a), lines(b), strict=True):
        assert x['step'] == y['step'] and x['loss'] == pytest.approx(y['loss'], rel=1e-4)
    (x, _), (y, _) = weights(a, 'params'), weights(b, 'params')
    assert np.mean([np.mean(np.abs(p - q)) for p, q in zip(x, y, strict=True)]) < 1e-4


def stop(processes):
    """Sends SIGTERM to both after the first line of metrics; what the first one says, and the step
    it stopped at.
    """
    said = ''
    for line in processes[0].stdout:
        said += line
        if line.startswith('step '):
            break
    for process in processes:
        process.send_signal(signal.SIGTERM)
    said += end(processes)[0]
    assert 'Stopped by SIGTERM' in said and 'saved' in said, said
    return said, int(said.split('after step ')[1].split(':')[0])


@pytest.mark.long
def test_stopped_at_one_step_and_resumed_by_any_number_equals_one(finished, env, tmp_path):
    """Two processes that SIGTERM stops, then one that it stops, then two: the same run as one that
    was never stopped.
    """
    reference, _ = finished
    said, step = stop(train_two(tmp_path, env))
    assert re.search('2 processes agree: parameters [0-9a-f]{8}. Starting fresh', said)
    said, further = stop([start(tmp_path, env)])
    assert f'Resuming runs/uncond at step {step}.' in said and step < further < 12
    said = end(train_two(tmp_path, env))
    assert f'Resuming runs/uncond at step {further}.' in said[0]
    # The first process alone speaks and writes.
    assert 'Done: step 12' in said[0] and 'Done' not in said[1]
    assert_close(tmp_path / 'runs/uncond', reference / 'runs/uncond')


def test_processes_with_different_flags_are_refused(env, tmp_path):
    said = [
        p.communicate(timeout=300)[0]
        for p in train_two(tmp_path, env, each=('--config.seed=1', '--config.seed=2'))
    ]
    for one in said:
        assert 'error: The 2 processes of this run differ in their config; start each with' in one
    assert not (tmp_path / 'runs/uncond/config.json').exists()


def numbers(said):
    return dict(re.findall(r'^(\w[\w.]*) +([\d.]+)$', said, re.M))


@pytest.mark.long
def test_sampling_and_evaluation_use_both(finished, env, in_process, one_classifier, tmp_path):
    cwd, _ = finished
    without = shutil.ignore_patterns('report', 'tensorboard')
    shutil.copytree(cwd / 'runs/uncond', tmp_path / 'run', ignore=without)
    sample = ['sample', '--workdir=run', '--num=5', '--steps=3']
    both = start_two(['-m', 'jit_jax', *sample, '--out=two.npz'], tmp_path, env)
    assert '5 images' in end(both)[0]
    in_process(tmp_path, *sample, '--out=one.npz')
    one, two = (np.load(tmp_path / f'{name}.npz')['arr_0'].astype(int) for name in ('one', 'two'))
    assert one.shape == (5, 32, 32, 3) and np.abs(one - two).max() <= 1
    metrics = '--metrics=classifier,denoising'
    evaluate = ['evaluate', '--workdir=run', '--num=6', '--steps=3', metrics]
    both = numbers(end(start_two(['-m', 'jit_jax', *evaluate], tmp_path, env))[0])
    shutil.rmtree(tmp_path / 'run/evaluation')
    alone = numbers(in_process(tmp_path, *evaluate))
    assert both.keys() == alone.keys() and 'classifier_distance' in both and 'psnr_t0.5' in both
    for name in both:
        assert float(both[name]) == pytest.approx(float(alone[name]), rel=2e-3, abs=2e-3), name
