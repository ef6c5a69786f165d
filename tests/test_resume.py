"""The ways into a run, and what is refused instead of a fresh start."""

import dataclasses
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from shell import config_of
from toys import CONFIG

from configs import uncond
from jit_jax import loop, resume
from jit_jax.errors import UserError
from jit_jax.recipe import build
from jit_jax.training.checkpoint import Checkpoints
from jit_jax.training.config_differences import changed_keys
from jit_jax.training.weights import read_weights

pytestmark = pytest.mark.usefixtures('one_device')


def way_in(run, workdir):
    """The sentence that a start says, or would."""
    checkpoints = Checkpoints(workdir, keep_last=1)
    state, how = resume.agreed_state(run, str(workdir), checkpoints)
    return int(state.step), how


@pytest.fixture(scope='module')
def stopped(short_run, tmp_path_factory):
    """A run that was stopped after step 4, to be copied."""
    folder = tmp_path_factory.mktemp('stopped') / 'run'
    loop.train(short_run, str(folder), follow=stop_after_4)
    return folder


def stop_after_4(step):
    if step == 4:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def folder(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / 'run')


def test_processes_agree_wherever_they_were_started(short_run, tmp_path, monkeypatch):
    """A relative data.path is in each process's own folder; what is found must be equal."""
    config = short_run.config.copy_and_resolve_references()
    config.data.path = 'photos'
    run = dataclasses.replace(short_run, config=config)
    said, records = [], []
    for name in 'ab':
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        said.append(resume.in_common(run))
        records.append(run.record['data']['path'])
    assert said[0] == said[1] and records[0] != records[1]
    fewer = dataclasses.replace(run, train=run.test)
    assert resume.in_common(fewer) != said[0]
    config.seed = 9
    assert resume.in_common(run) != said[0]


def test_architectures_that_share_weights():
    spelled = 'depth=12,width=384,heads=6,bottleneck=64,class_tokens=32,class_start=4,dropout=0.0'
    other = {**CONFIG, 'model': CONFIG['model'] | {'variant': spelled}, 'steps': 1}
    assert resume.architecture_differences(CONFIG, other) == []
    other['model'] |= {'token_width': 0, 'vocabulary': 0}  # older runs have neither key
    assert resume.architecture_differences(CONFIG, other) == []
    assert resume.architecture_differences(other, CONFIG) == []
    other['model'] |= {'variant': 'L', 'null': 'token', 'channels': 1, 'token_width': 8}
    assert resume.architecture_differences(CONFIG, other) == [
        'model.depth is 12 there and 24 here',
        'model.width is 384 there and 1024 here',
        'model.heads is 6 there and 16 here',
        'model.bottleneck is 64 there and 128 here',
        'model.class_start is 4 there and 8 here',
        'model.token_width is 0 there and 8 here',
        'model.null is mask there and token here',
        'model.channels is only here',
    ]


def test_a_network_that_says_something_else_is_another_one():
    other = {**CONFIG, 'diffusion': {'noise_scale': 2.0, 'predict': 'v', 'loss': 'x'}}
    lines = resume.architecture_differences(CONFIG, other)  # of an older run, which did not say
    assert lines == ['diffusion.predict is x there and v here']


def test_keys_that_changed():
    a = {'steps': 3, 'mesh': (1, 2), 'data': {'path': 'x', 'flip': True}, 'old': 1}
    b = {'steps': 4, 'mesh': [1, 2], 'data': {'path': 'y', 'flip': True}, 'new': None}
    assert changed_keys(a, b) == ['data.path', 'new', 'old', 'steps']


# A folder whose checkpoints are gone.


