"""Checkpoints: exact, on any mesh, and honest about every fault we could think of."""

import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jit_jax.commands import export
from jit_jax.training import checkpoint, manifest
from jit_jax.training.checkpoint import Checkpoints, read_weights, write_weights
from jit_jax.training.state import TrainState

CONFIG = {'model': {'variant': 'S', 'image_size': 32, 'null': 'mask'}, 'steps': 9}
DATA = {'seed': 3, 'batch_size': 4, 'source': 'digits'}
NO_CACHE = {
    'JAX_ENABLE_COMPILATION_CACHE': 'false'
}  # where a process could leave half an entry in JAX's cache of programs


def toy(step: int, *, size: int = 24) -> TrainState:
    """A state whose every array says which step it is from; its optimiser has counters, masks and empty states."""
    rng = np.random.default_rng(step)
    tree = lambda: {
        'final': {
            'kernel': jnp.asarray(rng.normal(size=(size, 8)), jnp.float32),
            'bias': jnp.full(8, step, jnp.float32),
        },
        'blocks': {'w': jnp.asarray(rng.normal(size=(2, 8, 16)), jnp.float32)},
    }
    params, mask = tree(), {'final': {'kernel': True, 'bias': False}, 'blocks': {'w': True}}
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(1e-3, mask=mask, mu_dtype=jnp.bfloat16)
    )
    opt = jax.tree.map(lambda x: x + jnp.asarray(step, x.dtype), optimizer.init(params))
    return TrainState(
        jnp.int32(step), params, {'ema1': tree(), 'ema2': tree()}, opt, jnp.float32(step / 7)
    )


def like(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def same(a, b) -> bool:
    """Same structure, dtypes and bits."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    bits = all(
        x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs
    )
    return bits and jax.tree.structure(a) == jax.tree.structure(b)


def run_with(workdir, *steps: int, keep_last: int = 9, **keep) -> Checkpoints:
    checkpoints = Checkpoints(workdir, keep_last=keep_last, **keep)
    for step in steps:
        checkpoints.save(toy(step), data=DATA, config=CONFIG)
    assert checkpoints.wait() == (steps[-1] if steps else None)
    return checkpoints


def listing(folder) -> list[str]:
    return sorted(os.listdir(pathlib.Path(folder) / 'checkpoints'))


def python(code: str, *args, **env) -> str:
    """Runs a program of its own with what this file defines; returns what it printed."""
    code = (
        f'import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\nfrom test_checkpoint import *\n'
        + code
    )
    env = os.environ | {'JAX_PLATFORMS': 'cpu'} | env
    done = subprocess.run(
        [sys.executable, '-c', code, *map(str, args)],
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope='module')
def template(tmp_path_factory):
    """A run with steps 1 and 2, to be copied."""
    workdir = tmp_path_factory.mktemp('template') / 'run'
    run_with(workdir, 1, 2).close()
    return workdir


@pytest.fixture
def workdir(template, tmp_path):
    return pathlib.Path(shutil.copytree(template, tmp_path / 'run'))


# Exact, whatever the mesh.


def test_roundtrip_is_bit_exact(workdir):
    checkpoints = Checkpoints(workdir, keep_last=2)
    assert checkpoints.newest() == 2
    assert same(checkpoints.restore(2, like(toy(2))), toy(2))
    assert json.loads((workdir / 'checkpoints/2/config/metadata').read_text()) == CONFIG
    assert json.loads((workdir / 'checkpoints/2/data/metadata').read_text()) == DATA


def test_a_fresh_folder_has_none(tmp_path):
    assert Checkpoints(tmp_path / 'new', keep_last=1).newest() is None
    assert not (tmp_path / 'new').exists()


def test_another_mesh(tmp_path):
    code = """
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

def on(shape, tree):
    mesh = jax.make_mesh(shape, ('a', 'b'), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[: shape[0] * shape[1]])
    return jax.tree.map(lambda x: NamedSharding(mesh, P('a', 'b') if x.shape == (24, 8) else P()), tree)

state = toy(5)
c = Checkpoints(sys.argv[1], keep_last=1)
c.save(jax.device_put(state, on((8, 1), state)), data=DATA, config=CONFIG)
assert c.wait() == 5
for shape in ((2, 4), (1, 8), (4, 1), (1, 1)):
    places = on(shape, state)
    target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, places)
    got = c.restore(5, target)
    assert same(got, state), shape
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, got, places)), shape
"""
    python(code, tmp_path, XLA_FLAGS='--xla_force_host_platform_device_count=8')
    assert same(jax.tree.map(jnp.asarray, read_weights(tmp_path, 'ema2')[1]), toy(5).ema['ema2'])


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
    """A save returns before anything is hashed, and what is written is the state of then, though its memory is reused."""
    gate, seal = threading.Event(), manifest.seal
    monkeypatch.setattr(manifest, 'seal', lambda *args: gate.wait(60) and seal(*args))
    step = jax.jit(lambda state: jax.tree.map(lambda x: x * 2 + 1, state), donate_argnums=0)
    big = toy(1).replace(params={'w': jnp.arange(4_000_000.0).reshape(2000, 2000)})
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    checkpoints.save(big, data=DATA, config=CONFIG)
    for _ in range(5):
        big = step(big)
    jax.block_until_ready(big)
    assert '1' not in listing(tmp_path)
    gate.set()
    assert checkpoints.wait() == 1
    assert np.array_equal(
        read_weights(tmp_path, 'params')[1]['w'], np.arange(4_000_000.0).reshape(2000, 2000)
    )


def test_a_moved_run_resumes(workdir, template):
    elsewhere = workdir.rename(workdir.with_name('elsewhere'))
    checkpoints = Checkpoints(elsewhere, keep_last=2)
    assert same(checkpoints.restore(checkpoints.newest(), like(toy(2))), toy(2))
    files = [file for file in elsewhere.rglob('*') if file.is_file()]
    assert files and not any(str(template).encode() in file.read_bytes() for file in files)


TWO = """
import re
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
workdir, port, i = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(f'127.0.0.1:{port}', 2, i)
mesh = jax.make_mesh((4,), ('a',), axis_types=(AxisType.Auto,))
split = lambda spec: jax.tree.map(lambda x: NamedSharding(mesh, spec if x.shape == (24, 8) else P()), toy(0))
make = lambda step: jax.jit(lambda: toy_like(step), out_shardings=split(P('a')))()

