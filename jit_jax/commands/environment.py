"""The process a command runs in: variables that must be set before it starts, CPU cores, and other
processes.
"""

import argparse
import math
import os
import socket
import sys
import time

from jit_jax.errors import UserError

# XLA's CPU runtime allocates its temporaries anew each step; with huge pages the same step is 1.5
# times as fast. glibc reads this when the process starts, so a command without it starts itself
# again. Harmless elsewhere.
VARIABLES = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}
# Where there is an NVIDIA driver: gathers of parameters run while products do. A TPU's compiler
# does so by default.
VARIABLES_WITH_GPU = {'XLA_FLAGS': '--xla_gpu_enable_latency_hiding_scheduler=true'}
NVIDIA_DRIVER = '/proc/driver/nvidia/version'
# From this width on, the cores of a CPU share each product better than the batch; see
# docs/performance.md.
WIDE = 128
PATIENCE = 300.0  # seconds to wait for process 0, as JAX does


def restart_with_variables() -> None:
    """Replaces this process by itself with the variables above, unless all of them are set.

    To be called before JAX is imported, and only by a program that owns its process.
    """
    wanted = VARIABLES | (VARIABLES_WITH_GPU if os.path.exists(NVIDIA_DRIVER) else {})
    missing = {name: value for name, value in wanted.items() if name not in os.environ}
    if missing and sys.platform == 'linux':
        os.environ.update(missing)
        os.execv(sys.executable, sys.orig_argv)


def use_cpu_cores(batch_size: int, width: int = 0) -> None:
    """Makes each core of a CPU a device, as many as divide the batch, for a narrow network.

    A small product that is split over two cores waits for both; a batch that is split over them
    does not: 0.7 to 0.9 of the time for the digits, by machine. A network from WIDE on is better
    split by product, as every device would read all parameters: 0.8 of the time for B/16. To be
    called before JAX starts its devices. JAX_NUM_CPU_DEVICES or XLA_FLAGS in the environment
    override it; accelerators are not affected.
    """
    import jax  # here, as this module is imported before a process starts itself again

    if 'JAX_NUM_CPU_DEVICES' in os.environ or 'XLA_FLAGS' in os.environ:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    devices = math.gcd(cores, batch_size) if width < WIDE else 1
    jax.config.update('jax_num_cpu_devices', devices)
    if devices == cores:  # no core is left to help another device with its products
        os.environ['XLA_FLAGS'] = '--xla_cpu_multi_thread_eigen=false'


def define_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that name the processes of one command."""
    several = parser.add_argument_group(
        'several processes',
        'TPU pods, Slurm and Kubernetes jobs are detected and need none of these.',
    )
    several.add_argument('--coordinator', metavar='HOST:PORT', help='where process 0 listens')
    several.add_argument('--num_processes', type=int, metavar='N', help='how many there are')
    several.add_argument(
        '--process_id', type=int, metavar='I', help='which of them this is, counted from 0'
    )


def join_processes(args: argparse.Namespace, patience: float = PATIENCE) -> None:
    """Joins the processes of a TPU pod, Slurm or Kubernetes job, or those that flags name; else
    this is the only one.

    patience: seconds to wait for process 0 to listen. Raises UserError when some of the flags are
    given and some are not, when they name no process, and when process 0 does not listen.
    """
    import jax

    given = (args.coordinator, args.num_processes, args.process_id)
    named = all(value is not None for value in given)
    if named:
        check_processes(*given)
        if args.process_id > 0:
            wait_for(args.coordinator, patience)
    elif any(value is not None for value in given):
        raise UserError('--coordinator, --num_processes and --process_id go together.')
    try:
        jax.distributed.initialize(*given)
    except ValueError:  # JAX has found no cluster, which is an error only where one was named
        if named:
            raise


def check_processes(coordinator: str, count: int, index: int) -> None:
    """Raises UserError unless these are an address with a port and one of several processes."""
    host, _, port = coordinator.rpartition(':')
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f'--coordinator names HOST:PORT, such as host0:1234; got {coordinator!r}.')
    if not 0 <= index < count:
        raise UserError(
            f'--process_id counts from 0 to --num_processes - 1; got {index} of {count}.'
        )


def wait_for(coordinator: str, patience: float) -> None:
    """Returns once something listens at HOST:PORT. Raises UserError after `patience` seconds.

    JAX would wait too, but end with a crash of its own.
    """
    host, _, port = coordinator.rpartition(':')
    deadline = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f'--coordinator={coordinator} cannot be reached ({error.strerror or error}): '
                    'name the host and a free port of process 0, and start that process too.'
                ) from error
        time.sleep(1)