def test_checkpoints_that_are_gone_are_no_fresh_start(short_run, folder):
    lines = (folder / 'metrics.jsonl').read_bytes()
    shutil.rmtree(folder / 'checkpoints')
    for _ in range(2):
        with pytest.raises(
            UserError,
            match=r'metrics up to step 4 and no checkpoint: .*to start over, remove .*run or',
        ):
            way_in(short_run, folder)
    (folder / 'checkpoints').mkdir()
    with (folder / 'metrics.jsonl').open('a') as file:  # beyond the first checkpoint of the run
        file.write('{"step": 6, "loss": 1}\n')
    with pytest.raises(UserError, match='metrics up to step 6 and no checkpoint'):
        way_in(short_run, folder)
    assert (folder / 'metrics.jsonl').read_bytes().startswith(lines)


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_fresh(short_run, folder):
    shutil.rmtree(folder / 'checkpoints/4')
    with (folder / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 9, "lo')  # a torn line
    assert way_in(short_run, folder) == (0, f'Starting fresh in {folder}.')


def test_manifests_that_are_gone_are_no_fresh_start(short_run, folder):
    (folder / 'checkpoints/4/manifest.json').unlink()
    with pytest.raises(UserError, match='only damaged steps left.*to start over, remove .*run or'):
        way_in(short_run, folder)


# Other images, or another condition.

OTHER_TASKS = [  # changes of the config, and words of the sentence; none: it goes on
    ({'data.path': 'B'}, r"with config.data.path='', not '.*B': .*--config.init_from=.*moved=true"),
    ({'data.kind': 'tfds', 'data.name': 'x'}, "data.kind='digits', not 'tfds' and config.data.nam"),
    ({'condition.kind': 'inpaint'}, "config.condition.kind='none', not 'inpaint': .* weights.$"),
    (
        {'condition.kind': 'inpaint', 'data.path': 'B', 'data.moved': True},
        "with config.condition.kind='none', not 'inpaint': give the same flags as before, or anoth",
    ),
    ({'data.path': 'B', 'data.moved': True}, ''),
]


@pytest.mark.parametrize('changes, sentence', OTHER_TASKS)
def test_a_folder_holds_one_task(short_run, folder, changes, sentence):
    config = config_of()
    config.update_from_flattened_dict(changes)
    run = dataclasses.replace(short_run, config=config)
    if sentence:
        with pytest.raises(UserError, match=sentence):
            way_in(run, folder)
        return
    how = f'Resuming {folder} at step 4, with data.path changed.'
    assert way_in(run, folder) == (4, how)
    assert not run.record['data']['moved']  # the next start is asked again


# From another run's weights.


@pytest.mark.parametrize('which', ['', 'params'])
def test_a_start_from_the_weights_that_are_named(folder, tmp_path, which):
    config = config_of()
    config.init_from, config.init_ema = str(folder), which
    run = build.run(config)
    with Checkpoints(tmp_path / 'new', keep_last=1) as checkpoints:
        state, how = resume.starting_state(run, str(tmp_path / 'new'), checkpoints)
    assert f'Starting from {which or "ema1"} of {folder} at step 4' in how
    _, there, _ = read_weights(folder, which or 'ema1')
    assert int(state.step) == 0
    for got in (state.params, *state.ema.values()):
        jax.tree.map(np.testing.assert_array_equal, got, there)


def test_a_start_for_few_steps_from_weights_that_know_no_end(folder, tmp_path):
    config = uncond.in_few_steps(config_of())
    config.init_from = str(folder)
    run = build.run(config)
    with Checkpoints(tmp_path / 'new', keep_last=1) as checkpoints:
        state, _ = resume.starting_state(run, str(tmp_path / 'new'), checkpoints)
    _, there, _ = read_weights(folder)
    for got in (state.params, *state.ema.values()):
        got = dict(got)
        assert not np.any(got.pop('end_out')['kernel']) and np.any(got.pop('end_in')['kernel'])
        jax.tree.map(np.testing.assert_array_equal, got, there)


# config.json.


@pytest.mark.parametrize('state', ['missing', 'damaged'])
def test_without_config_json_the_copy_in_the_checkpoint_serves(short_run, folder, state):
    if state == 'missing':
        (folder / 'config.json').unlink()
    else:
        (folder / 'config.json').write_text('{"model": {"vari')
    step, how = way_in(short_run, folder)
    assert step == 4
    assert how.startswith(f'Resuming {folder} at step 4. ')
    assert f'config.json is {state}: the copy in checkpoint 4 was used.' in how
    resume.write_config(short_run, str(folder))
    assert json.loads((folder / 'config.json').read_text()) == json.loads(
        json.dumps(short_run.record)
    )
    assert way_in(short_run, folder) == (4, f'Resuming {folder} at step 4.')


# A state of other arrays.


@pytest.mark.parametrize(
    'key, value, there',
    [
        ('optimizer.muon_rms', 0.2, 0.0),
        ('optimizer.mu_dtype', 'bfloat16', 'float32'),
        ('ema.decays', (0.99,), (0.999, 0.99)),
    ],
)
def test_another_optimiser_or_other_averages_name_the_key(folder, key, value, there):
    config = config_of()
    config.update_from_flattened_dict({key: value, 'optimizer.base_lr': 0.2})
    with pytest.raises(UserError) as error:
        way_in(build.run(config), folder)
    said = str(error.value)
    assert f'{folder} cannot go on with --config.{key}={value} (' in said
    assert str(list(there) if isinstance(there, tuple) else there) in said
    assert f'--config.init_from={folder}' in said
    assert 'base_lr' not in said and 'float32[' not in said and '\n' not in said


def test_what_keeps_the_arrays_may_change(folder):
    config = config_of()
    config.optimizer.base_lr, config.ema.decays = 0.2, (0.99, 0.9)
    step, how = way_in(build.run(config), folder)
    assert (step, how.partition(', with ')[2]) == (4, 'ema.decays, optimizer.base_lr changed.')


def test_a_size_without_class_tokens_is_saved_and_restored(tmp_path):
    config = config_of()
    config.model.variant = config.model.variant.replace('class_tokens=4', 'class_tokens=0')
    run = build.run(config)
    state = run.init(jax.random.key(0))
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        checkpoints.save(state, config=run.record)
        assert checkpoints.newest() == 0
        back = checkpoints.restore(0, run.like)
    assert 'class_positions' not in back.params and 'classes' in back.params
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(back), strict=True):
        assert np.array_equal(a, b)


def test_the_checksum_knows_every_bit():
    tree = {'a': np.ones((2, 3), np.float32), 'b': np.zeros(4, np.float32)}
    swapped = {'a': np.ones((2, 3), np.float32), 'b': np.array([0, 0, 0, 1e-45], np.float32)}
    assert int(resume.checksum(tree)) == int(resume.checksum(jax.tree.map(np.copy, tree)))
    assert int(resume.checksum(tree)) != int(resume.checksum(swapped))
