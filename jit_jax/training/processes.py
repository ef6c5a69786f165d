"""What the processes of one run do as one, so that none waits for another that has failed.

A process that raises in front of a collective leaves the others standing in it. So whatever may
fail in one process and not in another, such as reading a file, goes through here: it ends in all
processes, or it raises in all. Where there is no time to ask the others, within the steps of a run,
`leave` ends one process so that JAX ends the others.
"""

import os
import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather

from jit_jax.errors import UserError

T = TypeVar('T')
MESSAGE_BYTES = 2000  # of a failure, as the other processes hear of it


def first_process(compute: Callable[[], int | None]) -> int:
    """Calls `compute` in the first process alone and returns its number (int32; 0 for None) in
    every process.

    When it raises there, every process raises: the first one that error, the others a UserError
    with its words.
    """
    if jax.process_count() == 1:
        return compute() or 0
    number, failure = 0, None
    if jax.process_index() == 0:
        number, failure = _attempt(compute)
    words = f'{failure}' or type(failure).__name__ if failure else ''
    packed = np.zeros(MESSAGE_BYTES, np.uint8)
    content = words.encode()[:MESSAGE_BYTES]
    packed[: len(content)] = list(content)
    number, packed = broadcast_one_to_all((np.int32(number or 0), packed))
    if failure:
        raise failure
    if packed.any():
        raise UserError(bytes(packed).rstrip(b'\0').decode(errors='ignore'))
    return int(number)


def every_process(compute: Callable[[], T]) -> T:
    """Calls `compute` in every process and returns what it gives here, once it has succeeded in all
    of them.

    `compute` must hold no collective itself. Where it raises in one process, every process raises:
    that one its own error, the others a UserError that names it.
    """
    if jax.process_count() == 1:
        return compute()
    result, failure = _attempt(compute)
    failed = np.flatnonzero(process_allgather(np.asarray(failure is not None)))
    if failure:
        raise failure
    if len(failed):
        raise UserError(
            f'Process {failed[0]} of {jax.process_count()} has failed; its own message says why.'
        )
    return result


def leave(error: UserError) -> NoReturn:
    """Ends this process with the sentence of an error and exit code 1; for one of several
    processes.

    The others are within a step that needs this process. An ordinary exit would wait for them and
    they for it; without it, the step breaks, or JAX's service misses this process after 100 s, and
    they end too. What is saved stays.
    """
    index, count = jax.process_index(), jax.process_count()
    words = ' '.join(str(error).split())
    print(f'error: Process {index} of {count} ends: {words}', file=sys.stderr, flush=True)
    os._exit(1)


def in_every_process(answer) -> bool:
    """Whether the answer is yes in every process; the same in all of them."""
    return bool(np.all(process_allgather(np.asarray(bool(answer)))))


def agree(what: str, number: int) -> str:
    """Says that all processes hold the same number (uint32); '' for a single process.

    Raises UserError, in every process, where they do not.
    """
    count = jax.process_count()
    if count == 1:
        return ''
    numbers = process_allgather(np.uint32(number))
    if len(set(numbers.tolist())) > 1:
        raise UserError(
            f'The {count} processes of this run differ in their {what}; '
            'start each with the same command and the same code.'
        )
    return f'{count} processes agree: {what} {number:08x}. '


def _attempt(compute: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """(what it returns, None), or (None, what it raised)."""
    try:
        return compute(), None
    except Exception as error:  # noqa: BLE001 - whatever it is, the other processes must hear of it
        return None, error
