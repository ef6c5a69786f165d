"""A condition of the user's own, in a file beside the runs, through the commands."""

import json
import re
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from shell import SHORT

from jit_jax.diffusion import conditions


@pytest.fixture
def forget(monkeypatch):
    """() → nothing is left of the module, as in a new process. It is so at the end, too."""
    before, paths = dict(conditions.KINDS), list(sys.path)

    def call():
        conditions.KINDS.clear()
        conditions.KINDS.update(before)
        sys.modules.pop('mycond', None)
        sys.path[:] = paths
        conditions.make.cache_clear()

    yield call
    call()


def test_every_command_finds_it_again(in_process, forget, tmp_path):
    """The page's own file; a run of one step, a picture, a report, then without the file."""
    block = re.search(r'```python\n(.*?)```', (ROOT / 'CONTRIBUTING.md').read_text(), re.S)
    (tmp_path / 'mycond.py').write_text(block[1])
    Image.fromarray(np.zeros((50, 40, 3), np.uint8)).save(tmp_path / 'photo.jpg')
    short = [*SHORT, '--config.steps=1', '--config.sample.num=2', '--config.batch_size=8']
    kind = '--config.condition.kind=posters'
    said = in_process(tmp_path, 'train', '--config=cond', *short, kind, code=1)
    assert "no condition 'posters'" in said and '--import=MODULE' in said

    in_process(tmp_path, 'train', '--config=cond', *short, kind, '--import=mycond')
    record = json.loads((tmp_path / 'runs/cond/config.json').read_text())
    assert record['condition']['module'] == 'mycond'
    draw = ('sample', '--workdir=runs/cond', '--num=2', '--steps=1', '--out=out.png')
    for words in ((*draw, '--from=photo.jpg'), ('report', '--workdir=runs/cond')):
        forget()
        in_process(tmp_path, *words)
    assert (tmp_path / 'out.png').exists()

    forget()
    (tmp_path / 'mycond.py').unlink()
    said = in_process(tmp_path, *draw, code=1)
    assert said.startswith('error: config.condition.module: mycond cannot be imported (No module')
