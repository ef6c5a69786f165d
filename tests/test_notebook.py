"""The notebook, executed from its first cell to its last with a few steps of a tiny model; and what is committed of it."""

import json
import os

import nbformat
from nbclient import NotebookClient
from shell import ROOT

PATH = os.path.join(ROOT, 'notebooks', 'jit_jax.ipynb')


def outputs(notebook, kind):
    return [
        output
        for cell in notebook.cells
        for output in cell.get('outputs', [])
        if kind in output.get('data', {}) or output.get('name') == kind
    ]


def test_every_cell_works(env, tmp_path, monkeypatch):
    for name, value in (
        env | {'JIT_JAX_SHORT': '1', 'PYTHONPATH': ROOT, 'JUPYTER_PLATFORM_DIRS': '1'}
    ).items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(PATH, as_version=4)
    notebook.cells[1].source = notebook.cells[1].source.replace(
        "OFFICIAL = ''", "OFFICIAL = 'runs/uncond'"
    )  # loads as official weights do
    for cell in notebook.cells:
        cell.source = cell.get('source').replace(
            'np.array([207, 360, 387, 974])', 'np.array([2, 3, 5, 9])'
        )
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_name='python3',
        resources={'metadata': {'path': str(tmp_path)}},
    )
    client.execute()
    text = ''.join(output['text'] for output in outputs(notebook, 'stdout'))
    assert (
        'step 4 of 4' in text
        and 'Resuming runs/uncond at step 4, with steps changed.' in text
        and 'Done: step 6' in text
    )
    assert len(outputs(notebook, 'image/png')) >= 8
    assert {'uncond', 'cond'} == set(os.listdir(tmp_path / 'runs'))


def test_committed_outputs_are_real_and_small():
    notebook = nbformat.read(PATH, as_version=4)
    assert os.path.getsize(PATH) < 400_000
    assert [cell.execution_count for cell in notebook.cells if cell.cell_type == 'code'] == list(
        range(1, 10)
    )
    assert len(outputs(notebook, 'image/png')) >= 7 and not [
        o for cell in notebook.cells for o in cell.get('outputs', []) if o.output_type == 'error'
    ]
    text = ''.join(output['text'] for output in outputs(notebook, 'stdout'))
    assert (
        'step 2200 of 2200' in text
        and 'step 500 of 500' in text
        and ROOT not in json.dumps(notebook)
        and '/tmp' not in json.dumps(notebook)
    )
