"""What test files share: eight fake devices, a cache of compiled programs, and a tiny model whose
outputs mean something.
"""

import gc
import json
import os
import shutil
import sys
import zlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for `configs`, which is not installed

# Before JAX is imported, and for the processes that tests start. `pytest --cache-clear` empties the
# cache.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # cuda: for tests/test_gpu.py
ON_CPU = os.environ['JAX_PLATFORMS'] == 'cpu'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.pytest_cache/d/xla'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')
# One line of source for each operation: to write down ten took a fifteenth of a step's compilation.
os.environ.setdefault('JAX_TRACEBACK_IN_LOCATIONS_LIMIT', '1')
# Products of NumPy, scikit-learn and torch by one thread each, as every core has a test of its own:
# two wait for each other, and the digits' classifier took four times as much of the CPU.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
os.environ.setdefault('OMP_NUM_THREADS', '1')
# XLA's older way to make CPU kernels: a train step of a tiny model compiles in a third of the time.
# Later versions have no such way, and stop at a flag that they do not know.
XLA_FLAGS = ''
if ON_CPU and version('jaxlib').startswith('0.10.'):
    XLA_FLAGS = '--xla_cpu_use_fusion_emitters=false'
os.environ['XLA_FLAGS'] = XLA_FLAGS

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import settings

from jit_jax.hardware import hlo
from jit_jax.model.jit import JiT
from jit_jax.model.sizes import size

# For this process only: not in the environment, where the processes that tests start would find it.
jax.config.update('jax_num_cpu_devices', 8)
if ON_CPU:  # LLVM's costs more time than it saves on tiny models
    jax.config.update('jax_disable_most_optimizations', True)

settings.register_profile('suite', deadline=None, derandomize=True, max_examples=50)
settings.load_profile('suite')


def pytest_collection_finish():
    """What is imported by now stays: looking through it for garbage took a tenth of all time."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(trylast=True)  # when `-m` has left out what does not run
def pytest_collection_modifyitems(items):
    """Every worker begins with tests that take long, so that none still has one at the end."""
    long = [item for item in items if item.get_closest_marker('long')]
    others = [item for item in items if not item.get_closest_marker('long')]
    workers = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', '1'))
    in_order = []
    for worker in range(workers):  # to each, xdist gives an equal part of what is left
        mine = long[worker::workers]
        count = max(0, (len(items) - len(in_order)) // (workers - worker) - len(mine))
        in_order += mine + others[:count]
        others = others[count:]
    items[:] = in_order


CLASSES, TOKEN_WIDTH, REFERENCES = 5, 6, 2
TINY = 'depth=2,width=32,heads=2,bottleneck=8,class_tokens=4,class_start=1,dropout=0.0'


@pytest.fixture(scope='session')
def tiny():
    """Changes → a model of 32×32 images in 2×2 patches; the same tree whatever changes in how it
    computes.
    """
    sizes = size(TINY) | dict(image_size=32, num_classes=CLASSES, token_width=TOKEN_WIDTH)
    sizes['reference_images'] = REFERENCES
    return lambda **changes: JiT(**sizes | changes)


@pytest.fixture(scope='session')
def fresh(tiny):
    """The tiny model's parameters at their start, as numpy arrays."""
    model = tiny()
    return jax.tree.map(
        np.asarray,
        jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.zeros(1))['params'],
    )


