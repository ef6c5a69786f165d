"""The sample command: condition images from files."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from configs import cond
from jit_jax import trained
from jit_jax.commands.sample import load_condition
from jit_jax.data.palette import voc_colors
from jit_jax.diffusion.generate import Settings
from jit_jax.diffusion.objective import Diffusion
from jit_jax.errors import UserError

NET = SimpleNamespace(patch=2, channels=3)
GRAY = SimpleNamespace(patch=2, channels=1)


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return str(path)


def test_a_condition_is_read_as_training_reads_it(tmp_path):
    """Sixteen bits are scaled, one channel is luma, and EXIF turns the picture."""
    sixteen = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4369
    cond = load_condition([save(tmp_path / '16.png', sixteen)], 2, GRAY)
    assert cond.keys() == {'cond'} and cond['cond'].dtype == np.float32
    expected = np.arange(16).reshape(4, 4, 1) * 17 / 127.5 - 1
    np.testing.assert_allclose(cond['cond'], [expected] * 2, atol=1e-6)

    green = np.zeros((4, 2, 3), np.uint8)
    green[:2, :, 1] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    cond = load_condition([save(tmp_path / 'green.png', green, exif=exif)], 1, GRAY)
    luma = np.repeat([0, 0, 150, 150], 2).reshape(1, 4, 2, 1)
    np.testing.assert_allclose(cond['cond'], luma / 127.5 - 1, atol=1e-6)


def test_transparent_patches_are_missing(tmp_path):
    rgba = np.full((4, 6, 4), 255, np.uint8)
    rgba[..., :3] = 40
    rgba[3, 0, 3] = 254  # the first patch of the second row
    clear, whole = save(tmp_path / 'a.png', rgba), save(tmp_path / 'b.png', rgba[..., :3])
    cond = load_condition([clear, whole], 3, NET)
    live = [True, True, True, False, True, True]
    assert cond['cond_valid'].tolist() == [live, [True] * 6, live]
    np.testing.assert_allclose(cond['cond'][:, :2], 40 / 127.5 - 1, atol=1e-6)
    assert load_condition([whole], 1, NET).keys() == {'cond'}


def test_refused_conditions(tmp_path):
    gray = np.zeros((4, 4), np.uint8)
    small, large = save(tmp_path / 's.png', gray), save(tmp_path / 'l.png', gray.repeat(2, 0))
    with pytest.raises(UserError, match='--cond: all condition images must have one size'):
        load_condition([small, large], 2, NET)
    with pytest.raises(UserError, match='--cond: There is no file .*x.png'):
        load_condition([str(tmp_path / 'x.png')], 1, NET)
    (tmp_path / 'text.png').write_text('<html>')
    with pytest.raises(UserError, match='--cond: .*text.png cannot be read as an image'):
        load_condition([str(tmp_path / 'text.png')], 1, NET)
    clear = np.zeros((1, 1, 4), np.uint8)  # whole pictures are held against what the run learned
    with pytest.raises(UserError, match='--cond: .*2 to 32 pixels in steps of 2.; got 1×1'):
        load_condition([save(tmp_path / 'dot.png', clear)], 1, NET)


def test_numbers_of_classes_get_the_colours_of_training(tmp_path):
    numbers = np.arange(256, dtype=np.uint8).reshape(16, 16) % 12
    cond = load_condition([save(tmp_path / 'map.png', numbers)], 1, NET, 'voc')['cond']
    expected = voc_colors()[numbers].astype(np.float32) / 127.5 - 1
    np.testing.assert_array_equal(cond[0], expected)


def test_flags_say_what_is_drawn(command, tiny, monkeypatch, tmp_path):
    config = cond.get_config('imagenet256_b16_class').to_dict() | {'classes': list('abcde')}
    own = Settings('heun', 50, 1.0, (0.1, 1.0))
    model = trained.Model(tiny(), Diffusion(noise_scale=1.0), own, config, 3)
    loaded, asked = [], []

    def load(*arguments):
        loaded.append(arguments)
        return model, 'weights'

    def draw(model, params, key, num, conditioning, settings, *, batch_size):
        asked.append((params, num, conditioning['label'].tolist(), settings, batch_size, key))
        yield np.zeros((num, 32, 32, 3), np.uint8)

    monkeypatch.setattr(trained, 'load', load)
    monkeypatch.setattr(trained, 'draw', draw)
    flags = ('--ema=ema2', '--seed=7', '--num=3', '--batch=2', '--label=c,0')
    how = ('--steps=4', '--sampler=euler', '--guidance=2.5')
    for words in (flags, flags + how):
        code, _, said = command('sample', '--workdir=run', *words, f'--out={tmp_path}/images.npz')
        assert code == 0, said
    assert loaded == [('run', 'ema2')] * 2
    changed = Settings('euler', 4, 2.5, (0.1, 1.0))
    for (*found, key), settings in zip(asked, (own, changed), strict=True):
        assert found == ['weights', 3, [2, 0, 2], settings, 2]
        assert key == jax.random.key(7)
