"""Storage that fails: said in one line, and nothing that was good is lost."""

import errno
import shutil
from types import SimpleNamespace

import pytest
from toys import CONFIG, NO_CACHE, listing, python, toy

from jit_jax.errors import UserError
from jit_jax.training import manifest
from jit_jax.training.checkpoint import Checkpoints


def test_a_full_disk_is_one_line(workdir, monkeypatch, caplog):
    checkpoints = Checkpoints(workdir, keep_last=1)
    checkpoints.newest()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=100))
        checkpoints.save(toy(3), config=CONFIG)
        assert checkpoints.wait() == 2
    assert len(caplog.records) == 1
    said = 'Checkpoint 3 was not saved: it takes 0.0 MB and 0.0 MB are free. '
    assert said + 'Training goes on; checkpoint 2' in caplog.text
    assert listing(workdir) == ['1', '2']
    checkpoints.save(toy(3), config=CONFIG)
    assert checkpoints.wait() == 3 and listing(workdir) == ['3']


@pytest.mark.parametrize('moment', ['before', 'after'])
def test_a_run_that_cannot_save_its_first_checkpoint_stops(tmp_path, monkeypatch, moment):
    """Before Orbax writes, or in the background after it: a run that cannot be saved is no run."""

    def full(*_):
        raise OSError(errno.ENOSPC, 'full')

    place = (shutil, 'disk_usage') if moment == 'before' else (manifest, 'seal')
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    with monkeypatch.context() as patch:
        patch.setattr(*place, full)
        with pytest.raises(
            UserError, match=r'first checkpoint, .*checkpoints/1, could not be saved \(No space'
        ):
            checkpoints.save(toy(1), config=CONFIG)
    checkpoints.save(toy(2), config=CONFIG)
    assert checkpoints.wait() == 2 and listing(tmp_path) == ['2']


def test_a_disk_that_fills_up_at_the_manifest(workdir, monkeypatch, caplog):
    checkpoints = Checkpoints(workdir, keep_last=1)
    checkpoints.newest()
    with monkeypatch.context() as patch:
        patch.setattr(
            manifest, 'seal', lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, 'full'))
        )
        checkpoints.save(toy(3), config=CONFIG)
        assert checkpoints.wait() == 2
    assert (
        len(caplog.records) == 1
        and 'Checkpoint 3 was not saved: No space left on device.' in caplog.text
    )
    assert checkpoints.newest() == 2 and listing(workdir) == ['1', '2']


def test_a_disk_that_fills_up_in_the_middle_and_a_folder_without_permission(tmp_path):
    code = """
import resource, time
c = Checkpoints(sys.argv[1], keep_last=1)
save = lambda step: (c.save(toy(step), config=CONFIG), c.wait())[1]
limit = lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
assert save(1) == 1
limit(2000)
assert save(2) == 1
limit(resource.RLIM_INFINITY)
assert save(3) == 3
until = time.time() + 60
# Orbax's threads may still be writing what failed.
while listing(sys.argv[1]) != ['3'] and time.time() < until:
    c.newest()
assert listing(sys.argv[1]) == ['3']
os.chmod(f'{sys.argv[1]}/checkpoints', 0o555)
os.chmod(sys.argv[1], 0o555)
if os.getuid() == 0:
    os.setuid(65534)
assert save(4) == 3
assert c.newest() == 3
assert same(c.restore(3, like(toy(3))), toy(3))
try:
    with lock.lock(sys.argv[1]):
        pass
except UserError as error:
    print(type(error).__name__, error)
"""
    path = tmp_path / 'run'
    # So that another user, as whom it goes on where it began as root, gets there.
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(0o755)
    said = python(code, path, **NO_CACHE)
    for folder in (path, path / 'checkpoints'):
        folder.chmod(0o755)
    assert (
        'Checkpoint 2 was not saved: File too large. Training goes on; checkpoint 1 is still good.'
        in said
    )
    assert 'Checkpoint 4 was not saved: Permission denied. Training goes on; ' in said
    assert 'checkpoint 3 is still good.' in said
    assert (
        'UserError' in said
        and 'cannot be written (Permission denied); choose another --workdir.' in said
    )
    assert (
        said.count('was not saved') == 2
    )  # threads of Orbax may print more of their own, now and then
