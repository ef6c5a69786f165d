"""Seconds until a run's first step, with the cache of compiled programs empty and with it full.

    python -m benchmarks.start --config=configs/uncond.py

Each start is a process of its own, as a user's is: it imports, opens the data, compiles (or finds
what was compiled), and takes a step. The data set is prepared before the first is timed.
"""

import os
import subprocess
import sys
import tempfile
import time

from jit_jax.commands import command_line


def define_flags(parser):
    parser.define_config('a file of configs/, with :PRESET after it')


def seconds_to_first_step(flags: list[str], cache: str) -> float:
    """Of `jit-jax train` in a folder of its own, with the cache at `cache`."""
    env = {name: os.environ[name] for name in os.environ if name != 'JAX_COMPILATION_CACHE_DIR'}
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, '-m', 'jit_jax', 'train', *flags]
        command += [f'--workdir={workdir}/run', f'--config.compute.cache={cache}', '--yes']
        command += ['--config.log_every=1']
        began = time.perf_counter()
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                if line.startswith('step 1/'):
                    seconds = time.perf_counter() - began
                    process.kill()
                    return seconds
    raise SystemExit('The run ended before its first step.')


def main(args):
    command_line.required(args, 'config', 'names one, for example --config=configs/uncond.py.')
    flags = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        seconds_to_first_step(flags, '')  # prepares the data
        first = seconds_to_first_step(flags, folder)
        second = seconds_to_first_step(flags, folder)
    print('| start | seconds to the first step | of the first |')
    print('|---|---|---|')
    print(f'| cache empty | {first:.1f} | 1 |')
    print(f'| cache full | {second:.1f} | {second / first:.2f} |')


if __name__ == '__main__':
    command_line.run(sys.modules[__name__], sys.argv[1:], 'python -m benchmarks.start')
