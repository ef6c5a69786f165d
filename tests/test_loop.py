"""A run from top to bottom, in this process: what comes after a step, stops, and what goes wrong on
the way.
"""

import contextlib
import dataclasses
import errno
import itertools
import os
import signal
import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shell import FIRST, assert_same_run, config_of, lines, weights
from toys import CONFIG, listing, toy

from jit_jax import data, loop
from jit_jax.commands import replay
from jit_jax.errors import UserError
from jit_jax.evaluation.periodic import PeriodicEvaluation
from jit_jax.evaluation.preview import Preview
from jit_jax.model.sharding import to_device
from jit_jax.output import clock
from jit_jax.output.progress import times_left
from jit_jax.training import manifest
from jit_jax.training.checkpoint import Checkpoints


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """The page at the end of a run has tests of its own."""
    monkeypatch.setattr(loop.page, 'try_write', lambda *_: '')


@pytest.fixture(scope='module')
def straight(short_run, tmp_path_factory):
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp('straight') / 'run'
    loop.train(short_run, str(folder))
    return folder


@pytest.fixture
def events(monkeypatch):
    """What the loop does after steps, in order: ('save', 4), ('draw', 6) …; nothing is drawn or
    measured.
    """
    done = []
    save = Checkpoints.save

    def note_save(self, state, **kwargs):
        done.append(('save', int(state.step)))
        save(self, state, **kwargs)

    monkeypatch.setattr(Checkpoints, 'save', note_save)
    monkeypatch.setattr(
        Preview, 'draw', lambda self, state, step, writer: done.append(('draw', step))
    )
    monkeypatch.setattr(
        loop.Training, 'evaluate', lambda self, state, step: done.append(('evaluate', step))
    )
    monkeypatch.setattr(PeriodicEvaluation, 'due', lambda self, step: step in (6, 8, 12))
    monkeypatch.setattr(Preview, 'due', lambda self, step: step in (6, 8, 12))
    return done


def batches(start: int, stop: int, **changes) -> list[np.ndarray]:
    """The images of batches number start … stop − 1 of a run with changes to its config."""
    config = config_of()
    config.update_from_flattened_dict(changes)
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
    some = SimpleNamespace(config=config, train=data.from_arrays(images))
    with contextlib.closing(loop.open_batches(some, start)) as opened:
        return [batch['image'] for batch in itertools.islice(opened, stop - start)]


def test_batches_are_those_that_the_config_says_from_a_step_on():
    whole = batches(0, 6)
    assert len({image.tobytes() for images in whole[:5] for image in images}) == 40
    np.testing.assert_array_equal(batches(4, 6), whole[4:])
    assert not np.array_equal(batches(0, 6, seed=1), whole)
    assert len(batches(0, 1, batch_size=16)[0]) == 16
    flipped = batches(0, 6, **{'data.flip': True})
    as_it_is, mirrored = np.array(flipped) == whole, np.array(flipped) == np.flip(whole, 3)
    rows = as_it_is.all((2, 3, 4)), mirrored.all((2, 3, 4))
    assert rows[0].any() and rows[1].any() and (rows[0] | rows[1]).all()


def test_what_comes_between_steps_is_counted_as_it_comes(short_run, monkeypatch, tmp_path):
    """Each pause of a run has a name that tells how often it comes, and comes that often."""
    config = short_run.config.copy_and_resolve_references()
    config.steps, config.checkpoint.every, config.sample.every = 7, 3, 4
    config.evaluate.every, config.evaluate.denoise_every = 5, 2
    often = loop.pauses(config)
    came = {name: 0 for name in often}
    pause = clock.Clock.pause

    def counted(self, name):
        came[name] += 1
        return pause(self, name)

    monkeypatch.setattr(clock.Clock, 'pause', counted)
    monkeypatch.setattr(Preview, 'draw', lambda *_: None)
    for part in ('_make_denoising', '_make_measure'):
        monkeypatch.setattr(PeriodicEvaluation, part, lambda self: lambda *_: {})
    loop.train(dataclasses.replace(short_run, config=config), str(tmp_path / 'run'))
    assert came == {name: times_left(every, 1, 7) for name, every in often.items()}
    assert came == {'save': 3, 'draw': 2, 'measure': 2, 'denoise': 4}


