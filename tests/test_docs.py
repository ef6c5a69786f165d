"""What the documents say is so: pages made from code, examples that run, commands whose flags
exist.
"""

import importlib
import os
import re
import shlex
import sys

import jax
import numpy as np
import pytest
from shell import ROOT, TINY

from configs import cond, uncond
from jit_jax import data
from jit_jax.__main__ import MODULES
from jit_jax.commands.command_line import Parser, read_config
from jit_jax.diffusion import conditions
from jit_jax.errors import UserError
from jit_jax.recipe import build, checks

sys.path.insert(0, os.path.join(ROOT, 'docs'))
import configuration
import own

PAGES = [
    'README.md',
    'CONTRIBUTING.md',
    'docs/recipes.md',
    'docs/checkpoints.md',
    'docs/configuration.md',
    'docs/slots.md',
]
PAGES += [
    'docs/glossary.md',
    'docs/evaluation.md',
    'docs/pods.md',
    'docs/scaling.md',
    'docs/performance.md',
]
PAGES += ['docs/unification.md', 'docs/predictions.md', 'docs/few_steps.md']
COMMAND = r'(?:jit-jax [a-z]+|python (?:-m [\w.]+|train\.py))(?: [^`\n#]+)?'


def read(page):
    with open(os.path.join(ROOT, page)) as file:
        return file.read()


def commands(page):
    return [
        shlex.split(found.replace('…', '').rstrip('"'))
        for found in re.findall(COMMAND, read(page))
        if 'jit' in found or 'train.py' in found
    ]


def module(command):
    """The module of a command, by its words."""
    if command[0] == 'jit-jax':
        return importlib.import_module(f'jit_jax.commands.{MODULES.get(command[1], command[1])}')
    return importlib.import_module(
        'jit_jax.commands.train' if command[1] == 'train.py' else command[2]
    )


def flags_of(command) -> list[list[str]]:
    """[name, value] or [name] of each flag, those of `--config.key=value` left out."""
    flags = [word.removeprefix('--').split('=', 1) for word in command if word.startswith('--')]
    return [flag for flag in flags if not flag[0].startswith('config.')]


def test_the_configuration_page_is_what_the_configs_say():
    assert read('docs/configuration.md') == configuration.page(), (
        'run: python docs/configuration.py'
    )


def test_every_key_has_a_comment():
    rows = configuration.recipe()
    config = uncond.get_config('imagenet256_b16')
    keys = {key for key, *_ in rows}
    want = {
        f'{name}.{key}' for name in config if hasattr(config[name], 'keys') for key in config[name]
    } | set(config)
    assert keys == want and all(comment for _, _, comment in rows), [
        key for key, _, comment in rows if not comment
    ]


@pytest.mark.parametrize('page', PAGES)
def test_commands_use_flags_that_exist(page):
    found = commands(page)
    assert found or page in ('CONTRIBUTING.md', 'docs/configuration.md', 'docs/glossary.md')
    for command in found:
        parser = Parser(module(command), 'x')
        for name, *_ in flags_of(command):
            assert f'--{name}' in parser._option_string_actions, command
        config = dict(flag for flag in flags_of(command) if len(flag) == 2).get('config')
        keys = [word for word in command if word.startswith('--config.')]
        if keys:  # raises UserError for a file, a preset or a key that is not there
            read_config(config or 'uncond', [key for key in keys if not re.search('[$<]', key)])


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(
            r'\w\]\(([^)#\s]+)\)|src="([^"]+)"', re.sub('```.*?```', '', read(page), flags=re.S)
        ):
            link = ''.join(link)
            if not link.startswith('http'):
                assert os.path.exists(os.path.join(ROOT, os.path.dirname(page), link)), (
                    f'{page}: {link}'
                )


def test_the_demonstration_cuts_patches_that_do_not_overlap(tmp_path):
    """200 photographs and as many pairs, which the folders' own readers find."""
    own.write_folders(tmp_path)
    photos = data.open_source('folder', path=tmp_path / 'photos', split='train', image_size=40)
    pairs = data.open_source('pairs', path=tmp_path / 'pairs', split='train', image_size=40)
    assert len(photos) == len(pairs) == 190
    images = [photos[i]['image'] for i in range(190)]
    assert len({image.tobytes() for image in images}) == 190
    for i in (0, 77):
        np.testing.assert_array_equal(pairs[i]['image'], images[i])
        assert pairs[i]['cond'].max() == 255 and pairs[i]['cond'].min() < 128


def test_readme_is_short():
    assert len(read('README.md').splitlines()) <= 150


def test_the_tokens_of_the_slots_page_work(monkeypatch):
    """Its block as it stands, in a config that asks for it, through a model of its width."""
    monkeypatch.setattr(conditions, 'KINDS', dict(conditions.KINDS))
    (block,) = re.findall(r'```python\n(.*?)```', read('docs/slots.md'), re.S)
    assert len(block.splitlines()) <= 30
    exec(block, {})
    config = uncond.get_config('folder')
    config.condition.kind = 'super_resolution|colours+super_resolution'
    with pytest.raises(UserError, match='model.token_width=3 and config.model.vocabulary=0'):
        checks.check(config)
    config.model.token_width, config.model.variant = 3, TINY
    checks.check(config)
    assert checks.condition_slots(config) == (64, 16, False)
    x = jax.random.uniform(jax.random.key(0), (4, 64, 64, 3), minval=-1, maxval=1)
    conditioning = build.condition(config)(x, {}, jax.random.key(1))
    told = conditioning['cond_tokens_valid'].all(1)
    first = conditioning['cond_tokens'][told, 0]
    np.testing.assert_allclose(first, x[told, :16, :16].mean((1, 2)), atol=1e-6)
    assert 0 < told.sum() < 4 and (conditioning['cond_tokens_valid'].any(1) == told).all()
    net, z, t = build.network(config), x, np.full(4, 0.5, np.float32)
    out, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), z, t, **conditioning)
    assert out.shape == x.shape


def test_the_condition_of_the_contributing_page_works(tiny, params):
    """Its two blocks as they stand, then a config that asks for it, alone and mixed, through the
    model.
    """
    space = {}
    before = dict(conditions.KINDS)
    try:
        blocks = re.findall(r'```python\n(.*?)```', read('CONTRIBUTING.md'), re.S)
        assert len(blocks) == 2 and len(blocks[0].splitlines()) <= 20
        for block in blocks:
            exec(block, space)
        space['test_posters']()
        config = cond.get_config()
        x = jax.random.uniform(jax.random.key(0), (4, 32, 32, 3), minval=-1, maxval=1)
        for kind in ('posters', 'posters|inpaint'):
            config.condition.kind = kind
            checks.check(config)
            conditioning = build.condition(config)(x, {}, jax.random.key(1))
            out = tiny().apply({'params': params}, x, np.full(4, 0.5, np.float32), **conditioning)
            assert out.shape == x.shape and bool(np.isfinite(out).all())
    finally:
        conditions.KINDS.clear()
        conditions.KINDS.update(before)
