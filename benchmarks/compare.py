"""The official PyTorch JiT beside this one, in turns on the same device: how fast ours is.

    git clone https://github.com/LTH14/JiT /tmp/JiT
    python -m benchmarks.compare --official=/tmp/JiT                           # a train step of B
    python -m benchmarks.compare --official=/tmp/JiT --rows=sample --steps=10  # Heun, guided
    python -m benchmarks.compare --official=/tmp/JiT --batch=64 \\
        --config=configs/cond.py:imagenet256_l16_class

Two processes take turns. The official one (`official.py`) compiles what its code says is compiled.
Ours is set up as `train.py` does it, with the same class labels, dead slots skipped. Both get
images of noise that lie on the device; float32 on a CPU, bfloat16 on a GPU.
"""

import functools
import importlib.util
import json
import os
import subprocess
import sys
import time

from benchmarks import measure
from benchmarks.official import Official
from benchmarks.sample import Sampling, settled
from benchmarks.step import Training
from jit_jax.commands import command_line, environment
from jit_jax.errors import UserError

DEFAULT_CONFIG = 'configs/cond.py:imagenet256_b16_class'
TURN = {'train': 3, 'sample': 1}  # runs that are timed in a turn
ROWS = tuple(TURN)


def define_flags(parser):
    measure.define_flags(parser)
    parser.add_argument('--official', help='the folder of the official code, with denoiser.py')
    parser.add_argument(
        '--side', choices=['official', 'ours'], help='of the two processes that this starts'
    )


def with_defaults(words: list[str]) -> list[str]:
    """The words, with this benchmark's own --config and --batch where they name none."""
    own = {'--config=': DEFAULT_CONFIG, '--batch=': '4'}
    missing = [
        flag + value
        for flag, value in own.items()
        if not any(word.startswith(flag) for word in words)
    ]
    return [*missing, *words]


def check(args):
    """Raises UserError for what is missing."""
    unknown = set(args.rows or ()) - set(ROWS)
    if unknown:
        raise UserError(f'--rows: there is no {min(unknown)!r}; there are {", ".join(ROWS)}.')
    if not args.official or not os.path.exists(os.path.join(args.official, 'denoiser.py')):
        raise UserError(
            '--official names the folder of the official code: '
            'git clone https://github.com/LTH14/JiT gives one.'
        )
    for module in ('torch', 'einops'):
        if importlib.util.find_spec(module) is None:
            raise UserError(f'The official code needs {module}: pip install torch einops')
    config = args.config
    if (args.variant or config.model.variant) not in ('B', 'L', 'H'):
        raise UserError(
            'The official code has the sizes B, L and H; --depth=2 leaves most of their blocks out.'
        )
    if config.condition.kind != 'class':
        raise UserError(
            'The official code knows class labels alone; '
            f'use --config={DEFAULT_CONFIG} or another one with them.'
        )


def official(args, config, variant: str) -> dict:
    """Its train step and its sampler, as functions without arguments; and what they run on."""
    code = Official(args.official, config, variant)
    return {'train': code.train, 'sample': code.sample, 'about': code.about()}


def ours(args, config, variant: str) -> dict:
    """The same of this project."""
    from jit_jax.model.sizes import size

    environment.use_cpu_cores(config.batch_size, size(config.model.variant)['width'])
    import jax

    train = functools.cache(lambda: Training(1).program(config))  # compiled when first asked for
    sample = functools.cache(lambda: Sampling().program(config))
    about = f'jax {jax.__version__} on {jax.device_count()} × {jax.devices()[0].device_kind}'
    return {'train': lambda: train().run(), 'sample': lambda: sample().run(), 'about': about}


def work(args):
    """One of the two processes: reads lines `row count`, writes the seconds that many runs took."""
    replies = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # whatever a library prints is not a reply
    config, variant = settled(args)
    runs = {'official': official, 'ours': ours}[args.side](args, config, variant)
    print(json.dumps(runs['about']), file=replies, flush=True)
    for line in sys.stdin:
        row, count = line.split()
        if row == 'train':  # memory that lay idle for the other's turn is slow to come back
            runs[row]()
        start = time.perf_counter()
        for _ in range(int(count)):
            runs[row]()
        print(json.dumps(time.perf_counter() - start), file=replies, flush=True)


class Side:
    """The other end of `work`."""

    def __init__(self, side: str):
        # A GPU's memory is for both.
        variables = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'} | os.environ
        command = [sys.executable, '-m', 'benchmarks.compare', f'--side={side}', *sys.argv[1:]]
        self.process = subprocess.Popen(
            command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.about = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise UserError('One side ended early; its own words are above.')
        return json.loads(line)

    def ask(self, row: str, count: int) -> None:
        """Has it run a row, whose seconds are its next answer."""
        print(row, count, file=self.process.stdin, flush=True)

    def __call__(self, row: str, count: int) -> float:
        self.ask(row, count)
        return self.answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def main(args):
    if args.side:
        work(args)
        return
    check(args)
    config, variant = settled(args)
    compare(args, config, variant)


def compare(args, config, variant: str):
    sides = {'official': Side('official'), 'ours': Side('ours')}
    rounds, s = args.rounds, config.sample
    shortened = f', only {args.depth} of its blocks,' if args.depth else ''
    side = config.model.image_size
    print(f'JiT-{variant}{shortened} at {side}×{side}, batch {config.batch_size}, class labels')
    for name, side in sides.items():
        print(f'{name}: {side.about}')
    print('\n| s | official | ours | times as fast |\n|---|---|---|---|')
    for row in args.rows or ROWS[:1]:
        for side in sides.values():
            side.ask(row, 2)  # compiles, and warms up; both at the same time
        for side in sides.values():
            side.answer()
        seconds = {name: [] for name in sides}
        for _ in range(rounds):
            for name, side in sides.items():
                seconds[name].append(side(row, TURN[row]) / TURN[row])
        ratio = [a / b for a, b in zip(*seconds.values(), strict=True)]
        print(f'| {row} | {" | ".join(map(measure.spread, [*seconds.values(), ratio]))} |')
    print(
        f'\ntrain: one step; sample: {s.steps} {s.sampler} steps with guidance. Medians (and '
        f'quartiles) of {rounds} alternating turns of {TURN["train"]} steps or {TURN["sample"]} '
        'batch.'
    )
    for side in sides.values():
        side.close()


if __name__ == '__main__':
    if '--side=ours' in sys.argv:
        environment.restart_with_variables()
    words = with_defaults(sys.argv[1:])
    command_line.run(sys.modules[__name__], words, 'python -m benchmarks.compare')
