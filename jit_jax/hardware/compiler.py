"""How XLA compiles in this process: with deterministic operations or not, and what it keeps."""

import os

DETERMINISTIC = '--xla_gpu_deterministic_ops=true'
CACHE = '~/.cache/jit_jax/xla'  # of each user, where nothing else is said


def configure(*, deterministic: bool = False, cache: str = CACHE) -> None:
    """Sets up the compiler; to be called before JAX makes its devices.

    deterministic: GPU operations that give the same bits from run to run; slower. CPUs and TPUs
    have no others. cache: the folder where compiled programs stay between processes, made if it is
    not there, with ~ for the home folder; '' for none. A folder that cannot be written is no reason
    to stop: programs are then compiled anew. JAX_COMPILATION_CACHE_DIR in the environment goes
    before it.
    """
    if deterministic and DETERMINISTIC not in os.environ.get('XLA_FLAGS', ''):
        os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {DETERMINISTIC}'.strip()
    if cache and 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        folder = os.path.expanduser(cache)
        if _writable(folder):
            import jax  # here, as configs and help read this module without it

            jax.config.update('jax_compilation_cache_dir', folder)


def _writable(folder: str) -> bool:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