def test_a_run_is_its_steps_by_hand(short_run, events, tmp_path):
    """Its first weights, its batches and its noise are those of config.seed."""
    config = short_run.config.copy_and_resolve_references()
    config.seed, config.steps = 5, 3
    run = dataclasses.replace(short_run, config=config)
    loop.train(run, str(tmp_path / 'run'))
    key = jax.random.key(5)
    state = run.init(key)
    with contextlib.closing(loop.open_batches(run, 0)) as opened:
        for batch in itertools.islice(opened, 3):
            state, _ = run.step(state, to_device(batch, run.mesh), key)
    for which, tree in (('params', state.params), ('ema1', state.ema['ema1'])):
        found, step = weights(tmp_path / 'run', which)
        assert step == 3
        for got, expected in zip(found, jax.tree.leaves(tree), strict=True):
            np.testing.assert_array_equal(got, expected)


def test_the_best_checkpoint_is_that_of_the_lowest_loss(tmp_path):
    config = config_of()
    config.checkpoint.keep_last, config.checkpoint.keep_best = 1, True
    with loop.open_checkpoints(SimpleNamespace(config=config), str(tmp_path)) as checkpoints:
        for step, loss in ((1, 0.3), (2, 0.1), (3, 0.7), (4, 0.2)):
            checkpoints.save(toy(step), config=CONFIG, metrics={'loss': loss})
            checkpoints.wait()
    assert listing(tmp_path) == ['2', '4']


def test_save_then_preview_then_evaluate(short_run, events, tmp_path):
    loop.train(short_run, str(tmp_path / 'run'))
    assert events == [
        ('save', 4),
        ('draw', 6),
        ('evaluate', 6),
        ('save', 8),
        ('draw', 8),
        ('evaluate', 8),
        ('save', 12),
        ('draw', 12),
        ('evaluate', 12),
    ]


# Stops.


def kill(*signals):
    for kind in signals:
        os.kill(os.getpid(), kind)


@pytest.mark.parametrize('during', ['drawing', 'evaluating', 'saving'])
def test_a_stop_saves_and_skips_what_can_wait(
    short_run, straight, events, monkeypatch, tmp_path, capsys, during
):
    """SIGTERM comes with seconds of grace. What is under way ends at once, and going on equals
    never having stopped.
    """
    save = Checkpoints.save

    def interrupted(*_):
        kill(signal.SIGTERM)
        for _ in range(100):
            time.sleep(0.1)
        events.append('went on')

    def stopped_save(self, state, **kwargs):
        if int(state.step) == 8:
            kill(signal.SIGTERM)
        save(self, state, **kwargs)

    place = {
        'drawing': (Preview, 'draw', interrupted),
        'evaluating': (PeriodicEvaluation, '__call__', interrupted),
        'saving': (Checkpoints, 'save', stopped_save),
    }
    folder, step = tmp_path / 'run', 8 if during == 'saving' else 6
    with monkeypatch.context() as patch:
        if during == 'evaluating':
            patch.setattr(loop.Training, 'evaluate', EVALUATE)
        patch.setattr(*place[during])
        loop.train(short_run, str(folder))
    assert 'went on' not in events
    assert f'Stopped by SIGTERM after step {step}: saved.' in capsys.readouterr().out
    assert max(map(int, listing(folder))) == step
    skipped = [event for event in events if event[0] != 'save' and event[1] >= step]
    assert skipped == ([('draw', 6)] if during == 'evaluating' else [])
    loop.train(short_run, str(folder))
    assert f'Resuming {folder} at step {step}.' in capsys.readouterr().out
    assert_same_run(straight, folder)


EVALUATE = loop.Training.evaluate


def test_a_second_ctrl_c_ends_at_once_and_what_was_saved_is_good(
    short_run, monkeypatch, tmp_path, request
):
    """The first waits for the save under way, here a stuck one; the second abandons it."""
    gate, seal, stuck = threading.Event(), manifest.seal, threading.Event()

    def slow_seal(folder, about):
        if about['step'] == 8:
            stuck.set()
            gate.wait(300)
        seal(folder, about)

    def press_twice():
        stuck.wait(300)
        for _ in range(2):
            time.sleep(0.5)
            kill(signal.SIGINT)

    monkeypatch.setattr(manifest, 'seal', slow_seal)
    folder = tmp_path / 'run'
    # A shell that starts pytest in the background has it ignore Ctrl-C.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, inherited))
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    threading.Thread(target=press_twice, daemon=True).start()
    began = time.time()
    with pytest.raises(KeyboardInterrupt):
        loop.train(short_run, str(folder))
    assert time.time() - began < 30
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    gate.set()
    until = time.time() + 60  # `join` is of no use: interrupted once, it takes a thread for ended
    while any(thread.name == 'save-8' for thread in threading.enumerate()):
        assert time.time() < until
        time.sleep(0.01)
    assert listing(folder) == ['4', '8.partial'], 'nothing appears after the lock is gone'
    assert Checkpoints(folder, keep_last=1).newest() == 4


