"""Devices that are not here: which can be asked for, and what is said of those that cannot."""

import importlib.util

import pytest

from jit_jax.errors import UserError
from jit_jax.hardware import topologies
from jit_jax.hardware.cards import cards

HAS_CUDA = importlib.util.find_spec('jax_plugins') is not None
HAS_TPU = importlib.util.find_spec('libtpu') is not None


def test_a_machine_that_is_not_this_one():
    for name in ('gpu:8', 'v9:2x2', 'cpu:3'):
        with pytest.raises(UserError, match=f'{name}: this machine has cpu:8, and only a100, b200'):
            topologies.target(name)
    here = topologies.target(None)
    assert len(here.devices) == 8 and here.card is None and here.options == {}
    assert topologies.target('cpu:8').devices == here.devices


@pytest.mark.skipif(HAS_CUDA, reason='the CUDA plugin is here')
def test_what_a_card_needs_is_one_line_of_pip():
    with pytest.raises(UserError, match=r"^--topology=h100:8 needs .*: pip install 'jax\[cuda12"):
        topologies.target('h100:8')


@pytest.mark.skipif(HAS_TPU, reason='libtpu is here')
def test_what_a_pod_needs_is_one_line_of_pip():
    with pytest.raises(UserError, match=r"needs libtpu: pip install 'jit_jax\[tpu\]'"):
        topologies.target('v5e:2x2')


@pytest.mark.skipif(not HAS_TPU, reason="needs pip install 'jit_jax[tpu]'")
def test_a_shape_that_no_pod_has():
    with pytest.raises(UserError, match='v5e:3x5 is not a pod that libtpu knows; try one like v4'):
        topologies.target('v5e:3x5')


@pytest.mark.skipif(not HAS_CUDA, reason="needs pip install 'jax[cuda12]'")
def test_cards_that_are_not_here():
    found = topologies.target('h100:8')
    assert len(found.devices) == 8 and found.card.name == 'h100'
    assert {device.compute_capability for device in found.devices} == {'9.0'}
    with pytest.raises(UserError, match='must say how many cards, for example h100:8'):
        topologies.target('h100:2x2')


def test_a_card_is_described_to_the_compiler():
    """Field by field as XLA's own text form of a T4 has it."""
    lines = topologies.description(cards()['t4']).splitlines()
    assert lines[0] == 'gpu_device_info {' and lines.count('}') == 4
    for line in (
        'core_count: 40',
        'memory_bandwidth: 320000000000',
        'device_memory_size: 15835660288',
        'major: 7',
        'minor: 5',
        'clock_rate_ghz: 1.59',
        'platform_name: "CUDA"',
        'device_description_str: "Tesla T4"',
    ):
        assert line in lines, line
