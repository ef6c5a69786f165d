"""`jit-jax preview`: what a model is about to train on, without training."""

import numpy as np
import pytest
from PIL import Image

from jit_jax import loop


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / 'photos/val').mkdir(parents=True)
    for name in ('train', 'test', 'val'):
        (tmp_path / 'photos' / name).mkdir(exist_ok=True)
        for i in range({'train': 5, 'test': 3, 'val': 2}[name]):
            image = Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8))
            image.save(tmp_path / f'photos/{name}/{i}.png')
    return tmp_path / 'photos'


def test_a_picture_and_what_was_found(photos, command, monkeypatch, tmp_path):
    def too_much(*args, **kwargs):
        raise AssertionError('nothing is trained')

    monkeypatch.setattr(loop, 'train', too_much)
    monkeypatch.chdir(tmp_path)
    words = ['--config=cond:folder_cpu', f'--config.data.path={photos}', '--num=3']
    code, out, err = command('preview', *words, '--config.condition.kind=inpaint')
    assert code == 0, err
    assert err.count('A batch of') == 1, err
    assert 'A batch of 8 shows each of the 5 training images about 1.6 times' in err
    assert out.splitlines() == [
        f'{photos}: 5 images for training, 3 held out (in test/); ignored: 2 in val/; fewer than '
        '100 images are soon learned by heart.',
        'preview.png shows 3 images as the first step of training gets them, '
        'config.condition.kind=inpaint.',
    ]
    assert Image.open('preview.png').size[0] > 4 * 96
    assert sorted(path.name for path in tmp_path.iterdir()) == ['photos', 'preview.png']
