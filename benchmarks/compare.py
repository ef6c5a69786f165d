"""The official PyTorch JiT beside this one, in turns on the same device: how many times as fast ours is.

    git clone https://github.com/LTH14/JiT /tmp/JiT
    python -m benchmarks.compare --official=/tmp/JiT                                 # B/16, batch 4, a train step
    python -m benchmarks.compare --official=/tmp/JiT --rows=sample --steps=10        # Heun steps with guidance
    python -m benchmarks.compare --official=/tmp/JiT --config=configs/cond.py:imagenet256_l16_class --batch=64

Two processes take turns. The official one is set up as its `main_jit.py` does it, steps as its `engine_jit.py` does,
and compiles what its code says is compiled. Ours is set up as `train.py` does it, with the same class labels, dead
slots skipped. Both get images of noise that lie on the device; float32 on a CPU, bfloat16 on a GPU.
"""

import atexit
import copy
import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

from benchmarks import measure
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
    """Raises ValueError, in one sentence, for what is missing."""
    unknown = set(args.rows or ()) - set(ROWS)
    if unknown:
        raise UserError(f'--rows: there is no {min(unknown)!r}; there are {", ".join(ROWS)}.')
    if not args.official or not os.path.exists(os.path.join(args.official, 'denoiser.py')):
        raise UserError(
            '--official names the folder of the official code: git clone https://github.com/LTH14/JiT gives one.'
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
            f'The official code knows class labels alone; use --config={DEFAULT_CONFIG} or another one with them.'
        )


def without_cuda(folder: str) -> str:
    """A copy of the code for a machine without a GPU: its tables and its zero attention bias are moved to one by `.cuda()`."""
    copied = tempfile.TemporaryDirectory()
    atexit.register(copied.cleanup)
    for source in [*Path(folder).glob('*.py'), *Path(folder).glob('util/*.py')]:
        target = Path(copied.name) / source.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        target.write_text(source.read_text().replace('.cuda()', ''))
    return copied.name


def official(args, config, variant: str) -> dict:
    """Its train step and its sampler, as functions without arguments; and what they run on."""
    import torch

    gpu = torch.cuda.is_available()
    sys.path.insert(0, args.official if gpu else without_cuda(args.official))
    torch._dynamo.config.cache_size_limit = 128
    torch.backends.cudnn.benchmark = True
    from denoiser import Denoiser
    from util import misc

    from jit_jax.model.sizes import size

    m, d, s = config.model, config.diffusion, config.sample
    sizes, (ema1, ema2) = size(m.variant), config.ema.decays
    named = Namespace(
        model=f'JiT-{variant}/{m.image_size // 16}',
        img_size=m.image_size,
        class_num=m.num_classes,
        attn_dropout=0.0,
        proj_dropout=sizes['dropout'],
        label_drop_prob=config.condition.drop,
        P_mean=d.t_mean,
        P_std=d.t_std,
        t_eps=d.t_eps,
        noise_scale=d.noise_scale,
        ema_decay1=ema1,
        ema_decay2=ema2,
        sampling_method=s.sampler,
        num_sampling_steps=s.steps,
        cfg=s.guidance,
        interval_min=s.interval[0],
        interval_max=s.interval[1],
    )
    device = torch.device('cuda' if gpu else 'cpu')
    model = Denoiser(named)
    del model.net.blocks[sizes['depth'] :]
    model.net.in_context_start = sizes['class_start']
    model.to(device)
    groups = misc.add_weight_decay(model, config.optimizer.weight_decay)
    optimizer = torch.optim.AdamW(
        groups, lr=config.optimizer.base_lr, betas=(config.optimizer.b1, config.optimizer.b2)
    )
    model.ema_params1, model.ema_params2 = (
        copy.deepcopy(list(model.parameters())) for _ in range(2)
    )
    batch = {
        name: torch.from_numpy(rows).to(device) for name, rows in measure.noise(config).items()
    }
    image, label = batch['image'].permute(0, 3, 1, 2).contiguous(), batch['label'].long()
    autocast = lambda: torch.autocast(device.type, dtype=torch.bfloat16, enabled=gpu)
    wait = torch.cuda.synchronize if gpu else lambda: None

    def train():
        model.train()
        x = image.to(torch.float32).div_(255) * 2.0 - 1.0
        with autocast():
            loss = model(x, label)
        loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        wait()
        model.update_ema()
        wait()

    def sample():
        model.eval()
        with torch.no_grad(), autocast():
            model.generate(label)
        wait()

    name = torch.cuda.get_device_name() if gpu else f'cpu, {torch.get_num_threads()} threads'
    return {'train': train, 'sample': sample, 'about': f'torch {torch.__version__} on {name}'}


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
        if (
            row == 'train'
        ):  # a step of its own first: memory that lay idle for the other's turn is slow to come back
            runs[row]()
        start = time.perf_counter()
        for _ in range(int(count)):
            runs[row]()
        print(json.dumps(time.perf_counter() - start), file=replies, flush=True)


class Side:
    """The other end of `work`."""

    def __init__(self, side: str):
        environment = {
            'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'
        } | os.environ  # a GPU's memory is for both
        command = [sys.executable, '-m', 'benchmarks.compare', f'--side={side}', *sys.argv[1:]]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.about = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise UserError('One side ended early; its own words are above.')
        return json.loads(line)

    def __call__(self, row: str, count: int) -> float:
        print(row, count, file=self.process.stdin, flush=True)
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
    print(
        f'JiT-{variant}{shortened} at {config.model.image_size}×{config.model.image_size}, batch {config.batch_size}, class labels'
    )
    for name, side in sides.items():
        print(f'{name}: {side.about}')
    print('\n| s | official | ours | times as fast |\n|---|---|---|---|')
    for row in args.rows or ROWS[:1]:
        for side in sides.values():
            side(row, 2)  # compiles, and warms up
        seconds = {name: [] for name in sides}
        for _ in range(rounds):
            for name, side in sides.items():
                seconds[name].append(side(row, TURN[row]) / TURN[row])
        ratio = [a / b for a, b in zip(*seconds.values(), strict=True)]
        print(f'| {row} | {" | ".join(map(measure.spread, [*seconds.values(), ratio]))} |')
    print(
        f'\ntrain: one step; sample: {s.steps} {s.sampler} steps with guidance. Medians (and quartiles) of {rounds} alternating turns of {TURN["train"]} steps or {TURN["sample"]} batch.'
    )
    for side in sides.values():
        side.close()


if __name__ == '__main__':
    if '--side=ours' in sys.argv:
        environment.restart_with_variables()
    words = with_defaults(sys.argv[1:])
    command_line.run(sys.modules[__name__], words, 'python -m benchmarks.compare')
