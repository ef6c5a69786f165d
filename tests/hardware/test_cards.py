"""Cards by their data files: complete, and found by the names that JAX and users have for them."""

import tomllib

import pytest
from conftest import ROOT

from jit_jax.hardware import cards


@pytest.mark.parametrize('card', cards.cards().values(), ids=str)
def test_a_card_is_complete(card):
    assert 8e9 < card.memory < 1e12 and 1e11 < card.bandwidth < 1e13
    assert 1e10 < card.links < 1e13 and set(card.peak) <= {'bfloat16', 'float16', 'float32'}
    assert card.peak['float32'] > 1e12 and max(card.peak.values()) > 5e13
    if card.platform == 'gpu':  # compute capability 8 brought bfloat16
        assert ('bfloat16' in card.peak) == (card.capability >= (8, 0))
        assert {'core_count', 'l2_cache_size', 'shared_memory_per_core'} <= set(card.compiler)


def test_every_file_says_where_its_numbers_come_from():
    files = list((ROOT / 'jit_jax/hardware/cards').glob('*.toml'))
    assert {file.stem for file in files} == set(cards.cards()) and len(files) == 10
    for file in files:
        head = file.read_text().partition('kind')[0]
        assert head.startswith('# ') and 'Source: ' in head, file
        assert tomllib.loads(file.read_text())['kind']


def test_published_figures():
    h100, v5e = cards.cards()['h100'], cards.cards()['v5e']
    assert h100.peak['bfloat16'] == 989e12 and h100.bandwidth == 3.35232e12
    assert h100.capability == (9, 0) and round(h100.memory / 2**30, 1) == 79.1
    assert v5e.platform == 'tpu' and v5e.memory == 16 * 2**30 and v5e.capability is None


def test_the_capability_of_a_device_by_its_kind():
    assert cards.capability('NVIDIA H100 80GB HBM3') == (9, 0)
    assert cards.capability('Tesla T4') == (7, 5)
    assert cards.capability('TPU v5 lite') is None and cards.capability('cpu') is None
    assert cards.of_kind('TPU v5 lite').name == 'v5e' and cards.of_kind('cpu') is None
