"""Checkpoints: exact, on any mesh, and honest about every fault we could think of."""

import errno
import json
import os
import pathlib
import shutil
import socket
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from toys import CONFIG, NO_CACHE, biggest, flip, like, listing, python, run_with, same, toy

from jit_jax.errors import UserError
from jit_jax.training import checkpoint, manifest, storage
from jit_jax.training.checkpoint import Checkpoints
from jit_jax.training.weights import read_weights

# Exact, whatever the mesh.


def test_roundtrip_is_bit_exact(workdir):
    checkpoints = Checkpoints(workdir, keep_last=2)
    assert checkpoints.newest() == 2
    assert same(checkpoints.restore(2, like(toy(2))), toy(2))
    assert json.loads((workdir / 'checkpoints/2/config/metadata').read_text()) == CONFIG
    assert checkpoints.config(2) == CONFIG


def test_a_checkpoint_of_an_older_version_restores(workdir):
    """It has one more item, `data`, which nobody reads; its manifest holds that to what was saved
    as well.
    """
    step = checkpoint.epath.Path(workdir) / 'checkpoints/2'
    (step / 'data').mkdir()
    (step / 'data/metadata').write_text('{"seed": 3, "batch_size": 4}')
    about = manifest.read(step)
    (step / 'manifest.json').unlink()
    manifest.seal(step, {name: about[name] for name in ('step', 'metrics', 'arrays')})
    assert 'data/metadata' in manifest.read(step)['files']
    checkpoints = Checkpoints(workdir, keep_last=2)
    assert checkpoints.newest() == 2
    assert same(checkpoints.restore(2, like(toy(2))), toy(2))


def test_a_fresh_folder_has_none(tmp_path):
    assert Checkpoints(tmp_path / 'new', keep_last=1).newest() is None
    assert not (tmp_path / 'new').exists()


def on(shape, tree):
    """Shardings of a state's arrays on a mesh of this shape."""
    devices = jax.devices()[: shape[0] * shape[1]]
    mesh = jax.make_mesh(shape, ('a', 'b'), axis_types=(AxisType.Auto,) * 2, devices=devices)
    return jax.tree.map(
        lambda x: NamedSharding(mesh, P('a', 'b') if x.shape == (24, 8) else P()), tree
    )


def test_another_mesh(tmp_path):
    state = toy(5)
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    checkpoints.save(jax.device_put(state, on((8, 1), state)), config=CONFIG)
    assert checkpoints.wait() == 5
    for shape in ((2, 4), (1, 8), (4, 1), (1, 1)):
        places = on(shape, state)
        got = checkpoints.restore(5, placed(state, places))
        assert same(got, state), shape
        assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, got, places)), shape
    assert same(jax.tree.map(jnp.asarray, read_weights(tmp_path, 'ema2')[1]), toy(5).ema['ema2'])