def perturb(params, scale: float = 0.15):
    """Away from the start, where gates and the last layer are zero and nothing that happens inside
    would show.
    """

    def move(path, leaf):
        random = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
        return (leaf + scale * random.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(move, params)


@pytest.fixture(scope='session')
def params(fresh):
    """The tiny model's parameters as after some training."""
    return perturb(fresh)


@pytest.fixture(scope='session')
def run():
    """(model, params, z, t, **conditioning) → x̂ and the gradients of Σ w·x̂, w random, in params, z,
    t, cond, references and embeddings of tokens.
    """

    @cache
    def program(model):
        def loss(arrays, rest):
            arrays = dict(arrays)
            params = {'params': arrays.pop('params')}
            x = model.apply(params, **arrays, **rest)
            return jnp.sum(x * jax.random.normal(jax.random.key(1), x.shape)), x

        return jax.jit(jax.value_and_grad(loss, has_aux=True))

    def both(model, params, z, t, **conditioning):
        arrays = dict(params=params, z=z, t=t)
        for name in ('cond', 'cond_tokens', 'references'):
            leaves = jax.tree.leaves(conditioning.get(name))
            if leaves and leaves[0].dtype == np.float32:
                arrays[name] = conditioning.pop(name)
        (_, x), gradients = program(model)(arrays, conditioning)
        return np.asarray(x), jax.tree.map(np.asarray, gradients)

    return both


@pytest.fixture(scope='session')
def conditioning():
    """What models are told, by name, in batches of five rows; z and t besides.

    mixed: an 8×8 grid; rows without anything, with half of it, with all of it, with a label, with
    half and a label. several: the same beside seven tokens and references of 4×4 and 2×3 patches;
    rows without anything, with some tokens and references, with all of it, with tokens and a label,
    with some of everything. full: a 16×16 grid with 0, 64, 255, 256 and about half of its patches
    live. whole: a 4×8 grid, a reference, tokens and a label, all live and without flags.
    """
    random = np.random.default_rng(0)

    def image(h, w):
        return random.uniform(-1, 1, (5, h, w, 3)).astype(np.float32)

    half, one = random.random((5, 64)) < 0.5, np.ones((5, 64), bool)
    some = np.stack([0 * one[0], half[1], one[2], 0 * one[3], half[4]]).astype(bool)
    order = random.permutation(256)
    live = np.stack([order < 0, order < 64, order < 255, order < 256, order % 2 == 0])
    label = np.array([0, 1, 2, 3, 4], np.int32)
    mixed = dict(
        cond=image(16, 16),
        cond_valid=some,
        label=label,
        label_valid=np.array([0, 0, 0, 1, 1], bool),
    )
    full, whole = dict(cond=image(32, 32), cond_valid=live), dict(cond=image(8, 16), label=label)
    z = random.standard_normal((5, 32, 32, 3)).astype(np.float32)
    tokens = random.standard_normal((5, 7, TOKEN_WIDTH)).astype(np.float32)
    known = np.arange(7) < np.array([0, 3, 7, 7, 5])[:, None]
    without_patches = np.array([1, 1, 0, 1, 0], bool)[:, None]
    references = (image(8, 8), image(4, 6))
    recalled = random.random((5, 22)) < np.array([0, 0.5, 1, 0, 0.5])[:, None]
    beside = dict(references=references, references_valid=recalled)
    beside |= dict(cond_valid=some & ~without_patches, cond_tokens=tokens, cond_tokens_valid=known)
    return {
        'z': z,
        't': np.array([0.1, 0.3, 0.5, 0.7, 0.96], np.float32),
        'uncond': {},
        'mixed': mixed,
        'several': mixed | beside,
        'full': full,
        'whole': whole | dict(cond_tokens=tokens, references=references[:1]),
    }


@pytest.fixture(scope='session')
def toy_run(tmp_path_factory):
    """A run folder with checkpoints 1 and 2 of `toys`, to be copied."""
    from toys import run_with

    folder = tmp_path_factory.mktemp('toy') / 'run'
    run_with(folder, 1, 2).close()
    return folder


@pytest.fixture
def workdir(toy_run, tmp_path):
    """A copy of `toy_run`."""
    return Path(shutil.copytree(toy_run, tmp_path / 'run'))


@pytest.fixture(scope='session')
def env(tmp_path_factory):
    """One CPU device, whatever the machine; the digits written once for all tests."""
    data = tmp_path_factory.mktemp('tfds')
    env = os.environ | {
        'TFDS_DATA_DIR': str(data),
        'JAX_NUM_CPU_DEVICES': '1',
        'PYTHONUNBUFFERED': '1',
    }
    # Compiles in a fraction of the time; equal runs stay equal.
    return env | {'JAX_DISABLE_MOST_OPTIMIZATIONS': '1', 'XLA_FLAGS': XLA_FLAGS}


def use_devices(patch, count: int) -> None:
    """Lets JAX show so many of this process's devices."""
    shown = jax.devices()[:count]
    for name in ('devices', 'local_devices'):
        patch.setattr(jax, name, lambda *_, **__: shown)
    for name in ('device_count', 'local_device_count'):
        patch.setattr(jax, name, lambda *_, **__: count)


@pytest.fixture(scope='module')
def one_device():
    """Runs of this file are of one device; a state on eight takes five times as long to save."""
    with pytest.MonkeyPatch.context() as patch:
        use_devices(patch, 1)
        yield


@pytest.fixture(scope='session')
def short_run(env):
    """The first command's run, shortened, in this process and on one device: its programs are
    compiled once for all tests.
    """
    from shell import config_of

    from jit_jax.recipe import build

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TFDS_DATA_DIR', env['TFDS_DATA_DIR'])
        with pytest.MonkeyPatch.context() as one:
            use_devices(one, 1)
            run = build.run(config_of())
        yield run


@pytest.fixture(scope='session')
def finished(env, tmp_path_factory):
    """A folder in which the first command has run to its end, and what it said."""
    from shell import train, train_once

    cwd = tmp_path_factory.mktemp('finished')
    if 'PYTEST_XDIST_WORKER' in os.environ:
        return cwd, train_once(tmp_path_factory.getbasetemp().parent / 'finished', cwd, env)
    return cwd, train(cwd, env)


@pytest.fixture(scope='session')
def program():
    """A name in tests/hardware/programs → that optimised program, parsed."""

    def parsed(name: str) -> hlo.Program:
        return hlo.parse((ROOT / f'tests/hardware/programs/{name}.hlo').read_text())

    return parsed


@pytest.fixture(scope='session')
def holes(env):
    """A model that fills in holes of digits with weights that mean nothing, and its images.

    (model, params, train, test).
    """
    from shell import TINY as variant

    from configs import cond
    from jit_jax import trained
    from jit_jax.recipe import build

    os.environ['TFDS_DATA_DIR'] = env['TFDS_DATA_DIR']
    config = cond.get_config()
    config.model.variant, config.sample.steps = variant, 2
    train, test = build.source(config, 'train'), build.source(config, 'test')
    config = config.to_dict() | {'classes': list(train.classes)}
    net = build.network(config)
    params = jax.jit(net.init)(jax.random.key(0), np.zeros((1, 32, 32, 3)), np.zeros(1))['params']
    model = trained.Model(net, build.diffusion(config), build.settings(config), config, 0)
    return model, perturb(jax.device_get(params), 0.05), train, test


@pytest.fixture(scope='session')
def inception_tensors():
    """The state dict that the goldens were made with."""
    from measuring import GOLDENS, recreate

    shapes = json.loads((GOLDENS / 'inception_shapes.json').read_text())
    return {name: recreate(name, shape) for name, shape in shapes.items()}


@pytest.fixture(scope='session')
def inception_file(inception_tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'inception.npz'
    np.savez(path, **inception_tensors)
    return str(path)


CLASSIFIERS = {}  # by the number of training images: that of the digits is the same each time


@pytest.fixture
def one_classifier(monkeypatch):
    """The classifier and the judges are trained once for all tests."""
    from jit_jax.evaluation import classifier, judges

    def once(make):
        def known(images, labels):
            key = make.__name__, len(images)
            if key not in CLASSIFIERS:
                CLASSIFIERS[key] = make(images, labels)
            return CLASSIFIERS[key]

        return known

    monkeypatch.setattr(classifier, 'Classifier', once(classifier.Classifier))
    monkeypatch.setattr(judges, 'Judges', once(judges.Judges))


@pytest.fixture
def call(env, monkeypatch, capsys):
    """A command in this process and on its eight devices: words → what it prints."""
    from jit_jax.__main__ import main
    from jit_jax.commands import environment

    monkeypatch.setenv('TFDS_DATA_DIR', env['TFDS_DATA_DIR'])
    monkeypatch.setenv('JAX_NUM_CPU_DEVICES', '8')
    monkeypatch.setattr(environment, 'join_processes', lambda args: None)

    def words(*words) -> str:
        main(list(words))
        return capsys.readouterr().out

    return words


@pytest.fixture
def command(monkeypatch, capsys):
    """words → (exit code, what was printed, what was said as an error) of `jit-jax words`, here.

    In this process, which is much quicker than one of its own, and has its devices already.
    """
    from jit_jax.__main__ import main
    from jit_jax.commands import environment

    monkeypatch.setenv('JAX_NUM_CPU_DEVICES', '8')
    monkeypatch.setattr(environment, 'join_processes', lambda args: None)

    def call(*words: str) -> tuple[int, str, str]:
        code = 0
        try:
            main(list(words))
        except SystemExit as end:
            code = end.code
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


@pytest.fixture
def in_process(command, env, monkeypatch):
    """As `shell.run`, in this process: a folder and words, or those of `python train.py` → what was
    said.

    code: the exit code that it must end with. devices: how many of this process's it sees.
    """

    def call(cwd, *words: str, code: int = 0, devices: int = 1) -> str:
        name, *flags = words
        with monkeypatch.context() as patch:
            use_devices(patch, devices)
            patch.chdir(cwd)
            patch.setenv('TFDS_DATA_DIR', env['TFDS_DATA_DIR'])
            found, out, err = command('train' if name.endswith('train.py') else name, *flags)
        assert found == code, out + err
        return out + err

    return call
