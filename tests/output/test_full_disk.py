"""A whole training run on a real disk of 30 MB that fills up while it trains."""

import json
import re
import signal
import subprocess
import threading
import time

import pytest
from shell import start

ENDLESS = [
    '--yes',
    '--config.steps=1000000',
    '--config.log_every=1',
    '--config.checkpoint.every=1000000',
]


@pytest.fixture
def disk(tmp_path):
    """A tmpfs of 30 MB; only root can mount one."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', 'size=30m', 'tmpfs', str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f'no tmpfs can be mounted here: {done.stderr.strip()}')
    yield folder
    subprocess.run(['umount', '-l', str(folder)], check=True)


def fill(disk):
    """Takes all the room there is; returns the file that has it."""
    ballast = disk / 'ballast'
    with open(ballast, 'wb', buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while file.write(b'x' * size):
                    pass
            except OSError:
                continue
    return ballast


def kill_after(process, seconds):
    """A timer for a run that is silent for good, whose lines would be waited for."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    return timer


def last_step(said):
    """The step of the last line of metrics."""
    return int(re.findall(r'^step (\d+)/', ''.join(said), re.M)[-1])


def wait_for(process, pattern, said):
    for line in process.stdout:
        said.append(line)
        if re.search(pattern, line):
            return
    raise AssertionError(f'no {pattern} in {"".join(said)}')


@pytest.mark.slow
def test_a_full_disk_neither_hangs_a_run_nor_keeps_it_from_stopping(env, disk):
    """It fills, the run goes on past what queues hold, there is room again, and SIGTERM saves."""
    process = start(disk, env, *ENDLESS, '--config.sample.every=40')
    said = []
    watchdog = kill_after(process, 400)
    try:
        wait_for(process, r'^step 5/', said)
        ballast = fill(disk)
        wait_for(process, r'TensorBoard cannot be written', said)
        full_at = last_step(said)
        wait_for(process, rf'^step {full_at + 600}/', said)  # twice as many as may wait
        ballast.unlink()
        wait_for(process, 'TensorBoard can be written again', said)
        wait_for(process, '^step', said)
        process.send_signal(signal.SIGTERM)
        said.extend(process.stdout)
        assert process.wait() == 0, ''.join(said)
    finally:
        watchdog.cancel()
        process.kill()
    text = ''.join(said)
    for what in ('TensorBoard', 'metrics.jsonl', 'The pictures of samples'):
        assert text.count(f'{what} cannot be written') == 1, text
        assert text.count(f'{what} can be written again') == 1, text
    assert 'Stopped by SIGTERM' in text
    folder = disk / 'runs/uncond'
    steps = [json.loads(line)['step'] for line in (folder / 'metrics.jsonl').open()]
    assert steps == list(range(1, last_step(said) + 1))
    assert not list(folder.rglob('*.tmp'))
    files = sorted((folder / 'tensorboard').iterdir())
    assert len(files) >= 2 and all(file.stat().st_size for file in files)


@pytest.mark.slow
def test_a_run_ends_on_a_disk_that_stays_full(env, disk):
    """SIGTERM ends it although nothing can be saved: it says so, and does not hang."""
    process = start(disk, env, *ENDLESS)
    said = []
    watchdog = kill_after(process, 300)
    try:
        wait_for(process, r'^step 5/', said)
        fill(disk)
        wait_for(process, r'TensorBoard cannot be written', said)
        wait_for(process, rf'^step {last_step(said) + 50}/', said)
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        said.extend(process.stdout)
        code = process.wait()
    finally:
        watchdog.cancel()
        process.kill()
    assert time.monotonic() - asked < 60
    assert code in (0, 1) and 'could not be saved' in ''.join(said), ''.join(said)
    assert 'Traceback' not in ''.join(said)
