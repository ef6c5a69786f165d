"""The rooms of the house: who may import whom, and that importing does nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / 'jit_jax'
COMMAND = 99  # may import anything, inside a function or out; nothing imports it
LAYERS = {
    'sequence': 0, 'diffusion': 0, 'sharding': 0, 'metrics': 0, 'speed': 0, 'manifest': 0, 'cli': 0, 'data': 0, 'fid': 0,
    'attention': 1, 'conditions': 1, 'sampling': 1,
    'model': 2,
    'state': 3, 'convert': 3, 'generate': 3,
    'step': 4, 'checkpoint': 4,
    'build': 5, 'evaluation': 5,
    'preview': 6, 'api': 6,
    'report': 7, 'measure': 7,
    'loop': 8,
    'replay': COMMAND, 'sample': COMMAND, 'evaluate': COMMAND, 'export': COMMAND, 'compile': COMMAND, '__init__': COMMAND,
}  # fmt: skip
# Beyond layers: what a room must not know although it lies lower, and libraries that some do without.
NEVER = {
    'model': ('jit_jax.diffusion', 'jit_jax.metrics', 'jit_jax.data'),
    'sampling': ('flax', 'jit_jax.sharding', 'jit_jax.sequence'),
    'diffusion': ('flax',),
    'sequence': ('flax',),
    'attention': ('flax',),
    'conditions': ('flax',),
    'data': ('jax', 'flax', 'tensorflow', 'torch'),  # hosts ship numpy arrays
    'metrics': ('jax', 'flax', 'tensorflow', 'torch'),
    'fid': ('tensorflow', 'scipy'),
}
FILES = sorted(path for path in PACKAGE.rglob('*.py'))


def room(path: Path) -> str:
    """`data` for jit_jax/data/sources.py, `model` for jit_jax/model.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imports(path: Path) -> set[str]:
    """Every module a file imports, anywhere in it, by full name; but not what `main`, a file's command, imports."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if not (isinstance(node, ast.FunctionDef) and node.name == 'main')]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f'{path.name} has a relative import'
            found |= {f'{node.module}.{alias.name}' for alias in node.names}
    return found


def rooms_of(names: set[str]) -> set[str]:
    """The rooms among full names: `jit_jax.data.sources.Source` is `data`."""
    inside = {name.split('.')[1] for name in names if name.startswith('jit_jax.')}
    return {name for name in inside if (PACKAGE / name).is_dir() or (PACKAGE / f'{name}.py').exists()}


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_come_from_lower_layers(path):
    name = room(path)
    assert name in LAYERS, f'{path} has no layer; add it to the table'
    for other in rooms_of(imports(path)) - {name}:
        assert LAYERS[other] < LAYERS[name], f'{name} (layer {LAYERS[name]}) imports {other} (layer {LAYERS[other]})'


@pytest.mark.parametrize('path', [path for path in FILES if room(path) in NEVER], ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_do_not_know_what_they_must_not(path):
    for name in imports(path):
        assert not any(name == n or name.startswith(n + '.') for n in NEVER[room(path)]), f'{room(path)} imports {name}'


def test_the_walk_finds_imports(tmp_path):
    (tmp_path / 'x.py').write_text(
        'import jax.numpy as jnp\ndef f():\n  from jit_jax import model, data\ndef main():\n  from jit_jax import loop'
    )
    found = imports(tmp_path / 'x.py')
    assert found == {'jax.numpy', 'jit_jax.model', 'jit_jax.data'} and rooms_of(found) == {'model', 'data'}


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


def names(commands: bool) -> list[str]:
    found = ['.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__') for path in FILES]
    return [name for name in found if (LAYERS.get(name.split('.')[1] if '.' in name else '__init__') == COMMAND) == commands]


def import_them(names, cwd):
    done = subprocess.run([sys.executable, '-c', IMPORT, *names], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == done.stderr == '', done.stdout + done.stderr


def test_importing_has_no_effect(tmp_path):
    import_them(names(commands=False), tmp_path)


@pytest.mark.parametrize('name', names(commands=True))
def test_importing_a_command_has_no_effect(name, tmp_path):
    import_them([name], tmp_path)  # one by one: commands share names of flags
