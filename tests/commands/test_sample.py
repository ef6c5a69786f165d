"""The sample command: what its flags ask for."""

import jax
import numpy as np
import pytest
from PIL import Image

from configs import cond, uncond
from jit_jax import data, trained
from jit_jax.diffusion.generate import Settings
from jit_jax.diffusion.objective import Diffusion
from jit_jax.output import images
from jit_jax.recipe import photographs

CONFIG = uncond.get_config().to_dict() | {'condition': {'kind': 'edges'}}


def test_flags_say_what_is_drawn(command, tiny, monkeypatch, tmp_path):
    config = cond.get_config('imagenet256_b16_class').to_dict() | {'classes': list('abcde')}
    own = Settings('heun', 50, 1.0, (0.1, 1.0))
    model = trained.Model(tiny(), Diffusion(noise_scale=1.0), own, config, 3)
    loaded, asked = [], []

    def load(*arguments):
        loaded.append(arguments)
        return model, 'weights'

    def draw(model, params, key, num, conditioning, settings, *, batch_size, begin):
        assert begin is None
        asked.append((params, num, conditioning['label'].tolist(), settings, batch_size, key))
        yield np.zeros((num, 32, 32, 3), np.uint8)

    monkeypatch.setattr(trained, 'load', load)
    monkeypatch.setattr(trained, 'draw', draw)
    flags = ('--ema=ema2', '--seed=7', '--num=3', '--batch=2', '--label=c,0')
    how = ('--steps=4', '--sampler=euler', '--guidance=2.5', '--t_eps=0.3')
    how += ('--skip_blocks=1', '--skip_scale=2')
    for words in (flags, flags + how):
        code, _, said = command('sample', '--workdir=run', *words, f'--out={tmp_path}/images.npz')
        assert code == 0, said
    assert loaded == [('run', 'ema2')] * 2
    changed = Settings('euler', 4, 2.5, (0.1, 1.0), 0.3, (1,), 2.0)
    for (*found, key), settings in zip(asked, (own, changed), strict=True):
        assert found == ['weights', 3, [2, 0, 2], settings, 2]
        assert key == jax.random.key(7)


@pytest.fixture
def run_of(tiny, monkeypatch):
    """(kind of condition) → nothing: `trained.load` gives a model of a run that learned it, and
    `trained.draw` what it was asked for instead of images.
    """
    asked = []

    def use(kind):
        config = uncond.get_config()
        config.condition.kind = kind
        own = Settings('euler', 1)
        model = trained.Model(tiny(), Diffusion(noise_scale=1.0), own, config.to_dict(), 3)
        monkeypatch.setattr(trained, 'load', lambda path, ema: (model, 'weights'))

    def draw(model, params, key, num, conditioning, settings, *, batch_size, begin):
        asked.append((conditioning, begin))
        yield np.full((num, 32, 32, 3), 200, np.uint8)

    monkeypatch.setattr(trained, 'draw', draw)
    use.asked = asked
    return use


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    (tmp_path / 'photos/more').mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / 'photos/b.png')
    Image.fromarray(pixels[::-1]).save(tmp_path / 'photos/more/c.png')
    return str(tmp_path / 'photos/b.png')


def test_a_photograph_is_a_condition_and_what_was_done_is_said(run_of, command, photo, tmp_path):
    run_of('edges')
    words = ('sample', '--workdir=run', f'--out={tmp_path}/out.png', '--num=4')
    code, out, err = command(*words, f'--cond={photo}')
    assert code == 0, err
    assert out.splitlines()[0] == f'{photo}, 60×40: centre crop, scaled to 32×32 pixels.'
    assert command(*words, f'--cond={tmp_path}/photos', '--fit=resize')[0] == 0
    (one, _), (two, _) = run_of.asked
    code, out, _ = command(*words[:-1], '--num=1', f'--cond={tmp_path}/photos')
    assert code == 0 and 'Of 2 pictures the first 1 are used; --num=2 takes all.\n' in out
    small = np.asarray(data.center_crop(Image.open(photo), 32))
    np.testing.assert_array_equal(one['cond'], [small / np.float32(127.5) - 1] * 4)
    cond = two['cond']
    assert (cond[0] == cond[2]).all() and (cond[1] == cond[3]).all() and (cond[0] != cond[1]).any()


