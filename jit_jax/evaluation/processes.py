"""Agreement among processes, so that none waits in a collective for one that has given up."""

import contextlib
from collections.abc import Iterator

import numpy as np
from jax.experimental.multihost_utils import process_allgather

from jit_jax.errors import UserError


def everyone(answer: bool) -> bool:
    """Whether the answer is yes in every process; the same in all of them. Collective."""
    return bool(np.all(process_allgather(np.asarray(bool(answer)))))


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What fails within it in one process fails in all.

    Collective at its end, so nothing within may be collective. The process that failed raises its
    own error, the others a UserError.
    """
    problem = None
    try:
        yield
    except Exception as error:  # noqa: BLE001 whatever it is, the others must hear of it first
        problem = error
    all_is_well = everyone(problem is None)
    if problem is not None:
        raise problem
    if not all_is_well:
        raise UserError('Another process of this command could not go on; its message says why.')
