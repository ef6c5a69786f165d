"""The processes that flags name."""

import argparse
import socket

import pytest

from jit_jax.commands.environment import join_processes, wait_for
from jit_jax.errors import UserError


@pytest.mark.parametrize(
    'coordinator, count, index, words',
    [
        ('host0:1234', 2, None, 'go together'),
        (None, None, 1, 'go together'),
        ('host0', 2, 1, "--coordinator names HOST:PORT, such as host0:1234; got 'host0'"),
        (':1234', 2, 1, '--coordinator names HOST:PORT'),
        ('host0:80000', 2, 1, '--coordinator names HOST:PORT'),
        ('host0:1234', 2, 2, '--process_id counts from 0 to --num_processes - 1; got 2 of 2'),
        ('host0:1234', 0, 0, '--process_id counts from 0'),
        ('127.0.0.1:9', 2, 1, '--coordinator=127.0.0.1:9 cannot be reached (Connection refused)'),
        ('nowhere.invalid:9', 2, 1, '--coordinator=nowhere.invalid:9 cannot be reached'),
    ],
)
def test_what_names_no_process_is_refused(coordinator, count, index, words):
    args = argparse.Namespace(coordinator=coordinator, num_processes=count, process_id=index)
    with pytest.raises(UserError) as refused:
        join_processes(args, patience=0)
    assert words in str(refused.value)


def test_a_coordinator_that_listens_is_joined():
    with socket.create_server(('127.0.0.1', 0)) as server:
        wait_for(f'127.0.0.1:{server.getsockname()[1]}', patience=0)