def test_a_condition_is_made_from_a_photograph(run_of, command, photo, tmp_path):
    """Of the kind that is named, by the seed; the grid has condition, result and truth."""
    words = ('sample', '--workdir=run', f'--out={tmp_path}/out.png', '--num=2', '--seed=5')
    run_of('inpaint|grayscale')
    for kind in ('inpaint', 'grayscale'):
        code, _, err = command(*words, f'--from={photo}', f'--kind={kind}')
        assert code == 0, err
    (hole, begin), (gray, _) = run_of.asked
    assert begin is None and gray.keys() == {'cond'} and np.ptp(gray['cond'], axis=-1).max() < 1e-6
    assert (hole['cond_valid'][0] != hole['cond_valid'][1]).any()
    expected, _ = photographs.condition_rows({**CONFIG}, [photo], 1)
    np.testing.assert_allclose(hole['cond'][0], expected['cond'][0], atol=1e-6)
    picture = np.asarray(Image.open(tmp_path / 'out.png'))
    group = 3 * 96 + 2 * images.GAP
    assert picture.shape[1] == 2 * images.MARGIN + group  # three tiles


def test_known_pixels_are_kept(run_of, command, photo, tmp_path):
    """Of a picture and of held-out images; in the archive bit for bit, around what was drawn."""
    run_of('inpaint|edges')
    image = Image.open(photo).crop((0, 0, 32, 32)).convert('RGBA')
    image.paste((0, 0, 0, 0), (8, 0, 32, 32))
    image.save(tmp_path / 'holed.png')
    words = ('sample', '--workdir=run', f'--out={tmp_path}/out.npz', '--num=3', '--keep_known')
    code, _, err = command(*words, f'--cond={tmp_path}/holed.png', '--kind=inpaint')
    assert code == 0, err
    made = np.load(tmp_path / 'out.npz')['arr_0']
    pixels = np.asarray(image)[..., :3]
    np.testing.assert_array_equal(made[:, :, :8], np.stack([pixels[:, :8]] * 3))
    assert (made[:, :, 8:] == 200).all()
    code, _, err = command(*words, f'--from={photo}', '--kind=inpaint')
    assert code == 0 and (np.load(tmp_path / 'out.npz')['arr_0'] != 200).any()


def test_beginning_from_a_photograph(run_of, command, photo, tmp_path):
    words = ('sample', '--workdir=run', f'--out={tmp_path}/out.png', '--num=2', f'--from={photo}')
    small = np.asarray(data.center_crop(Image.open(photo), 32)) / np.float32(127.5) - 1
    for kind, flags, keys in (
        ('none', (), set()),
        ('class', (), {'label'}),
        ('class', ('--label=3',), {'label'}),
        ('edges', (), {'cond'}),
        ('edges', (f'--cond={photo}',), {'cond'}),
        ('edges|class', ('--label=3',), {'label'}),
    ):
        run_of(kind)
        code, _, err = command(*words, *flags, '--start=0.4')
        assert code == 0, err
        conditioning, (t, x) = run_of.asked[-1]
        assert conditioning.keys() == keys and t == 0.4
        np.testing.assert_allclose(x, [small] * 2, atol=1e-6)
    run_of('none')
    assert command(*words, '--start=0.4')[0] == 0
    picture = np.asarray(Image.open(tmp_path / 'out.png'))
    assert picture.shape[1] == 2 * images.MARGIN + 2 * 96 + images.GAP  # picture and result


def test_references_of_each_image_in_turn(run_of, command, photo, tmp_path):
    """Without a label a run that learned both draws every class."""
    run_of('references+class')
    other = str(tmp_path / 'photos/more/c.png')
    out = f'--out={tmp_path}/a.png'
    words = ('sample', '--workdir=run', '--num=3', f'--reference={photo}', f'--reference={other}')
    code, _, err = command(*words, out)
    assert code == 0, err
    asked, begin = run_of.asked[-1]
    assert asked.keys() == {'references', 'label'} and begin is None
    assert asked['label'].tolist() == [0, 1, 2] and len(asked['references']) == 1
    config = uncond.get_config()
    config.condition.kind = 'references'
    given = photographs.reference_rows(config.to_dict(), [[photo, other]], 3)
    np.testing.assert_array_equal(asked['references'][0], given[0])
    assert (given[0][0] != given[0][1]).any() and (given[0][0] == given[0][2]).all()
    assert command(*words, '--label=4', out)[0] == 0
    assert run_of.asked[-1][0]['label'].tolist() == [4, 4, 4]
    code, _, err = command(*words[:-1], f'--reference={other},{photo}', out)
    assert code == 1 and 'name as many pictures in each --reference' in err


def test_held_out_images_of_one_kind(run_of, command, env, monkeypatch, tmp_path):
    monkeypatch.setenv('TFDS_DATA_DIR', env['TFDS_DATA_DIR'])
    run_of('inpaint|edges')
    words = ('sample', '--workdir=run', f'--out={tmp_path}/out.png', '--num=3', '--kind=edges')
    code, _, err = command(*words)
    assert code == 0, err
    assert run_of.asked[0][0].keys() == {'cond'}
