"""What every command shares: flags, one-sentence errors, and the environment a fast process needs."""

import math
import os
import re
import sys

from absl import flags, logging
from ml_collections import config_flags

# XLA's CPU runtime allocates its temporaries anew each step; with huge pages the same step is 1.5 times as fast.
# glibc reads this when the process starts, so a command without it starts itself again. Harmless elsewhere.
ENVIRONMENT = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}
# Where there is an NVIDIA driver: gathers of parameters run while products do. A TPU's compiler does so by default.
WITH_GPU = {'XLA_FLAGS': '--xla_gpu_enable_latency_hiding_scheduler=true'}
WIDE = 128  # from this width on, the cores of a CPU share each product better than the batch; see docs/performance.md


def restart_with(environment: dict[str, str] = ENVIRONMENT) -> None:
    """Replaces this process by itself with the missing variables set. Does nothing when none is missing."""
    environment = environment | (WITH_GPU if os.path.exists('/proc/driver/nvidia/version') else {})
    missing = {name: value for name, value in environment.items() if name not in os.environ}
    if missing and sys.platform == 'linux':
        os.environ.update(missing)
        os.execv(sys.executable, sys.orig_argv)


def use_cpu_cores(batch_size: int, width: int = 0) -> None:
    """Where JAX runs on a CPU, makes each core a device, as many as divide the batch, for a network narrower than WIDE.

    A small product split over two cores waits for both; a batch split over them does not: 0.7 to 0.9 of the time for
    the digits, by machine. Large ones are better split than parameters read twice: 0.8 of the time for B/16. Call before JAX is used. The variables JAX_NUM_CPU_DEVICES and XLA_FLAGS override it.
    """
    import jax

    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    devices = math.gcd(cores, batch_size) if width < WIDE else 1
    if 'JAX_NUM_CPU_DEVICES' in os.environ or 'XLA_FLAGS' in os.environ:
        return
    jax.config.update('jax_num_cpu_devices', devices)
    if devices == cores:  # then a device need not look for help from other cores
        os.environ['XLA_FLAGS'] = '--xla_cpu_multi_thread_eigen=false'


COORDINATOR = flags.DEFINE_string(
    'coordinator', None, 'host:port of process 0, where no cluster is detected.'
)
PROCESSES = flags.DEFINE_integer(
    'num_processes', None, 'How many processes there are, with --coordinator.'
)
PROCESS = flags.DEFINE_integer(
    'process_id', None, 'Which of them this is, from 0, with --coordinator.'
)


def join_processes() -> None:
    """Joins the processes of a TPU pod, Slurm or Kubernetes job, or those that flags name; alone anywhere else."""
    import jax

    given = [flag.value is not None for flag in (COORDINATOR, PROCESSES, PROCESS)]
    if any(given) and not all(given):
        raise ValueError('--coordinator, --num_processes and --process_id go together.')
    try:
        jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    except ValueError:
        if all(given):
            raise  # otherwise JAX has found no cluster: one process


class one_sentence:
    """Within it, an error a user can cause ends the process with one sentence and exit code 1, no traceback.

    Wrap what runs before any compute is spent; later errors are ours and keep their traceback, but for the kinds that
    are named. `--verbosity=1` shows the traceback of all.
    """

    def __init__(self, *kinds):
        self.kinds = kinds or (
            ValueError,
            OSError,
            AttributeError,
            KeyError,
            TypeError,
            flags.Error,
        )

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if (
            kind is None
            or not issubclass(kind, self.kinds)
            or logging.get_verbosity() >= logging.DEBUG
        ):
            return False
        text = str(error.args[0] if isinstance(error, KeyError) else error)
        print('error: ' + ' '.join(text.split()), file=sys.stderr)
        sys.exit(1)


def parse(argv: list[str] | None = None) -> None:
    """Parses the flags that modules have defined. Unknown flags, stray words and unknown config keys end in one sentence."""
    with one_sentence():
        argv = sys.argv if argv is None else argv
        for arg in argv:  # before ml_collections, which answers with a traceback from its loader
            path = arg.partition('=')[2].partition(':')[0]
            if arg.startswith('--config=') and not os.path.exists(path):
                raise ValueError(
                    f'There is no {path}; --config names a file such as configs/uncond.py, with :preset after it.'
                )
        try:
            rest = flags.FLAGS(argv)
        except (
            AttributeError,
            KeyError,
        ) as error:  # its text: the key and, at times, a similar one, in quotes
            names = list(
                dict.fromkeys(
                    re.findall(r'\w+', re.sub('Did you mean|instead of|\\\\n', ' ', str(error)))
                )
            )
            raise ValueError(
                f'There is no config key {names[0]}'
                + (f'; did you mean {names[1]}?' if names[1:] else '.')
            ) from error
        except (
            flags.Error
        ) as error:  # of a config file, its own error is the last line of a traceback
            raise ValueError(str(error).rpartition('Error: ')[2]) from error
        if len(rest) > 1:
            raise ValueError(f'{rest[1]!r} is not a flag; write --name=value.')
    logging.use_absl_handler()


def define_config(name: str, help: str) -> flags.FlagHolder:
    """A flag --config=path.py[:preset], and --config.key=value for everything in it."""
    return config_flags.DEFINE_config_file(name, None, help, lock_config=True)


def config_name(holder) -> str:
    """`uncond` for configs/uncond.py, `uncond-imagenet256_b16` for a preset of it."""
    if holder.value is None:
        raise ValueError(
            f'--{holder.name} says what to run, for example --{holder.name}=configs/uncond.py.'
        )
    path, _, preset = config_flags.get_config_filename(flags.FLAGS[holder.name]).partition(':')
    return os.path.splitext(os.path.basename(path))[0] + (f'-{preset}' if preset else '')