def toy_like(step):
    return jax.tree.map(jnp.asarray, toy(step))

c = Checkpoints(workdir, keep_last=1)
with checkpoint.lock(workdir):
    assert c.newest() is None
    for step in (1, 2):
        c.save(make(step), data=DATA, config=CONFIG)
    c.wait()
    multihost_utils = jax.experimental.multihost_utils
    multihost_utils.sync_global_devices('saved')
    if i == 0:
        shutil.copytree(f'{workdir}/checkpoints/2', f'{workdir}/checkpoints/7')
    multihost_utils.sync_global_devices('damaged')
    assert c.newest() == 2, c.newest()
    target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), toy(0), split(P(None, 'a')))
    got = multihost_utils.process_allgather(c.restore(2, target), tiled=True)
    assert same(jax.tree.map(jnp.asarray, got), toy(2))
"""


def test_two_processes(tmp_path):
    import socket

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
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not failed, failed[0]
    assert listing(tmp_path) == ['2', 'damaged-7']


# What stays.


def test_keep_last_keep_every_and_best_at_once(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_every=4, best=('fid', 'min'))
    fid = {1: 9.0, 2: 8.0, 3: 5.0, 4: float('nan'), 5: 7.0, 6: 6.0, 7: 6.5, 8: 5.5, 9: None}
    for step, value in fid.items():
        checkpoints.save(
            toy(step), data=DATA, config=CONFIG, metrics=None if value is None else {'fid': value}
        )
        assert checkpoints.wait() == step
        assert str(step) in listing(tmp_path)
    assert listing(tmp_path) == ['3', '4', '8', '9']


def test_the_last_good_step_goes_only_after_the_next_is_complete(tmp_path, monkeypatch):
    checkpoints = run_with(tmp_path, 1, keep_last=1)
    gate, seal = threading.Event(), manifest.seal
    monkeypatch.setattr(manifest, 'seal', lambda *args: gate.wait(60) and seal(*args))
    checkpoints.save(toy(2), data=DATA, config=CONFIG)
    assert '1' in listing(tmp_path)
    gate.set()
    checkpoints.wait()
    assert listing(tmp_path) == ['2']


def test_a_complete_step_is_not_saved_again(workdir):
    before = (workdir / 'checkpoints/2').stat()
    checkpoints = Checkpoints(workdir, keep_last=1)
    checkpoints.newest()
    checkpoints.save(toy(2), data=DATA, config=CONFIG)
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


# Damage.


def flip(file: pathlib.Path, bit: int):
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_one_flipped_bit_anywhere_is_found(template, data):
    step = checkpoint.epath.Path(template) / 'checkpoints/2'
    manifest.verify(step)
    files = sorted(
        file for file in pathlib.Path(step).rglob('*') if file.is_file() and file.stat().st_size
    )
    file = data.draw(st.sampled_from(files))
    bit = data.draw(st.integers(0, file.stat().st_size * 8 - 1))
    flip(file, bit)
    try:
        with pytest.raises(manifest.Damaged, match=file.name):
            manifest.verify(step)
    finally:
        flip(file, bit)


def biggest(step: pathlib.Path) -> pathlib.Path:
    return max(
        (file for file in step.rglob('*') if file.is_file()), key=lambda file: file.stat().st_size
    )


def half_copied(step: pathlib.Path):
    for name in ('params', 'data', 'config'):
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


@pytest.mark.parametrize('fault', FAULTS)
def test_damage_is_named_and_set_aside(workdir, caplog, fault):
    damage, sentence = FAULTS[fault]
    damage(workdir / 'checkpoints/2')
    with pytest.raises(ValueError, match='cannot be restored: '):
        Checkpoints(workdir, keep_last=2).restore(2, like(toy(2)))
    files = lambda name: sorted(
        file.relative_to(workdir / name) for file in (workdir / name).rglob('*')
    )
    before = files('checkpoints/2')
    checkpoints = Checkpoints(workdir, keep_last=2)
    assert checkpoints.newest() == 1
    assert same(checkpoints.restore(1, like(toy(1))), toy(1))
    assert (
        len(caplog.records) == 1
        and sentence in caplog.text
        and 'checkpoints/2 is damaged' in caplog.text
    )
    assert listing(workdir) == ['1', 'damaged-2']
    assert files('checkpoints/damaged-2') == before


def test_damage_again_and_again(workdir, caplog):
    """The same step, trained again and damaged again, gets another name."""
    for again in range(2):
        half_copied(workdir / 'checkpoints/2')
        checkpoints = Checkpoints(workdir, keep_last=2)
        assert checkpoints.newest() == 1
        checkpoints.save(toy(2), data=DATA, config=CONFIG)
        assert checkpoints.wait() == 2
    assert listing(workdir) == ['1', '2', 'damaged-2', 'damaged-2-2']


def test_a_fresh_start_after_total_damage_is_refused(workdir, caplog):
    for step in '12':
        half_copied(workdir / 'checkpoints' / step)
    for _ in range(2):
        with pytest.raises(
            ValueError, match='checkpoints has only damaged steps left; repair or remove them'
        ):
            Checkpoints(workdir, keep_last=2).newest()
        assert listing(workdir) == ['damaged-1', 'damaged-2'] and len(caplog.records) == 2
    for step in '12':  # of what never was complete, nothing is lost
        (workdir / 'checkpoints' / f'damaged-{step}' / 'manifest.json').unlink()
    assert Checkpoints(workdir, keep_last=2).newest() is None


def test_what_cannot_be_read_is_not_damaged(workdir, monkeypatch):
    def broken(file):
        raise OSError(errno.EIO, 'broken', str(file))

    monkeypatch.setattr(manifest, '_sha256', broken)
    with pytest.raises(OSError, match='broken'):
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
        checkpoints.save(toy(3), data=DATA, config=CONFIG)
        assert checkpoints.wait() == 2
    assert len(caplog.records) == 1
    assert (
        'Checkpoint 3 was not saved: it takes 0.0 MB and 0.0 MB are free. Training goes on; checkpoint 2'
        in caplog.text
    )
    assert listing(workdir) == ['1', '2']
    checkpoints.save(toy(3), data=DATA, config=CONFIG)
    assert checkpoints.wait() == 3 and listing(workdir) == ['3']


def test_a_disk_that_fills_up_at_the_manifest(workdir, monkeypatch, caplog):
    checkpoints = Checkpoints(workdir, keep_last=1)
    checkpoints.newest()
    with monkeypatch.context() as patch:
        patch.setattr(
            manifest, 'seal', lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, 'full'))
        )
        checkpoints.save(toy(3), data=DATA, config=CONFIG)
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
save = lambda step: (c.save(toy(step), data=DATA, config=CONFIG), c.wait())[1]
limit = lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
assert save(1) == 1
limit(2000)
assert save(2) == 1
limit(resource.RLIM_INFINITY)
assert save(3) == 3
until = time.time() + 60
while listing(sys.argv[1]) != ['3'] and time.time() < until:  # Orbax's threads may still be writing what failed
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
    with checkpoint.lock(sys.argv[1]):
        pass
except OSError as error:
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
    assert (
        'Checkpoint 4 was not saved: Permission denied. Training goes on; checkpoint 3 is still good.'
        in said
    )
    assert (
        'PermissionError' in said
        and 'cannot be written (Permission denied); choose another --workdir.' in said
    )
    assert (
        said.count('was not saved') == 2
    )  # threads of Orbax may print more of their own, now and then


# Kills. A parent that has not touched JAX's devices forks a child for each kill.

KILLS = """
import random, time
template, folder, kills = sys.argv[1], sys.argv[2], int(sys.argv[3])
path = type(checkpoint.epath.Path())
rename = path.rename

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def half_removed(self):
    shutil.rmtree(self / 'opt')
    os.unlink(self / 'manifest.json')
    die()

