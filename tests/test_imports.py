"""The rooms of the house: who may import whom, and that importing does nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / 'jit_jax'

# From the ground up: a room may import what stands above it in this list, and nothing below.
ROOMS = [
    'errors',
    'output',
    'hardware',
    'data',
    'model',
    'diffusion',
    'training',
    'configs',
    'recipe',
    'resume',
    'feasibility',
    'trained',
    'evaluation',
    'loop',
    'commands',
    '__init__',
    '__main__',
]

# Beyond the order: what a file or folder must not know although it could, and libraries that some
# do without.
NEVER = {
    'model/sequence.py': ('flax',),
    'model/attention.py': ('flax',),
    'diffusion/objective.py': ('flax',),
    'diffusion/conditions.py': ('flax',),
    'diffusion/samplers.py': ('flax', 'jit_jax.model'),
    'diffusion/guidance.py': ('flax', 'jit_jax.model'),
    'data': ('jax', 'flax', 'tensorflow', 'torch'),  # hosts ship numpy arrays
    'output': ('jax', 'flax', 'tensorflow', 'torch'),
    'evaluation': ('tensorflow', 'scipy'),
}
FILES = sorted(
    path for path in PACKAGE.rglob('*.py') if path.relative_to(PACKAGE).parts[0] != 'configs'
)


def relative(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def room(path: Path) -> str:
    """`data` for jit_jax/data/sources.py, `loop` for jit_jax/loop.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imports(path: Path) -> set[str]:
    """Every module a file imports, anywhere in it, by full name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f'{path.name} has a relative import'
            found |= {f'{node.module}.{alias.name}' for alias in node.names}
    return found


def rooms_of(names: set[str]) -> set[str]:
    """The rooms among full names: `jit_jax.data.sources.Source` is `data`."""
    return {name.split('.')[1] for name in names if name.startswith('jit_jax.')}


@pytest.mark.parametrize('path', FILES, ids=relative)
def test_imports_come_from_rooms_above(path):
    name = room(path)
    assert name in ROOMS, f'{path} has no room; add it to the list'
    for other in rooms_of(imports(path)) - {name}:
        assert ROOMS.index(other) < ROOMS.index(name), (
            f'{name} imports {other}, which stands below it'
        )


def at_the_top(path: Path) -> set[Path]:
    """The files of the package that a file imports when it is itself imported."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('jit_jax'):
            for name in [node.module, *(f'{node.module}.{alias.name}' for alias in node.names)]:
                found.add(ROOT / f'{name.replace(".", "/")}.py')
    return found & set(FILES)


def test_no_file_imports_itself_by_way_of_others():
    """A circle works or fails by which of its files is imported first."""
    left = {path: at_the_top(path) - {path} for path in FILES}
    while True:
        done = {path for path, needed in left.items() if not needed & left.keys()}
        if not done:
            break
        left = {path: needed for path, needed in left.items() if path not in done}
    assert not left, f'these import each other in a circle: {sorted(map(relative, left))}'


@pytest.mark.parametrize('place', NEVER)
def test_rooms_do_not_know_what_they_must_not(place):
    files = [
        path for path in FILES if relative(path) == place or relative(path).startswith(f'{place}/')
    ]
    assert files
    for path in files:
        for name in imports(path):
            for forbidden in NEVER[place]:
                assert f'{name}.'.startswith(f'{forbidden}.') is False, f'{path} imports {name}'


def test_every_room_of_the_list_is_there():
    there = {room(path) for path in FILES} | {'configs'}
    assert there == set(ROOMS)


def test_the_walk_finds_imports(tmp_path):
    (tmp_path / 'x.py').write_text(
        'import jax.numpy as jnp\n'
        'def f():\n  from jit_jax import model, data\n'
        'def main():\n  from jit_jax import loop'
    )
    found = imports(tmp_path / 'x.py')
    assert found == {'jax.numpy', 'jit_jax.model', 'jit_jax.data', 'jit_jax.loop'}
    assert rooms_of(found) == {'model', 'data', 'loop'}


IMPORT = """
import importlib, os, sys, threading
before = dict(os.environ)
for name in sys.argv[1:]:
    importlib.import_module(name)
from jax._src import xla_bridge
assert not xla_bridge._backends, 'an import started a backend'
from jax._src.distributed import global_state
assert global_state.client is None, 'an import joined a cluster'
assert dict(os.environ) == before, {k: v for k, v in os.environ.items() if before.get(k) != v}
assert not os.listdir('.'), os.listdir('.')
mine = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
assert not mine, mine
"""


def test_importing_has_no_effect(tmp_path):
    names = [
        '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')
        for path in FILES
    ]
    done = subprocess.run(
        [sys.executable, '-c', IMPORT, *names], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout == done.stderr == '', done.stdout + done.stderr