def placed(state, places):
    """What to restore: shapes and dtypes of a state, with shardings."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, places
    )


def test_what_does_not_fit_is_listed(workdir):
    checkpoints = Checkpoints(workdir, keep_last=2)
    state = like(toy(checkpoints.newest()))
    shaped = like(toy(2, size=32))
    with pytest.raises(
        ValueError, match=r'params/final/kernel is float32\[24, 8\] there and float32\[32, 8\] here'
    ):
        checkpoints.restore(2, shaped)
    half = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding), state.params
    )
    with pytest.raises(ValueError, match=r'float32\[8\] there and bfloat16\[8\] here'):
        checkpoints.restore(2, state.replace(params=half))
    with pytest.raises(ValueError, match='params/blocks/w is only there'):
        checkpoints.restore(2, state.replace(params={'final': state.params['final']}))
    with pytest.raises(ValueError, match='ema/ema3/blocks/w is only here'):
        checkpoints.restore(2, state.replace(ema=state.ema | {'ema3': state.params}))


def test_training_on_while_a_save_is_under_way(tmp_path, monkeypatch):
    """A save returns before anything is hashed, and what is written is the state of then, though
    its memory is reused.
    """
    checkpoints = run_with(tmp_path, 1, keep_last=1)
    gate, seal = threading.Event(), manifest.seal
    monkeypatch.setattr(manifest, 'seal', lambda *args: gate.wait(60) and seal(*args))
    step = jax.jit(lambda state: jax.tree.map(lambda x: x * 2 + 1, state), donate_argnums=0)
    big = toy(2).replace(params={'w': jnp.arange(4_000_000.0).reshape(2000, 2000)})
    checkpoints.save(big, config=CONFIG)
    for _ in range(5):
        big = step(big)
    jax.block_until_ready(big)
    assert '2' not in listing(tmp_path)
    gate.set()
    assert checkpoints.wait() == 2
    assert np.array_equal(
        read_weights(tmp_path, 'params')[1]['w'], np.arange(4_000_000.0).reshape(2000, 2000)
    )


def test_a_moved_run_resumes(workdir, toy_run):
    elsewhere = workdir.rename(workdir.with_name('elsewhere'))
    checkpoints = Checkpoints(elsewhere, keep_last=2)
    assert same(checkpoints.restore(checkpoints.newest(), like(toy(2))), toy(2))
    files = [file for file in elsewhere.rglob('*') if file.is_file()]
    assert files and not any(str(toy_run).encode() in file.read_bytes() for file in files)


TWO = """
import re
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
workdir, port, i = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(f'127.0.0.1:{port}', 2, i)
mesh = jax.make_mesh((4,), ('a',), axis_types=(AxisType.Auto,))

def split(spec):
    return jax.tree.map(
        lambda x: NamedSharding(mesh, spec if x.shape == (24, 8) else P()), toy(0)
    )

def make(step):
    return jax.jit(lambda: toy_like(step), out_shardings=split(P('a')))()

def held(workdir):
    with lock.lock(workdir):
        pass

def toy_like(step):
    return jax.tree.map(jnp.asarray, toy(step))

c = Checkpoints(workdir, keep_last=1)
with lock.lock(workdir):
    assert c.newest() is None
    for step in (1, 2):
        c.save(make(step), config=CONFIG)
    c.wait()
    multihost_utils = jax.experimental.multihost_utils
    multihost_utils.sync_global_devices('saved')
    if i == 0:
        shutil.copytree(f'{workdir}/checkpoints/2', f'{workdir}/checkpoints/7')
    multihost_utils.sync_global_devices('damaged')
    assert c.newest() == 2, c.newest()
    target = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), toy(0), split(P(None, 'a'))
    )
    got = multihost_utils.process_allgather(c.restore(2, target), tiled=True)
    assert same(jax.tree.map(jnp.asarray, got), toy(2))

    # What fails in one process ends in both, and nobody waits for the other.
    def broken(*_):
        raise OSError(5, 'broken')

    def refused(f, *args):
        try:
            f(*args)
        except UserError as error:
            return str(error)
        raise AssertionError(f'process {i} was not refused')

    def broken_in(process, place, name, f, *args):
        right = getattr(place, name)
        if i == process:
            setattr(place, name, broken)
        result = f(*args)
        setattr(place, name, right)
        return result

    said = broken_in(0, manifest, '_sha256', refused, c.newest)
    assert 'cannot be read: Input/output error' in said, said
    assert c.newest() == 2
    said = broken_in(1, manifest, 'read', refused, c.restore, 2, target)
    assert ('Process 1 of 2 has failed' if i == 0 else 'Input/output error') in said, said
    said = refused(held, f'{workdir}/.lock/no folder')
    assert 'cannot be written (Not a directory)' in said, said
    said = refused(processes.agree, 'config', i)
    assert 'The 2 processes of this run differ in their config' in said, said

    def saved(c, step):
        c.save(make(step), config=CONFIG)
        return c.wait()

    assert broken_in(0, manifest, 'seal', saved, c, 3) == 2
    fresh = Checkpoints(f'{workdir}/fresh', keep_last=1)
    said = broken_in(0, manifest, 'seal', refused, saved, fresh, 1)
    assert 'first checkpoint' in said and 'could not be saved (Input/output error)' in said, said
    assert saved(fresh, 1) == 1