WORST = {  # what is broken so that it kills
    'writing': (checkpoint.ocp.AsyncCheckpointer, 'close', die),
    'sealing': (manifest, 'seal', die),
    'hashing': (manifest, '_sha256', die),
    'showing': (path, 'rename', lambda self, to: die() if self.suffix == '.partial' else rename(self, to)),
    'pruning': (path, 'rename', lambda self, to: die() if self.name.isdecimal() else rename(self, to)),
    'removing': (path, 'rmtree', half_removed),
}

def child(work, *args):
    pid = os.fork()
    if not pid:
        try:
            work(*args)
        except BaseException as error:
            print('child:', repr(error), flush=True)
        os._exit(1)
    return pid

def at_worst(workdir, place, name, broken):
    setattr(place, name, broken)
    c = Checkpoints(workdir, keep_last=1)
    c.save(toy(3), data=DATA, config=CONFIG)
    c.wait()

def goes_on(workdir, out):
    'Goes on from the newest step, which must be whole; says what it finds and each step that it has saved.'
    c = Checkpoints(workdir, keep_last=1)
    step = c.newest() or 0
    assert not step or same(c.restore(step, like(toy(step))), toy(step))
    os.write(out, f'found {step}\\n'.encode())
    while True:
        step += 1
        c.save(toy(step), data=DATA, config=CONFIG)
        c.wait()
        os.write(out, f'saved {step}\\n'.encode())

