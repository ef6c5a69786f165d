"""What a user does, as a user does it: the README's commands in subprocesses, shortened."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY = 'depth=2,width=32,heads=2,bottleneck=8,class_tokens=4,class_start=1,dropout=0.1'
SHORT = [
    f'--config.model.variant={TINY}', '--config.steps=12', '--config.log_every=2', '--config.checkpoint.every=4',
    '--config.sample.every=6', '--config.sample.num=4', '--config.sample.steps=2', '--config.optimizer.muon_rms=0',
]  # fmt: skip


@pytest.fixture(scope='session')
def env(tmp_path_factory):
    """One CPU device, whatever the machine; the digits written once for all tests."""
    data = tmp_path_factory.mktemp('tfds')
    env = os.environ | {'TFDS_DATA_DIR': str(data), 'JAX_NUM_CPU_DEVICES': '1', 'PYTHONUNBUFFERED': '1'}
    env |= {'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}  # compiles in half the time; equal runs stay equal
    env.pop('XLA_FLAGS', None)
    return env


def run(args, env, cwd, code=0):
    done = subprocess.run([sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def train(cwd, env, config='uncond', *flags, code=0):
    path = os.path.join(ROOT, 'configs', config.replace(':', '.py:') if ':' in config else f'{config}.py')
    return run([os.path.join(ROOT, 'train.py'), f'--config={path}', *SHORT, *flags], env, cwd, code)


def lines(folder):
    with open(os.path.join(folder, 'metrics.jsonl')) as file:
        return [json.loads(line) for line in file]


def timeless(folder):
    clocks = ('images_per_second', 'data_wait')
    return [{name: v for name, v in line.items() if name not in clocks} for line in lines(folder)]


@pytest.fixture(scope='session')
def finished(env, tmp_path_factory):
    """A folder in which the first command has run to its end."""
    cwd = tmp_path_factory.mktemp('finished')
    return cwd, train(cwd, env)


def test_first_command_leaves_the_promised_folder(finished):
    cwd, said = finished
    folder = cwd / 'runs' / 'uncond'
    assert [line['step'] for line in lines(folder)] == [2, 4, 6, 8, 10, 12]
    assert {'loss', 'learning_rate', 'images_per_second', 'grad_norm', 'data_wait'} <= lines(folder)[0].keys()
    assert json.loads((folder / 'config.json').read_text())['steps'] == 12
    assert {'0000006.png', '0000012.png', 'latest.png'} <= set(os.listdir(folder / 'samples'))
    assert {'8', '12'} <= set(os.listdir(folder / 'checkpoints'))
    assert any('tfevents' in name for name in os.listdir(folder / 'tensorboard'))
    assert 'Starting fresh' in said and 'Done: step 12' in said


def test_done_says_so_and_touches_nothing(finished, env):
    cwd, _ = finished
    before = (cwd / 'runs/uncond/metrics.jsonl').read_bytes()
    assert 'is done: step 12 of 12' in train(cwd, env)
    assert (cwd / 'runs/uncond/metrics.jsonl').read_bytes() == before


def weights(folder, which):
    import jax

    from jit_jax import checkpoint

    _, tree, step = checkpoint.read_weights(str(folder), which)
    return [np.asarray(x) for x in jax.tree.leaves(tree)], step


def assert_same_run(a, b):
    for which in ('params', 'ema1', 'ema2'):
        (x, step_x), (y, step_y) = weights(a, which), weights(b, which)
        assert step_x == step_y
        assert all(np.array_equal(p, q) for p, q in zip(x, y, strict=True)), which
    assert timeless(a) == timeless(b)


@pytest.mark.parametrize('kind', [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_resumed_equals_never_stopped(finished, env, tmp_path, kind):
    cwd, _ = finished
    config = os.path.join(ROOT, 'configs', 'uncond.py')
    process = subprocess.Popen(
        [sys.executable, os.path.join(ROOT, 'train.py'), f'--config={config}', *SHORT],
        cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith('step 2/'):
            process.send_signal(kind)
            break
    said = process.stdout.read()
    assert process.wait() == 0, said
    assert kind.name in said and 'saved' in said
    stopped = int(said.split('after step ')[1].split(':')[0])
    assert 2 <= stopped < 12
    assert f'Resuming runs/uncond at step {stopped}' in train(tmp_path, env)
    assert_same_run(cwd / 'runs' / 'uncond', tmp_path / 'runs' / 'uncond')


def test_killed_and_resumed_equals_never_stopped(finished, env, tmp_path):
    cwd, _ = finished
    config = os.path.join(ROOT, 'configs', 'uncond.py')
    process = subprocess.Popen(
        [sys.executable, os.path.join(ROOT, 'train.py'), f'--config={config}', *SHORT],
        cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith('step 10/'):
            process.kill()
            break
    process.stdout.read()
    process.wait()
    train(tmp_path, env)
    assert_same_run(cwd / 'runs' / 'uncond', tmp_path / 'runs' / 'uncond')


def test_condition_fine_tunes_the_same_tree_and_shows_three_side_by_side(finished, env):
    cwd, _ = finished
    said = train(cwd, env, 'cond', '--config.init_from=runs/uncond', '--config.sample.guidance=2.0')
    assert 'Starting from ema1 of runs/uncond at step 12' in said
    run(['-m', 'jit_jax.sample', '--workdir=runs/cond', '--num=4', '--out=cond.png', '--steps=2'], env, cwd)
    assert Image.open(cwd / 'cond.png').size == (2 + 1 * (3 * 32 + 2), 2 + 4 * (32 + 2))
    # and back: a run without a condition starts from one with
    assert 'Starting from ema2' in train(
        cwd, env, 'uncond', '--workdir=runs/back', '--config.init_from=runs/cond', '--config.init_ema=ema2', '--config.steps=2'
    )


def test_sample_writes_what_was_asked_for(finished, env):
    cwd, _ = finished
    base = ['-m', 'jit_jax.sample', '--workdir=runs/uncond', '--steps=2', '--sampler=euler', '--ema=params']
    run([*base, '--num=5', '--out=five.npz'], env, cwd)
    five = np.load(cwd / 'five.npz')['arr_0']
    assert five.shape == (5, 32, 32, 3) and five.dtype == np.uint8
    run([*base, '--num=3', '--batch=2', '--out=three.npz'], env, cwd)
    assert np.abs(np.load(cwd / 'three.npz')['arr_0'].astype(int) - five[:3]).max() <= 1  # image i is image i in any batching
    run([*base, '--num=2', '--label=3,7', '--guidance=2', '--out=label.png'], env, cwd)
    holed = Image.fromarray(np.full((32, 32, 4), 255, np.uint8))
    holed.paste((0, 0, 0, 0), (8, 8, 16, 16))
    holed.save(cwd / 'holed.png')
    run([*base, '--num=2', '--cond=holed.png', '--out=filled.png'], env, cwd)
    assert Image.open(cwd / 'filled.png').size[0] == 2 + 2 * 32 + 2


def test_one_device_equals_eight(finished, env, tmp_path):
    cwd, _ = finished
    train(tmp_path, env | {'JAX_NUM_CPU_DEVICES': '8'}, 'uncond', '--config.mesh=(2,2,2)')
    for line, other in zip(lines(cwd / 'runs/uncond'), lines(tmp_path / 'runs/uncond'), strict=True):
        assert line['loss'] == pytest.approx(other['loss'], rel=1e-4)
    (x, _), (y, _) = weights(cwd / 'runs/uncond', 'params'), weights(tmp_path / 'runs/uncond', 'params')
    # Adam divides by the gradient's size, so rounding in a tiny gradient moves its parameter by up to a step.
    assert np.mean([np.mean(np.abs(p - q)) for p, q in zip(x, y)]) < 1e-4


@pytest.mark.parametrize(
    'flags, says',
    [
        (['--config.stepz=3'], 'stepz'),
        (['--config.steps=many'], 'steps'),
        (['--config.steps=0'], 'config.steps must be at least 1'),
        (['--config.model.variant=XL'], 'model.variant must be one of digits, S, B'),
        (['--config.condition.kind=inpain'], 'did you mean inpaint?'),
        (['--config.init_from=runs/nothing'], 'runs/nothing'),
        (['--config.data.kind=folder', '--config.data.path=/nowhere'], '/nowhere'),
        (['--config.batch_size=7', '--config.mesh=(2,1,1)'], 'config.mesh'),
        (['stray'], "'stray' is not a flag"),
        (['--flag_that_is_not=1'], 'flag_that_is_not'),
    ],
)
def test_user_errors_are_one_sentence(env, tmp_path, flags, says):
    said = train(tmp_path, env, 'uncond', *flags, code=1)
    assert says in said and 'Traceback' not in said
    assert len([line for line in said.splitlines() if line.startswith('error: ')]) == 1
    assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize('config, says', [('uncond:nothing', "no preset 'nothing'"), ('missing', 'missing')])
def test_wrong_config_is_one_sentence(env, tmp_path, config, says):
    said = train(tmp_path, env, config, code=1)
    assert says in said and 'Traceback' not in said


def test_another_architecture_is_refused_before_anything_is_written(finished, env):
    cwd, _ = finished
    other = f'--config.model.variant={TINY.replace("depth=2", "depth=3")}'
    said = train(cwd, env, 'uncond', other, '--workdir=runs/other', '--config.init_from=runs/uncond', code=1)
    assert 'depth' in said and 'Traceback' not in said and not (cwd / 'runs/other/config.json').exists()
    before = sorted(os.listdir(cwd / 'runs/uncond/checkpoints'))
    assert 'depth' in train(cwd, env, 'uncond', other, '--config.steps=14', code=1)
    assert sorted(os.listdir(cwd / 'runs/uncond/checkpoints')) == before