"""


def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    failed = []

    def one(i):
        try:
            python(TWO, tmp_path, port, i, XLA_FLAGS='--xla_force_host_platform_device_count=2')
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed[0]
    assert listing(tmp_path) == ['2', '3.partial', 'damaged-7']


# What stays.


def test_keep_last_keep_every_and_best_at_once(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_every=4, best=('fid', 'min'))
    fid = {1: 9.0, 2: 8.0, 3: 5.0, 4: float('nan'), 5: 7.0, 6: 6.0, 7: 6.5, 8: 5.5, 9: None}
    for step, value in fid.items():
        checkpoints.save(
            toy(step), config=CONFIG, metrics=None if value is None else {'fid': value}
        )
        assert checkpoints.wait() == step
        assert str(step) in listing(tmp_path)
    assert listing(tmp_path) == ['3', '4', '8', '9']


def test_the_last_good_step_goes_only_after_the_next_is_complete(tmp_path, monkeypatch):
    checkpoints = run_with(tmp_path, 1, keep_last=1)
    gate, seal = threading.Event(), manifest.seal
    monkeypatch.setattr(manifest, 'seal', lambda *args: gate.wait(60) and seal(*args))
    checkpoints.save(toy(2), config=CONFIG)
    assert '1' in listing(tmp_path)
    gate.set()
    checkpoints.wait()
    assert listing(tmp_path) == ['2']


def test_a_complete_step_is_not_saved_again(workdir):
    before = (workdir / 'checkpoints/2').stat()
    checkpoints = Checkpoints(workdir, keep_last=1)
    checkpoints.newest()
    checkpoints.save(toy(2), config=CONFIG)
    assert checkpoints.wait() == 2 and (workdir / 'checkpoints/2').stat() == before


@pytest.mark.parametrize(
    'keep',
    [
        {'keep_last': 0},
        {'keep_last': 1, 'keep_every': -1},
        {'keep_last': 1, 'best': ('fid', 'low')},
    ],
)
def test_rules_that_make_no_sense(tmp_path, keep):
    with pytest.raises(ValueError, match='keep_last and keep_every are at least 1'):
        Checkpoints(tmp_path, **keep)


def half_copied(step: pathlib.Path):
    for name in ('params', 'config'):
        shutil.rmtree(step / name)


FAULTS = {
    'a flipped bit': (lambda step: flip(biggest(step / 'opt'), 99), 'is not what was saved'),
    'a truncated file': (
        lambda step: os.truncate(biggest(step / 'ema'), 10),
        'has 10 bytes instead of',
    ),
    'a longer file': (
        lambda step: (step / 'config/metadata').open('a').write(' '),
        'bytes instead of',
    ),
    'a missing file': (
        lambda step: (step / 'params/_METADATA').unlink(),
        'params/_METADATA is missing',
    ),
    'an empty folder': (lambda step: [shutil.rmtree(step), step.mkdir()], 'has no manifest.json'),
    'a half-copied step': (half_copied, 'is missing'),
    'no manifest': (lambda step: (step / 'manifest.json').unlink(), 'has no manifest.json'),
    'an empty manifest': (
        lambda step: os.truncate(step / 'manifest.json', 0),
        'manifest.json is not what was saved',
    ),
    'another manifest': (
        lambda step: (step / 'manifest.json').write_text('[1]'),
        'manifest.json is not what was saved',
    ),
    'another step': (
        lambda step: [shutil.rmtree(step), shutil.copytree(step.parent / '1', step)],
        'it holds step 1',
    ),
}


def files(folder):
    return sorted(file.relative_to(folder) for file in folder.rglob('*'))


@pytest.mark.parametrize('fault', FAULTS)
def test_damage_is_named_and_set_aside(workdir, caplog, fault):
    damage, sentence = FAULTS[fault]
    damage(workdir / 'checkpoints/2')
    with pytest.raises(ValueError, match='cannot be restored: '):
        Checkpoints(workdir, keep_last=2).restore(2, like(toy(2)))
    before = files(workdir / 'checkpoints/2')
    checkpoints = Checkpoints(workdir, keep_last=2)
    assert checkpoints.newest() == 1
    assert same(checkpoints.restore(1, like(toy(1))), toy(1))
    assert (
        len(caplog.records) == 1
        and sentence in caplog.text
        and 'checkpoints/2 is damaged' in caplog.text
    )
    assert listing(workdir) == ['1', 'damaged-2']
    assert files(workdir / 'checkpoints/damaged-2') == before


def test_damage_again_and_again(workdir, caplog):
    """The same step, trained again and damaged again, gets another name."""
    for again in range(2):
        half_copied(workdir / 'checkpoints/2')
        checkpoints = Checkpoints(workdir, keep_last=2)
        assert checkpoints.newest() == 1
        checkpoints.save(toy(2), config=CONFIG)
        assert checkpoints.wait() == 2
    assert listing(workdir) == ['1', '2', 'damaged-2', 'damaged-2-2']


def test_a_fresh_start_after_total_damage_is_refused(workdir, caplog):
    for step in '12':
        half_copied(workdir / 'checkpoints' / step)
    for _ in range(2):
        with pytest.raises(
            UserError,
            match='only damaged steps left; repair them, or, to start over, remove .*run or',
        ):
            Checkpoints(workdir, keep_last=2).newest()
        assert listing(workdir) == ['damaged-1', 'damaged-2'] and len(caplog.records) == 2


def test_steps_whose_manifests_are_gone_had_been_complete(workdir):
    """A step gets its name after its manifest is written; so somebody has lost it, and a fresh
    start would lose more.
    """
    for step in '12':
        (workdir / f'checkpoints/{step}/manifest.json').unlink()
    for _ in range(2):
        with pytest.raises(UserError, match='only damaged steps left.*to start over, remove'):
            Checkpoints(workdir, keep_last=2).newest()
    assert listing(workdir) == ['damaged-1', 'damaged-2']


def test_an_empty_folder_with_a_number_is_no_loss(tmp_path):
    (tmp_path / 'checkpoints/3').mkdir(parents=True)
    assert Checkpoints(tmp_path, keep_last=2).newest() is None


def test_what_cannot_be_read_is_not_damaged(workdir, monkeypatch):
    def broken(file):
        raise OSError(errno.EIO, 'broken', str(file))

    monkeypatch.setattr(manifest, '_sha256', broken)
    with pytest.raises(UserError, match='checkpoints cannot be read: Input/output error'):
        Checkpoints(workdir, keep_last=2).newest()
    assert listing(workdir) == ['1', '2']


def test_strangers_are_left_alone(workdir):
    for name in ('007', 'notes.txt', 'best', '12.old'):
        (workdir / 'checkpoints' / name).mkdir()
    assert Checkpoints(workdir, keep_last=1).newest() == 2
    assert listing(workdir) == ['007', '1', '12.old', '2', 'best', 'notes.txt']


# Storage that fails.


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
    for parent in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(
            0o755
        )  # so that another user, as whom it goes on where it began as root, gets there
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


def test_an_object_store(tmp_path, monkeypatch, caplog):
    """Where nothing can be renamed, a step is written in place and the manifest decides."""
    for module in (checkpoint, storage):
        monkeypatch.setattr(module, 'remote', lambda path: True)
    checkpoints = run_with(tmp_path, 1, 2, 3, keep_last=2)
    assert listing(tmp_path) == ['2', '3']
    (tmp_path / 'checkpoints/3/manifest.json').unlink()
    assert checkpoints.newest() == 2
    assert same(checkpoints.restore(2, like(toy(2))), toy(2))
    assert listing(tmp_path) == ['2', 'damaged-3']


def test_the_docs_are_one_page():
    page = pathlib.Path(__file__).parents[2] / 'docs' / 'checkpoints.md'
    assert len(page.read_text().splitlines()) <= 80
