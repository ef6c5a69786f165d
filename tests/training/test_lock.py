"""One run, one folder."""

import errno
import os
import signal

import pytest

from jit_jax.errors import UserError
from jit_jax.training import lock


@pytest.mark.filterwarnings('ignore:os.fork')  # the child touches nothing of JAX's
def test_the_lock(tmp_path):
    workdir = tmp_path / 'made' / 'by the lock'
    read, out = os.pipe()
    pid = os.fork()
    if not pid:
        with lock.lock(workdir):
            os.write(out, b'held')
            signal.pause()
    try:
        assert os.read(read, 4) == b'held'
        with pytest.raises(
            UserError,
            match=rf'is in use by another run \(process {pid} on .*\); stop it or choose',
        ):
            with lock.lock(workdir):
                pass
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    for _ in range(2):
        with lock.lock(workdir):
            with pytest.raises(UserError, match=f'process {os.getpid()}'):
                with lock.lock(workdir):
                    pass


def test_places_without_locks(tmp_path, monkeypatch, caplog):
    def flock(file, how):
        raise OSError(errno.ENOLCK, 'no locks')

    monkeypatch.setattr(lock.fcntl, 'flock', flock)
    with lock.lock(tmp_path), lock.lock(tmp_path), lock.lock('gs://bucket/run'):
        assert 'cannot be locked (No locks available): start one run' in caplog.text
