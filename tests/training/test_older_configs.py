"""Configs without the keys that came later mean what they meant."""

import json

import pytest
from ml_collections import ConfigDict
from shell import config_of

from jit_jax.commands import replay, report
from jit_jax.recipe import build
from jit_jax.training.older_configs import ADDED, SECTIONS, complete, parse_config


def old(config: ConfigDict) -> dict:
    """A config as it was stored before the keys of ADDED came."""
    stored = json.loads(config.to_json())
    for section, added in ADDED.items():
        for key in added:
            del stored[section][key]
    return {name: section for name, section in stored.items() if section != {}}


def test_a_run_is_built_from_an_old_config():
    stored = old(config_of())
    completed = parse_config(json.dumps(stored))
    assert completed.keys() == stored.keys() | set(SECTIONS)
    build.run(ConfigDict(completed))
    for section, added in ADDED.items():
        assert completed[section].items() >= added.items()


def test_samplers_divided_by_what_training_did():
    stored = json.loads(config_of().to_json())
    del stored['sample']['t_eps']
    stored['diffusion']['t_eps'] = 0.3
    assert complete(stored)['sample']['t_eps'] == 0.3


def test_what_is_stored_stays():
    stored = json.loads(config_of().to_json())
    stored['data']['holdout'] = 'tail'
    assert complete(stored) == stored


def test_sections_that_a_converted_run_lacks_stay_away():
    completed = complete({'model': {'variant': 'B'}})
    assert completed == {'model': {'variant': 'B'} | ADDED['model']}


@pytest.mark.parametrize('command', [replay, report])
def test_commands_read_an_old_config(command, tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(old(config_of())))
    assert command.read_config(str(tmp_path))['data']['holdout'] == ADDED['data']['holdout']
