"""The notebook, executed from its first cell to its last with a few steps of a tiny model; and
what is committed of it.
"""

import importlib.util
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import jax
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from shell import ROOT

from jit_jax.commands.convert import run_config
from jit_jax.model.official import from_official
from jit_jax.training.weights import write_weights

PATH = os.path.join(ROOT, 'notebooks', 'jit_jax.ipynb')
OFFICIAL = Path(ROOT) / 'tests/goldens/jit_tiny_256tok_weights.npz'


def outputs(notebook, kind):
    found = []
    for cell in notebook.cells:
        for output in cell.get('outputs', []):
            if kind in output.get('data', {}) or output.get('name') == kind:
                found.append(output)
    return found


def text_of(notebook) -> str:
    return ''.join(output['text'] for output in outputs(notebook, 'stdout'))


def write_official(folder: Path) -> None:
    """A folder as `jit-jax convert` makes it of official weights, here of a tiny model."""
    architecture, params = from_official(dict(np.load(OFFICIAL)), class_start=1)
    write_weights(folder, run_config(architecture, []), params, {}, step=0)


def installs(monkeypatch, folder) -> tuple[list[str], str]:
    """The pip command of the first cell, without jit_jax, and what must stay as it is."""
    commands = []

    def run(command, **how):
        commands.append(command)
        return SimpleNamespace(returncode=0)

    with monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(importlib.util, 'find_spec', lambda name: None)
        patch.setattr(subprocess, 'run', run)
        exec(nbformat.read(PATH, as_version=4).cells[1].source, {})
    (command,) = commands
    return command, (folder / 'loaded.txt').read_text()


def test_it_installs_a_clone_or_the_index_and_upgrades_nothing_that_is_loaded(
    tmp_path, monkeypatch
):
    command, kept = installs(monkeypatch, tmp_path)
    assert command[-1] == 'jit_jax' and command[-2].startswith('jax')
    assert not {'-U', '--upgrade'} & set(command) and command[-3] == 'loaded.txt'
    assert f'numpy=={np.__version__}\n' in kept and f'jax=={jax.__version__}\n' in kept
    notebooks = tmp_path / 'clone/notebooks'
    notebooks.mkdir(parents=True)
    (tmp_path / 'clone/configs').mkdir()
    (tmp_path / 'clone/configs/uncond.py').touch()
    command, _ = installs(monkeypatch, notebooks)
    assert command[-1] == str(tmp_path / 'clone')


@pytest.mark.long
def test_every_cell_works(env, tmp_path, monkeypatch):
    short = {'JIT_JAX_SHORT': '1', 'PYTHONPATH': ROOT, 'JUPYTER_PLATFORM_DIRS': '1'}
    for name, value in (env | short).items():
        monkeypatch.setenv(name, value)
    write_official(tmp_path / 'official')
    notebook = nbformat.read(PATH, as_version=4)
    changes = {
        "OFFICIAL = ''": "OFFICIAL = 'official'",
        'np.array([207, 360, 387, 974])': 'np.array([2, 3, 5, 9])',
    }
    for cell in notebook.cells:
        for before, after in changes.items():
            cell.source = cell.source.replace(before, after)
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_name='python3',
        resources={'metadata': {'path': str(tmp_path)}},
    )
    client.execute()
    text = text_of(notebook)
    assert 'step 4 of 4' in text and 'Done: step 6' in text
    assert 'Resuming runs/uncond at step 4, with ' in text and 'steps changed.' in text
    assert 'OFFICIAL is empty' not in text
    assert len(outputs(notebook, 'image/png')) >= 8
    assert {'uncond', 'cond'} == set(os.listdir(tmp_path / 'runs'))


def test_committed_outputs_are_real_and_small():
    notebook = nbformat.read(PATH, as_version=4)
    assert os.path.getsize(PATH) < 400_000
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == 'code']
    assert counts == list(range(1, 10))
    assert len(outputs(notebook, 'image/png')) >= 7
    for cell in notebook.cells:
        for output in cell.get('outputs', []):
            assert output.output_type != 'error'
    text = text_of(notebook)
    assert 'step 2200 of 2200' in text and 'step 500 of 500' in text
    content = json.dumps(notebook)
    assert ROOT not in content and '/tmp' not in content
