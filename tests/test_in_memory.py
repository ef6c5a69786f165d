"""Training on images in memory: started, gone on with, and what needs them afterwards."""

import json

import numpy as np
import pytest
from PIL import Image
from shell import config_of, lines

import jit_jax
from configs import cond, uncond
from jit_jax import loop
from jit_jax.errors import UserError

pytestmark = pytest.mark.usefixtures('one_device')
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
LABELS = np.arange(40) % 3


@pytest.fixture(autouse=True, scope='module')
def no_pictures():
    """The grids and the page of a run have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.page, 'try_write', lambda *_: '')
        patch.setattr(loop.Preview, 'draw', lambda *_: None)
        yield


@pytest.fixture(scope='module')
def config():
    """Two steps, from the images' edges, without what other tests are about."""
    config = config_of()
    config.condition.kind, config.steps = 'edges', 2
    config.checkpoint.every = config.sample.every = 4
    return config


@pytest.fixture(scope='module')
def workdir(config, tmp_path_factory):
    """A run of two steps."""
    folder = tmp_path_factory.mktemp('memory') / 'run'
    jit_jax.train(config, str(folder), images=IMAGES, labels=LABELS)
    return folder


def test_a_run_goes_on_with_the_same_images_and_no_others(config, workdir, capsys):
    record = json.loads((workdir / 'config.json').read_text())
    assert record['data']['kind'] == 'memory' and record['classes'] == ['0', '1', '2']
    assert config.data.kind == 'digits'  # what was given is left as it was
    more = config.copy_and_resolve_references()
    more.steps = 4
    changed = IMAGES.copy()
    changed[7, 7, 7, 0] ^= 1
    with pytest.raises(UserError, match='trained on other images, labels, conditions or captions'):
        jit_jax.train(more, str(workdir), images=changed, labels=LABELS)
    assert lines(workdir)[-1]['step'] == 2
    capsys.readouterr()
    jit_jax.train(more, str(workdir), images=IMAGES.copy(), labels=list(LABELS))
    said = capsys.readouterr().out
    assert f'Resuming {workdir} at step 2, with steps changed.' in said
    assert 'In memory: 38 images for training, 2 held out (every 20th), in 3 classes;' in said
    assert 'Done: step 4' in said


def test_without_the_images_one_sentence_says_what_is_missing(workdir, config, command, tmp_path):
    sentence = 'images in memory, which only those who have them can give: jit_jax.train(config'
    for words in (
        ('sample', f'--out={tmp_path}/a.png'),
        ('evaluate', '--num=4', '--metrics=truth'),
    ):
        code, out, err = command(*words, f'--workdir={workdir}')
        assert code == 1 and sentence in err and err.count('\n') == 1, err
    code, out, err = command('report', f'--workdir={workdir}')
    assert code == 0 and sentence in out, err
    more = config.copy_and_resolve_references()
    more.steps, more.data.kind = 4, 'memory'
    with pytest.raises(UserError, match='which only those who have them can give'):
        jit_jax.train(more, str(workdir))
    Image.fromarray(IMAGES[0]).save(tmp_path / 'own.png')
    words = ('--num=2', '--steps=1', f'--out={tmp_path}/own.npz')
    code, _, err = command('sample', f'--workdir={workdir}', f'--cond={tmp_path}/own.png', *words)
    assert code == 0, err  # a condition of one's own needs no data set


def test_pairs_need_conditions(tmp_path):
    config = cond.get_config('pairs_cpu')
    with pytest.raises(UserError, match='needs a condition image for each image: give them, as in'):
        jit_jax.train(config, str(tmp_path / 'run'), images=IMAGES)
    with pytest.raises(UserError, match='40 images and 3 condition images'):
        jit_jax.train(config, str(tmp_path / 'run'), images=IMAGES, cond=IMAGES[:3])
    with pytest.raises(UserError, match="config is what get_config of .*; got 'uncond:digits'"):
        jit_jax.train('uncond:digits', str(tmp_path / 'run'))
    with pytest.raises(UserError, match='labels, cond and captions belong to images'):
        jit_jax.train(config, str(tmp_path / 'run'), labels=LABELS)
    for wrong in (uncond, uncond.get_config, config.to_dict()):
        with pytest.raises(UserError, match='config is what get_config of') as error:
            jit_jax.train(wrong, str(tmp_path / 'run'))
        assert len(str(error.value)) < 200
    for workdir in (None, 3, ''):
        with pytest.raises(UserError, match="workdir is the folder of a run, such as 'runs/uncond"):
            jit_jax.train(config, workdir)
    with pytest.raises(UserError, match='follow is a function that is called with a step; got 3'):
        jit_jax.train(config, str(tmp_path / 'run'), follow=3)
    assert not (tmp_path / 'run').exists()


def test_a_script_learns_of_ctrl_c(monkeypatch, tmp_path):
    monkeypatch.setattr(loop, 'train', lambda *_, **__: 'SIGTERM')
    jit_jax.train(uncond.get_config(), str(tmp_path))
    monkeypatch.setattr(loop, 'train', lambda *_, **__: 'SIGINT')
    with pytest.raises(KeyboardInterrupt):
        jit_jax.train(uncond.get_config(), str(tmp_path))
