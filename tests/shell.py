"""Running the project's commands as a user does, in subprocesses, and reading what they leave."""

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY = 'depth=2,width=32,heads=2,bottleneck=8,class_tokens=4,class_start=1,dropout=0.1'
SHORT = [
    f'--config.model.variant={TINY}',
    '--config.steps=12',
    '--config.log_every=2',
    '--config.checkpoint.every=4',
    '--config.sample.every=6',
    '--config.sample.num=4',
    '--config.sample.steps=2',
    '--config.optimizer.muon_rms=0',
    '--config.evaluate.every=0',
    '--config.evaluate.denoise_every=0',
]


def config_of():
    """The config of the first command, shortened, for a run in the process of a test."""
    from configs import uncond

    config = uncond.get_config()
    for flag in SHORT:
        key, value = flag.removeprefix('--config.').split('=', 1)
        section, _, name = key.rpartition('.')
        place = config[section] if section else config
        place[name] = type(place[name])(value)
    return config


FIRST = [
    os.path.join(ROOT, 'train.py'),
    f'--config={os.path.join(ROOT, "configs", "uncond.py")}',
    *SHORT,
]


def run(args, env, cwd, code=0):
    done = subprocess.run(
        [sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def start(cwd, env, *flags):
    """The first command, under way; its output is to be read line by line."""
    return subprocess.Popen(
        [sys.executable, *FIRST, *flags],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two(command, cwd, env, each=('', '')):
    """A command as two processes that know of each other, each with a flag of its own."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        together = (f'--coordinator=127.0.0.1:{s.getsockname()[1]}', '--num_processes=2')
    flags = [[*filter(None, [own]), *together, f'--process_id={i}'] for i, own in enumerate(each)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return [
        subprocess.Popen([sys.executable, *command, *own], cwd=cwd, env=env, **pipes)
        for own in flags
    ]


def train(cwd, env, config='uncond', *flags, code=0):
    path = os.path.join(
        ROOT, 'configs', config.replace(':', '.py:') if ':' in config else f'{config}.py'
    )
    return run([os.path.join(ROOT, 'train.py'), f'--config={path}', *SHORT, *flags], env, cwd, code)


def train_once(shared, cwd, env):
    """As `train`, for all workers of a session: the first runs it, in `shared`; each gets a copy,
    so that none finds what another has done to it.
    """
    with open(f'{shared}.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / 'said').exists():
            shared.mkdir(exist_ok=True)
            (shared / 'said').write_text(train(shared, env))
    shutil.copytree(shared / 'runs', cwd / 'runs')
    return (shared / 'said').read_text()


def lines(folder):
    with open(os.path.join(folder, 'metrics.jsonl')) as file:
        return [json.loads(line) for line in file]


def timeless(folder):
    clocks = ('images_per_second', 'mfu', 'data_wait')
    return [{name: v for name, v in line.items() if name not in clocks} for line in lines(folder)]


def weights(folder, which):
    import jax

    from jit_jax.training.weights import read_weights

    _, tree, step = read_weights(str(folder), which)
    return [np.asarray(x) for x in jax.tree.leaves(tree)], step


def assert_same_run(a, b):
    for which in ('params', 'ema1', 'ema2'):
        (x, step_x), (y, step_y) = weights(a, which), weights(b, which)
        assert step_x == step_y
        assert all(np.array_equal(p, q) for p, q in zip(x, y, strict=True)), which
    assert timeless(a) == timeless(b)