for moment, broken in WORST.items():
    workdir = shutil.copytree(template, f'{folder}/{moment}')
    _, status = os.waitpid(child(at_worst, workdir, *broken), 0)
    assert os.WIFSIGNALED(status), moment

saved = 0
random.seed(kills)
for kill in range(kills):
    read, out = os.pipe()
    pid = child(goes_on, f'{folder}/random', out)
    os.close(out)
    said = os.fdopen(read)
    found = said.readline().split()
    assert found and int(found[1]) >= saved, (found, saved)
    for _ in range(random.randrange(3)):
        said.readline()
    time.sleep(random.random() * 0.3)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    saved = max([int(found[1]), *(int(line.split()[1]) for line in said)])
    assert not list(pathlib.Path(folder).glob('random/checkpoints/damaged*'))
assert saved
"""


@pytest.mark.parametrize('kills', [4, pytest.param(25, marks=pytest.mark.slow)])
def test_kills(template, tmp_path, kills):
    """At the worst moments and at random ones; each start finds the last step that was saved, or a newer one, whole."""
    python(KILLS, template, tmp_path, kills, **NO_CACHE)
    for moment in ('writing', 'sealing', 'hashing', 'showing', 'pruning', 'removing'):
        checkpoints = Checkpoints(tmp_path / moment, keep_last=1)
        newest = checkpoints.newest()
        assert newest == (3 if moment in ('pruning', 'removing') else 2), moment
        assert same(checkpoints.restore(newest, like(toy(newest))), toy(newest))
        assert all(name.isdecimal() for name in listing(tmp_path / moment)), (
            'swept, and nothing set aside'
        )


@pytest.mark.filterwarnings('ignore:os.fork')  # the child touches nothing of JAX's
def test_the_lock(tmp_path):
    workdir = tmp_path / 'made' / 'by the lock'
    read, out = os.pipe()
    pid = os.fork()
    if not pid:
        with checkpoint.lock(workdir):
            os.write(out, b'held')
            signal.pause()
    try:
        assert os.read(read, 4) == b'held'
        with pytest.raises(
            BlockingIOError,
            match=rf'is in use by another run \(process {pid} on .*\); stop it or choose',
        ):
            with checkpoint.lock(workdir):
                pass
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    for _ in range(2):
        with checkpoint.lock(workdir):
            with pytest.raises(BlockingIOError, match=f'process {os.getpid()}'):
                with checkpoint.lock(workdir):
                    pass


def test_places_without_locks(tmp_path, monkeypatch, caplog):
    def flock(file, how):
        raise OSError(errno.ENOLCK, 'no locks')

    monkeypatch.setattr(checkpoint.fcntl, 'flock', flock)
    with checkpoint.lock(tmp_path), checkpoint.lock(tmp_path), checkpoint.lock('gs://bucket/run'):
        assert 'cannot be locked (No locks available): start one run' in caplog.text


def test_an_object_store(tmp_path, monkeypatch, caplog):
    """Where nothing can be renamed, a step is written in place and the manifest decides."""
    monkeypatch.setattr(checkpoint, 'remote', lambda path: True)
    checkpoints = run_with(tmp_path, 1, 2, 3, keep_last=2)
    assert listing(tmp_path) == ['2', '3']
    (tmp_path / 'checkpoints/3/manifest.json').unlink()
    assert checkpoints.newest() == 2
    assert same(checkpoints.restore(2, like(toy(2))), toy(2))
    assert listing(tmp_path) == ['2', 'damaged-3']


# Weights, in and out.


def test_weights_of_a_run_and_of_a_step(workdir):
    for path, step in ((workdir, 2), (workdir / 'checkpoints', 2), (workdir / 'checkpoints/1', 1)):
        for which, tree in {
            'params': toy(step).params,
            **toy(step).ema,
            None: toy(step).ema['ema1'],
        }.items():
            config, got, at = read_weights(path, which)
            assert (config, at) == (CONFIG, step)
            assert same(got, jax.tree.map(np.asarray, tree))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    assert all(
        x.sharding == device for x in jax.tree.leaves(read_weights(workdir, sharding=device)[1])
    )


def test_weights_do_not_need_the_optimiser_and_reading_never_writes(workdir):
    for step in '12':
        shutil.rmtree(workdir / 'checkpoints' / step / 'opt')
    flip(biggest(workdir / 'checkpoints/2/ema'), 77)
    before = sorted(workdir.rglob('*'))
    assert read_weights(workdir, 'params')[2] == 2
    assert read_weights(workdir, 'ema1')[2] == 1, 'the newest step with these weights intact'
    assert sorted(workdir.rglob('*')) == before
    with pytest.raises(
        ValueError,
        match='checkpoints/2 holds no intact checkpoint; 2: ema/.* is not what was saved',
    ):
        read_weights(workdir / 'checkpoints/2', 'ema1')


def test_wrong_paths_and_names(workdir):
    with pytest.raises(FileNotFoundError, match=r'rum does not exist; .* holds run\.'):
        read_weights(workdir.with_name('rum'))
    with pytest.raises(FileNotFoundError, match='holds no intact checkpoint; give a run folder'):
        read_weights(workdir.parent)
    with pytest.raises(ValueError, match="has no weights 'ema3'; it has ema1, ema2, params"):
        read_weights(workdir, 'ema3')
    (workdir / 'other.safetensors').write_bytes(b'hello')
    with pytest.raises(ValueError, match='is damaged, or was not written by jit_jax.export'):
        read_weights(workdir / 'other.safetensors')


@pytest.mark.parametrize('name', ['out.safetensors', 'folder'])
@pytest.mark.parametrize('which', ['params', 'ema2'])
def test_exports(workdir, tmp_path, name, which):
    out = tmp_path / 'deep' / name
    said = export.export(str(workdir), which, str(out))
    assert which in said and 'step 2' in said
    config, got, step = read_weights(out)
    assert (config, step) == (CONFIG, 2)
    assert same(got, read_weights(workdir, which)[1])
    with pytest.raises(ValueError, match=f"has no weights 'ema1'; it has {which}"):
        read_weights(out, 'ema1')
    assert not list(out.parent.glob('*.partial'))
    file = out if out.is_file() else biggest(out)
    for bit in range(0, file.stat().st_size * 8, file.stat().st_size * 8 // 20):
        flip(file, bit)
        with pytest.raises(ValueError, match='damaged|intact'):
            read_weights(out)
        flip(file, bit)


def test_exported_arrays_are_plain_safetensors(workdir, tmp_path):
    from safetensors.numpy import load_file

    export.export(str(workdir), 'ema1', str(tmp_path / 'a.safetensors'))
    assert set(load_file(tmp_path / 'a.safetensors')) == {'final/kernel', 'final/bias', 'blocks/w'}


def test_write_weights_is_all_or_nothing(tmp_path, monkeypatch):
    tree = jax.tree.map(np.asarray, toy(0).params)
    with monkeypatch.context() as patch:
        patch.setattr(manifest, 'seal', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_weights(tmp_path / 'run', CONFIG, tree, {})
    assert not (tmp_path / 'run').exists()
    write_weights(tmp_path / 'run', CONFIG, tree, {'ema1': tree, 'ema2': tree}, step=7)
    assert (
        os.listdir(tmp_path) == ['run']
        and json.loads((tmp_path / 'run/config.json').read_text()) == CONFIG
    )
    assert read_weights(tmp_path / 'run', 'ema2')[2] == 7
    with pytest.raises(FileExistsError, match='run is in the way'):
        write_weights(tmp_path / 'run', CONFIG, tree, {})


def test_the_export_command(workdir, tmp_path):
    command = [sys.executable, '-m', 'jit_jax', 'export', f'--out={tmp_path}/x.safetensors']
    start = lambda *more: subprocess.Popen(
        [*command, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    runs = [start(f'--workdir={workdir}'), start(f'--workdir={workdir}x')]
    said = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 1], said
    assert said[0][0].startswith('Wrote ema1 of') and (tmp_path / 'x.safetensors').exists()
    assert 'does not exist' in said[1][1] and [error.count('\n') for _, error in said] == [0, 1], (
        said
    )


# Architectures.


def test_compatible():
    spelled = 'depth=12,width=384,heads=6,bottleneck=64,class_tokens=32,class_start=4,dropout=0.0'
    other = {'model': CONFIG['model'] | {'variant': spelled}, 'steps': 1}
    assert checkpoint.compatible(CONFIG, other) == []
    other['model'] = other['model'] | {'variant': 'L', 'null': 'token', 'channels': 1}
    assert checkpoint.compatible(CONFIG, other) == [
        'model.depth is 12 there and 24 here',
        'model.width is 384 there and 1024 here',
        'model.heads is 6 there and 16 here',
        'model.bottleneck is 64 there and 128 here',
        'model.class_start is 4 there and 8 here',
        'model.null is mask there and token here',
        'model.channels is only here',
    ]


def test_the_docs_are_one_page():
    page = pathlib.Path(__file__).parents[2] / 'docs' / 'checkpoints.md'
    assert len(page.read_text().splitlines()) <= 70