# What goes wrong.


def test_out_of_memory_while_drawing_loses_no_step(short_run, monkeypatch, tmp_path):
    def draw(*_):
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 1 byte.')

    monkeypatch.setattr(Preview, 'draw', draw)
    folder = tmp_path / 'run'
    short_run.config.checkpoint.every = 6
    try:
        with pytest.raises(
            UserError, match='out of memory drawing 4 samples; .*--config.sample.num'
        ):
            loop.train(short_run, str(folder))
    finally:
        short_run.config.checkpoint.every = 4
    assert listing(folder) == ['6']


def test_a_run_that_cannot_save_its_first_checkpoint_stops(short_run, monkeypatch, tmp_path):
    """And once it has one, storage that fails holds nothing up, but the end of the run does not
    call it done.
    """

    def full(*_):
        raise OSError(errno.ENOSPC, 'full')

    folder, seal = tmp_path / 'run', manifest.seal
    with monkeypatch.context() as patch:
        patch.setattr(manifest, 'seal', full)
        with pytest.raises(UserError, match='The first checkpoint, .*/4, could not be saved'):
            loop.train(short_run, str(folder))
    assert [line['step'] for line in lines(folder)] == [2, 4], 'it stops there'
    with monkeypatch.context() as patch:
        patch.setattr(
            manifest, 'seal', lambda to, about: seal(to, about) if about['step'] < 8 else full()
        )
        with pytest.raises(UserError, match='Step 12 could not be saved; .* goes on from step 4'):
            loop.train(short_run, str(folder))
    assert [line['step'] for line in lines(folder)] == [2, 4, 6, 8, 10, 12]
    assert listing(folder)[-1] == '4'


# Not a number


def test_the_first_operation_that_breaks_is_found():
    def f(params, x):
        hidden = jax.nn.silu(x @ params['a'])
        small = jnp.where(
            x > 0, jnp.log(x), 0
        ).sum()  # −∞ on the way, as in a mask: not what is looked for
        return (hidden * params['b']).sum() / (hidden.sum() - hidden.sum()) + small

    params, x = {'a': jnp.ones((2, 2)), 'b': jnp.ones(2)}, jnp.array([[1.0, 0.0]])
    found = replay.first_broken(f, params, x)
    assert found.startswith('div in') and 'test_loop.py' in found
    assert replay.first_broken(
        jax.value_and_grad(lambda p, x: f(p, x) * 0 + 1), params, x
    ).startswith('div in')
    assert replay.first_broken(lambda p, x: jax.nn.silu(x @ p['a']), params, x) is None
    assert replay.first_broken(jax.grad(lambda x: jnp.sqrt(x).sum()), jnp.zeros(2)).startswith(
        'div in'
    )  # backward alone


def test_a_loss_that_is_no_number_stops_saves_a_bundle_and_can_be_replayed(in_process, tmp_path):
    wild = ['--config.optimizer.base_lr=1e22', '--config.optimizer.warmup=6']
    said = in_process(tmp_path, *FIRST, *wild, '--config.checkpoint.every=1', code=1)
    folder = tmp_path / 'runs/uncond'
    (path,) = folder.glob('nan-*.npz')
    step = int(path.stem.split('-')[1])
    replay_it = f'jit-jax replay --bundle=runs/uncond/{path.name}'
    assert f'At step {step} the loss is' in said and replay_it in said
    bundle = np.load(path)
    assert (bundle['step'], bundle['seed'], bundle['checkpoint']) == (step, 0, step - 1)
    assert bundle['batch/image'].shape == (8, 32, 32, 3)
    # What is saved is from before.
    assert max(int(p.name) for p in (folder / 'checkpoints').iterdir()) == step - 1
    assert all(np.isfinite(list(line.values())).all() for line in lines(folder))
    replayed = in_process(tmp_path, 'replay', f'--bundle=runs/uncond/{path.name}')
    assert f'Step {step}: the first NaN or infinity comes from' in replayed and '.py:' in replayed
    # A device that erred once: the same step is finite when it is computed again.
    np.savez(folder / 'nan-2.npz', **(dict(bundle) | {'step': 2, 'checkpoint': 1}))
    replayed = in_process(tmp_path, 'replay', '--bundle=runs/uncond/nan-2.npz')
    assert 'Step 2 is finite when repeated' in replayed
