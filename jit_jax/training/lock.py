"""One run, one folder: the lock that a run holds on its workdir."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from functools import partial
from typing import IO

from absl import logging
from etils import epath

from jit_jax.errors import UserError
from jit_jax.output.files import remote
from jit_jax.training.processes import first_process
from jit_jax.training.storage import reason


@contextlib.contextmanager
def lock(workdir) -> Iterator[None]:
    """Holds `workdir` for this run; makes the folder. The system lets go when the process dies,
    however it dies.

    Raises UserError, in every process, when another run holds it and when it cannot be written.
    """
    with contextlib.ExitStack() as held:
        first_process(partial(_take, epath.Path(workdir), held))
        yield


def _take(workdir: epath.Path, held: contextlib.ExitStack) -> None:
    if remote(workdir):
        logging.info('%s has no locks: start one run on it at a time.', workdir)
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = held.enter_context(open(workdir / '.lock', 'a+'))
    except OSError as error:
        raise UserError(
            f'{workdir} cannot be written ({reason(error)}); choose another --workdir.'
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _sign(file)
    except BlockingIOError:
        raise UserError(
            f'{workdir} is in use by another run ({_holder(file)}); '
            'stop it or choose another --workdir.'
        ) from None
    except OSError as error:
        logging.warning(
            '%s cannot be locked (%s): start one run on it at a time.', workdir, reason(error)
        )


def _sign(file: IO[str]) -> None:
    """Writes down who holds the lock, for the message that another run gets."""
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}')
    file.flush()


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read()
