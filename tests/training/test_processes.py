"""Two processes of one run: both save and restore, and what fails in one ends in both."""

import socket
import threading

from toys import listing, python

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

# One process ends alone: the other does not wait for it for good.
if i == 1:
    processes.leave(UserError('too many images are broken'))
try:
    multihost_utils.sync_global_devices('left')
except Exception as error:
    print('the other has left', type(error).__name__)
    os._exit(1)
"""


def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    failed, said = [], {}
    two_devices = '--xla_force_host_platform_device_count=2'

    def one(i):
        try:
            said[i] = python(TWO, tmp_path, port, i, exit_code=1, XLA_FLAGS=two_devices)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed[0]
    assert 'error: Process 1 of 2 ends: too many images are broken' in said[1]
    assert 'the other has left' in said[0]
    assert listing(tmp_path) == ['2', '3.partial', 'damaged-7']
