"""Several runs on one page."""

import json
import re

import numpy as np
import pytest

from configs import uncond
from jit_jax.evaluation import comparison
from jit_jax.output.images import grid, save_png


@pytest.fixture
def two(tmp_path):
    """Folders of two runs with other seeds and losses: [(folder, config), …]."""
    runs = []
    for name, seed, loss in (('first', 0, 0.5), ('second', 7, 0.25)):
        folder = tmp_path / name
        config = uncond.get_config().to_dict() | {'seed': seed}
        save_png(folder / 'samples/0000004.png', grid(np.zeros((4, 32, 32, 3), np.uint8), 2))
        lines = [{'step': 2, 'loss': 0.9}, {'step': 4, 'loss': loss}]
        (folder / 'metrics.jsonl').write_text(''.join(json.dumps(one) + '\n' for one in lines))
        runs.append((folder, config))
    entry = {'psnr': 21.5}
    (tmp_path / 'second/evaluation.json').write_text(json.dumps({'x': entry}))
    return runs


def test_what_runs_share_and_where_they_differ(two, tmp_path):
    folders, configs = zip(*two, strict=True)
    path = comparison.write([str(folder) for folder in folders], list(configs), f'{tmp_path}/out')
    text = open(path).read()
    assert '<h1>first · second</h1>' in text
    assert '<tr><th>seed</th><td>0</td><td>7</td></tr>' in text
    assert '<tr><th>loss</th><td>0.5</td><td>0.25</td></tr>' in text
    assert '<tr><th>psnr</th><td>–</td><td>21.5</td></tr>' in text
    assert '<th>batch_size</th>' not in text, 'a key that does not differ'
    pictures = re.findall(r'alt="([^"]+)"', text)
    assert pictures == ['chart-loss', 'newest-0', 'newest-1']
    assert 'second, step 4' in text


def test_runs_of_one_name_are_told_apart_by_their_paths():
    assert comparison.run_names(['a/run', 'b/run']) == ['a/run', 'b/run']
    assert comparison.run_names(['a/x', 'b/y']) == ['x', 'y']


def test_the_command_compares_what_it_is_given(two, tmp_path, command):
    for folder, config in two:
        (folder / 'config.json').write_text(json.dumps(config))
    folders = [str(folder) for folder, _ in two]
    code, said, _ = command('report', *folders, f'--out={tmp_path}/side')
    assert code == 0 and said.strip() == f'{tmp_path}/side/index.html compares 2 runs.'
    assert command('report')[2].startswith('error: report needs a run folder')
