"""Conditions as a config names them; a user's own, from a module."""

import sys

import pytest

from configs import uncond
from jit_jax.diffusion import conditions
from jit_jax.errors import UserError
from jit_jax.recipe import checks, kinds
from jit_jax.training.older_configs import complete

OWN = """
import jax.numpy as jnp
from jit_jax.diffusion import conditions

def corner(x, batch, key):
    return {'cond': x[:, :x.shape[1] // 4, :x.shape[2] // 2]}

conditions.KINDS['corner_of_mine'] = corner
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A working folder with mycond.py; what it adds is taken out again."""
    (tmp_path / 'mycond.py').write_text(OWN)
    (tmp_path / 'torn.py').write_text('def f(:\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    monkeypatch.setattr(conditions, 'KINDS', dict(conditions.KINDS))
    yield tmp_path
    sys.modules.pop('mycond', None)


def config_of(kind: str, **changes):
    config = uncond.get_config()
    config.condition.kind = kind
    config.condition.update(changes)
    return config


def test_a_module_of_ones_own_is_imported_by_the_checks(own):
    with pytest.raises(UserError, match="no condition 'corner_of_mine'; there are none.*--import"):
        checks.check(config_of('corner_of_mine'))
    config = config_of('corner_of_mine', module='mycond')
    checks.check(config)
    assert checks.condition_slots(config) == (4 * 8, 0, False)  # by what it makes
    config = config_of('corner_of_mine+class', module='mycond')
    checks.check(config)  # fits beside class tokens
    assert checks.condition_slots(config) == (32, 0, True)


@pytest.mark.parametrize(
    'name, sentence',
    [
        ('nowhere', "config.condition.module: nowhere cannot be imported (No module named 'nowher"),
        ('torn', 'torn cannot be imported (invalid syntax (torn.py, line 1)); go where torn.py is'),
        ('mycond.py', "names a module, such as mycond for the file mycond.py; got 'mycond.py'"),
        ('a/mycond', "names a module, such as mycond for the file mycond.py; got 'a/mycond'"),
        ('.mycond', 'names a module'),
    ],
)
def test_what_cannot_be_imported(own, name, sentence):
    with pytest.raises(UserError) as error:
        kinds.import_own(config_of('edges', module=name))
    text = str(error.value)
    assert sentence in text and text.endswith('.') and '\n' not in text


def test_a_run_from_before_there_was_a_module_needs_none(own):
    kinds.import_own({'condition': {'kind': 'edges'}})
    kinds.import_own(config_of('edges'))
    assert 'mycond' not in sys.modules


def test_the_settings_of_a_config_and_the_defaults_of_one_without():
    old = {'kind': 'super_resolution|degraded'}
    assert kinds.condition({'condition': old}) is conditions.make(old['kind'])
    new = old | {'factor': 4, 'hole': [2, 3], 'degradations': 2, 'strength': [0.5, 1]}
    made = conditions.make(
        'super_resolution', factor=4, hole=(2, 3), degradations=2, strength=(0.5, 1)
    )
    assert kinds.condition({'condition': new}, 'super_resolution') is made


def test_a_config_from_before_these_settings_is_complete():
    stored = uncond.get_config().to_dict()
    for key in ('degradations', 'strength', 'module'):
        del stored['condition'][key]
    with pytest.raises(UserError, match='is missing'):
        checks.check(stored)
    checks.check(complete(stored))


@pytest.mark.parametrize('strength', [(1.0, 0.5), (-0.1, 1.0), (0.5,), ('a', 'b')])
def test_a_strength_that_cannot_be(strength):
    with pytest.raises(UserError, match='config.condition.strength'):
        checks.check(config_of('degraded', strength=strength))


def test_degradations_are_one_or_two():
    with pytest.raises(UserError, match='degradations is 3; it must be one of 1, 2'):
        checks.check(config_of('degraded', degradations=3))
