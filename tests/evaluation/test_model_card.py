"""The card of exported weights."""

import json
import re

import numpy as np
from PIL import Image

from configs import uncond
from jit_jax.evaluation import model_card
from jit_jax.output.images import grid, save_png
from jit_jax.training.weights import read_weights


def folder_of_a_run(tmp_path):
    config = uncond.get_config().to_dict()
    config['data']['path'] = '/home/somebody/pictures/cats/'
    config['condition']['kind'] = 'edges|class'
    picture = grid(np.zeros((4, 32, 32, 3), np.uint8), 2)
    save_png(tmp_path / 'run/samples/0000004.png', picture)
    line = {'step': 4, 'loss': 0.25, 'images_per_second': 8.0}
    (tmp_path / 'run/metrics.jsonl').write_text(json.dumps(line) + '\n')
    (tmp_path / 'run/evaluation.json').write_text(json.dumps({'x': {'psnr': 21.53}}))
    return str(tmp_path / 'run'), config, picture


def test_a_card_has_pictures_numbers_and_how_to_load(tmp_path):
    workdir, config, picture = folder_of_a_run(tmp_path)
    path = model_card.write(f'{tmp_path}/small', workdir, config, 'ema1', 4)
    assert path == f'{tmp_path}/small/README.md'
    text = open(path).read()
    assert text.startswith('---\nlibrary_name: jit_jax\n') and '\n# small\n' in text
    assert 'averaged weights, ema1, at step 4' in text
    assert '![samples](samples.png)' in text
    np.testing.assert_array_equal(Image.open(tmp_path / 'small/samples.png'), picture)
    for row in ('| condition | edges\\|class |', '| images | cats |', '| psnr | 21.53 |'):
        assert row in text, row
    assert "jit_jax.load('small')" in text and 'num=16)  # uint8 [16, 32, 32, 3]' in text
    written = re.search(r'```json\n(.*?)\n```', text, re.S).group(1)
    assert json.loads(written)['condition']['kind'] == 'edges|class'


def test_a_card_beside_a_file_has_its_name_and_overwrites_no_readme(tmp_path):
    workdir, config, _ = folder_of_a_run(tmp_path)
    (tmp_path / 'README.md').write_text('mine')
    assert model_card.write(f'{tmp_path}/a.safetensors', workdir, config, 'params', 4) == (
        f'{tmp_path}/a.md'
    )
    assert (tmp_path / 'README.md').read_text() == 'mine'
    assert '![samples](a.png)' in (tmp_path / 'a.md').read_text()


def test_an_export_has_a_card_and_is_still_read(tmp_path, finished, command):
    cwd, _ = finished
    words = ('export', f'--workdir={cwd}/runs/uncond', f'--out={tmp_path}/small')
    code, said, _ = command(*words)
    assert code == 0 and said.endswith(f'Its model card: {tmp_path}/small/README.md\n')
    assert (tmp_path / 'small/samples.png').exists()
    _, tree, step = read_weights(tmp_path / 'small')
    assert step == 12 and tree
