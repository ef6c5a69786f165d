"""Checkpoints and kill -9: at the worst moments, and at random ones."""

import pytest
from toys import NO_CACHE, like, listing, python, same, toy

from jit_jax.training.checkpoint import Checkpoints

# A parent that has not touched JAX's devices forks a child for each kill.

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

def die_showing(self, to):
    die() if self.suffix == '.partial' else rename(self, to)

def die_pruning(self, to):
    die() if self.name.isdecimal() else rename(self, to)

WORST = {  # what is broken so that it kills
    'writing': (checkpoint.ocp.AsyncCheckpointer, 'close', die),
    'sealing': (manifest, 'seal', die),
    'hashing': (manifest, '_sha256', die),
    'showing': (path, 'rename', die_showing),
    'pruning': (path, 'rename', die_pruning),
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
    c.save(toy(3), config=CONFIG)
    c.wait()

def goes_on(workdir, out):
    'Goes on from the newest step, which must be whole; says what it finds and what it saves.'
    c = Checkpoints(workdir, keep_last=1)
    step = c.newest() or 0
    assert not step or same(c.restore(step, like(toy(step))), toy(step))
    os.write(out, f'found {step}\\n'.encode())
    while True:
        step += 1
        c.save(toy(step), config=CONFIG)
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
def test_kills(toy_run, tmp_path, kills):
    """At the worst moments and at random ones; each start finds the last step that was saved, or a
    newer one, whole.
    """
    python(KILLS, toy_run, tmp_path, kills, **NO_CACHE)
    for moment in ('writing', 'sealing', 'hashing', 'showing', 'pruning', 'removing'):
        checkpoints = Checkpoints(tmp_path / moment, keep_last=1)
        newest = checkpoints.newest()
        assert newest == (3 if moment in ('pruning', 'removing') else 2), moment
        assert same(checkpoints.restore(newest, like(toy(newest))), toy(newest))
        assert all(name.isdecimal() for name in listing(tmp_path / moment)), (
            'swept, and nothing set aside'
        )
