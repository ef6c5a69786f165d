"""What cannot be done as asked: one sentence with what to change, and nothing drawn or written.

A row is a command line and words of its sentence. `{…}` is a run folder, a file or a folder below.
"""

import json
import os
import sys
import zipfile

import numpy as np
import pytest
from conftest import TINY
from PIL import Image

from configs import uncond
from jit_jax import loop, trained
from jit_jax.training.weights import write_weights

# Run folders by what they learned.
RUNS = {
    'none': {'condition.kind': 'none'},
    'hole': {'condition.kind': 'inpaint'},
    'small': {'condition.kind': 'super_resolution'},
    'labels': {'condition.kind': 'class'},
    'always': {'condition.kind': 'class', 'condition.drop': 0.0},
    'either': {'condition.kind': 'super_resolution|class'},
    'both': {'condition.kind': 'inpaint+class'},
    'sizes': {'condition.kind': 'inpaint|super_resolution'},
    'several': {'condition.kind': 'references', 'condition.paired': 2, 'model.reference_images': 2},
    'own': {'condition.kind': 'mine', 'condition.module': 'nothere'},
}

SAMPLE = [
    ('sample', '--workdir says which run to sample from, for example --workdir=runs/uncond'),
    ('sample --workdir={here}/nowhere', 'nowhere does not exist'),
    (
        'sample --workdir={young}',
        'young holds no intact checkpoint; its run saves the first after step 550, or when it is',
    ),
    ('sample --workdir={here}', 'holds no intact checkpoint; name a run in it: '),
    ('sample --workdir=~/nowhere', 'error: {home}/nowhere does not exist'),
    ('sample --workdir={none} --ema=ema7', "no weights 'ema7'"),
    ('sample --workdir={none} --num=0', "--num: must be a whole number, at least 1; got '0'"),
    ('sample --workdir={none} --num=two', "--num: must be a whole number, at least 1; got 'two'"),
    ('sample --workdir={none} --seed=-1', '--seed: must be a whole number, at least 0'),
    ('sample --workdir={none} --seed=4294967296', 'at least 0 and at most 4294967295; got'),
    ('sample --workdir={none} --steps=0', '--steps: must be a whole number, at least 1'),
    ('sample --workdir={none} --trajectory=1', '--trajectory: must be a whole number, at least 2'),
    ('sample --workdir={none} --sampler=hoin', "--sampler: invalid choice: 'hoin'"),
    ('sample --workdir={none} --sampler=meanflow', '--sampler=meanflow needs a run that learned'),
    ('sample --workdir={none} --stepz=3', 'There is no flag --stepz; did you mean --steps?'),
    ('sample --workdir={none} 16', "'16' is not a flag; write --name=value."),
    ('sample --workdir={none} --config=uncond', 'There is no flag --config'),
    ('sample --workdir={none} --out=a.gif', '--out must end in .png, .npz or / for a folder'),
    ('sample --workdir={none} --out=a.npz --trajectory=3', '--out must end in .png with'),
    ('sample --workdir={none} --out={file}/a.png', '--out: {file}'),
    ('sample --workdir={none} --out=/proc/a.npz', '--out: /proc cannot be written'),
    ('sample --workdir={none} --guidance=2', '--guidance: this run learned no condition'),
    ('sample --workdir={always} --guidance=2', 'never learned to go without its condition'),
    ('sample --workdir={labels} --guidance=nan', "--guidance: must be a number; got 'nan'"),
    ('sample --workdir={labels} --guidance=inf', "--guidance: must be a number; got 'inf'"),
    ('sample --workdir={labels} --guidance=much', "--guidance: must be a number; got 'much'"),
    ('sample --workdir={labels} --skip_blocks=a', '--skip_blocks: must be a whole number'),
    ('sample --workdir={labels} --skip_blocks=99', '--skip_blocks is numbers of blocks, from 0'),
    ('evaluate --workdir={labels} --skip_blocks=99', '--skip_blocks is numbers of blocks, from 0'),
    ('sample --workdir={labels} --t_eps=1', '--t_eps: must be a number from 0 to below 1'),
    ('sample --workdir={none} --label=1', '--label: this run learned no classes'),
    ('sample --workdir={hole} --label=1', '--label: this run learned no classes'),
    ('sample --workdir={labels} --label=', '--label: must be values with commas between'),
    ('sample --workdir={labels} --label=1,,2', '--label: must be values with commas between'),
    ('sample --workdir={labels} --label=²', "--label: '²' is not a class of this run; it has 5"),
    ('sample --workdir={labels} --label=6', "--label: '6' is not a class of this run"),
    ('sample --workdir={labels} --label=rose', "--label: 'rose' is not a class of this run"),
    ('sample --workdir={labels} --text=seven', '--text: this run learned no captions'),
    ('sample --workdir={hole} --reference={px31}', '--reference: this run learned no references'),
    (
        'sample --workdir={several} --reference={px31}',
        '--reference: there are 1 pictures for an image, and this run learned 2; name 2',
    ),
    ('sample --workdir={several} --reference={px31},{file}', 'cannot be read as an image'),
    (
        'sample --workdir={several} --reference={px31},{px32} --fit=error',
        '--reference: {px31} is 31×31 pixels, and this run learned from 32×32; resize it',
    ),
    ('sample --workdir={none} --cond={px32}', '--cond: this run learned no condition images'),
    ('sample --workdir={labels} --cond={px32}', '--cond: this run learned no condition images'),
    (
        'sample --workdir={hole} --cond={px16} --fit=error',
        '--cond is 16×16 pixels, and this run learned 32×32',
    ),
    (
        'sample --workdir={hole} --cond={px31} --fit=error',
        '--cond is 31×31 pixels, and this run learned 32×32',
    ),
    (
        'sample --workdir={small} --cond={px32} --fit=error',
        '--cond is 32×32 pixels, and this run learned 16×16',
    ),
    (
        'sample --workdir={hole} --cond={px32},{px16} --fit=error',
        '--cond: all condition images must have one size',
    ),
    ('sample --workdir={hole} --cond={px16} --fit=squash', "--fit: invalid choice: 'squash'"),
    ('sample --workdir={sizes} --cond={px31}', 'learned 16×16 or 32×32; say which it is with'),
    (
        'sample --workdir={small} --cond={px16} --keep_known',
        '--keep_known: no pixel is known under',
    ),
    ('sample --workdir={hole} --cond={px32} --keep_known', '--keep_known: no patch of the conditi'),
    ('sample --workdir={sizes} --keep_known', 'say which the condition is with --kind=inpaint'),
    ('sample --workdir={hole} --keep_known --trajectory=3', 'leave --keep_known out'),
    ('sample --workdir={sizes} --cond={px31} --kind=edges', '--kind=edges: this run learned'),
    ('sample --workdir={hole} --cond={here}/bare', '--cond: there is no picture in the folder'),
    ('sample --workdir={hole} --cond={here}/no.png', '--cond: There is no file'),
    ('sample --workdir={hole} --cond={file}', '--cond: {file} cannot be read as an image'),
    ('sample --workdir={hole} --cond=', '--cond: must be values with commas between'),
    ('sample --workdir={either} --cond={px16} --label=1', 'learned either, one at a time'),
    (
        'sample --workdir={both} --cond={px32} --label=1',
        '256 patches and 4 class tokens do not fit',
    ),
]
FROM = [
    ('sample --workdir={none} --from={px31}', '--from: this run learned no condition images'),
    ('sample --workdir={labels} --from={px31}', '--from: this run learned no condition images'),
    (
        'sample --workdir={hole} --from={px31} --kind=edges',
        '--kind=edges: this run learned inpaint',
    ),
    ('sample --workdir={hole} --kind=edges', '--kind=edges: this run learned inpaint; name one'),
    ('sample --workdir={none} --kind=edges', '--kind=edges: this run learned no condition'),
    ('sample --workdir={sizes} --from={px31}', 'learned inpaint, super_resolution; say which'),
    ('sample --workdir={both} --from={px31}', '--from: inpaint+class needs a class (label) too'),
    ('sample --workdir={hole} --from={px31} --fit=error', '--from: {px31} is 31×31 pixels'),
    ('sample --workdir={hole} --from={here}/no.png', '--from: There is no file'),
    ('sample --workdir={hole} --from={file}', '--from: {file} cannot be read as an image'),
    ('sample --workdir={hole} --from={here}/bare', '--from: there is no picture in the folder'),
    ('sample --workdir={none} --start=0.4', '--start needs a picture to begin from; give --from'),
    (
        'sample --workdir={none} --from={px31} --start=1',
        '--start is a time from 0 (noise) to below',
    ),
    ('sample --workdir={none} --from={px31} --start=-0.1', '--start is a time from 0 (noise) to'),
    ('sample --workdir={none} --from={px31} --start=much', "--start: must be a number; got 'much'"),
    ('sample --workdir={none} --import=nothere', '--import: nothere cannot be imported (No module'),
    ('sample --workdir={own}', 'config.condition.module: nothere cannot be imported (No module'),
    ('report --workdir={own}', 'config.condition.module: nothere cannot be imported (No module'),
    ('evaluate --workdir={own}', 'config.condition.module: nothere cannot be imported (No module'),
    ('train --config=uncond --import=nothere', '--import: nothere cannot be imported (No module'),
]
REPORT = [
    ('report {here}/nowhere', 'nowhere does not exist; {here} holds'),
    ('report {here}/bare', '/bare/config.json cannot be read (No such file or directory)'),
    ('evaluate --workdir={none} --sampler=meanflow', '--sampler=meanflow needs a run that'),
    ('evaluate --workdir={none} --sweep sampler=heun,meanflow', '--sweep sampler=meanflow needs'),
    ('report {here}/bare', 'report needs a run folder, and '),
    ('sample --workdir={here}/bare/nope', 'nope does not exist, and {here}/bare holds no run: na'),
    (
        'evaluate --workdir={hole} --metrics=psnr',
        '--metrics: psnr is a number of truth; give --metrics=truth.',
    ),
    (
        'evaluate --workdir={labels} --metrics=classifer',
        "no 'classifer': did you mean classifier? There are cl",
    ),
]
EXPORT = [
    ('export', '--workdir says which run to export'),
    ('export --workdir={none}', '--out says where to'),
    ('export --workdir={here}/nowhere --out=a.safetensors', 'nowhere does not exist'),
    ('export --workdir={none} --out=a --ema=ema7', "no weights 'ema7'"),
    ('export --workdir={none} --out={file}/a.safetensors', '--out: {file}/a.safetensors cannot be'),
    ('export --workdir={none} --out={hole} --ema=params', '{hole} is a run folder and is not over'),
    ('export --workdir={none} --out={here} --ema=params', '{here} is in the way and is not over'),
    ('export --workdir={none} --out=/proc/a --ema=params', '/proc/a cannot be written'),
    ('export --workdir={none} --out=a stray', "'stray' is not a flag"),
]
CONVERT = [
    ('convert', 'convert names what to read and what to write, for example jit-jax convert'),
    ('convert {none}', 'convert names what to write as well, for example jit-jax convert'),
    ('convert {plain}', '{plain} holds no weights: name an official .pth or .safetensors, a fold'),
    ('convert {plain} {here}/new', 'config.json of JiTTransformer2DModel and diffusion_pytorch_m'),
    ('convert {plain} {here}/new.pth', 'or a run folder, which has checkpoints/.'),
    ('convert {strange} {here}/new', '{strange} holds no weights: name an official .pth or .saf'),
    ('convert {given} {here}/new', 'given is a folder; name the official weights in it, for exa'),
    ('convert {here}/nowhere.pth {here}/new', 'nowhere.pth cannot be read (No such file'),
    ('convert {file} {here}/new', 'file is damaged, or holds something else'),
    ('convert {px16} {here}/new', '16.png is damaged, or holds something else'),
    ('convert {torn} {here}/new', 'is damaged, or holds something else'),
    ('convert {file} {none}', 'exists and is not overwritten; name another destination'),
    ('convert {none} {here}/new.bin', 'A run folder becomes a .pth, or a folder of diffusers'),
    ('convert {here} {here}/new.pth', '{here}'),
    ('convert {none} {file}/new.pth', '{file}/new.pth cannot be written (File exists)'),
    ('convert {none} {here}/new.pth extra', "'extra' is not a flag"),
    ('convert {none} {here}/new.pth --cond=old', "--cond: invalid choice: 'old'"),
]
REPLAY = [
    ('replay', '--bundle names the nan-<step>.npz that a stopped run has left'),
    ('replay --bundle={here}/nan-1.npz', 'nan-1.npz cannot be read (No such file'),
    ('replay --bundle={cut}', 'cut.npz is damaged, or is no bundle of a stopped run'),
    ('replay --bundle={empty}', 'empty.npz is damaged, or is no bundle of a stopped run'),
    ('replay --bundle={foreign}', 'foreign.npz is damaged, or is no bundle of a stopped run'),
    ('replay --bundle={pickled}', 'pickled.npz is damaged, or is no bundle of a stopped run'),
    ('replay --bundle={array}', 'array.npz is damaged, or is no bundle of a stopped run'),
    ('replay --bundle={bundle}', 'config.json is missing or damaged'),
    ('replay --bundle={none}', '--bundle: {none} cannot be read (Is a directory)'),
]
TRAIN = [
    ('train', '--config says what to run, for example --config='),
    ('train uncond', "'uncond' is not a flag"),
    ('train --config=', 'There is no ; --config names one of uncond, cond or a file'),
    ('train --config=uncond:', "There is no preset ''"),
    ('train --config={file}', '--config names a Python file such as configs/uncond.py'),
    ('train --config={here}/torn.py', 'torn.py, line 2 is not Python ('),
    ('train --config={here}/other.py', 'other.py has no get_config; write one that returns a'),
    ('train --config={here}/import.py', "import.py cannot be imported (No module named 'nothere')"),
    ('train --config={here}/none.py', 'none.py must return a ConfigDict; got 1'),
    ('train --config=uncond:pairs', "There is no preset 'pairs'; this file has digits, folder"),
    (
        'train --config=uncond:folder_gpu',
        "no preset 'folder_gpu': did you mean folder_cpu? This file has digits",
    ),
    (
        'train --config=uncon',
        'There is no uncon: did you mean uncond? --config names one of uncond',
    ),
    (
        'train --config=uncond:folder --config.condition.kind=class --config.data.path={named}',
        'needs classes, of which {named} has 2; set config.model.num_classes=2.',
    ),
    (
        'train --config=uncond:folder --config.data.path={plain} --config.condition.kind=class',
        'needs classes, and {plain} has none; put the images of each into a sub-folder.',
    ),
    (
        'train --config=uncond:folder --config.data.path={plain} --config.condition.kind=text',
        'need config.model.token_width=384 and config.model.vocabulary=256.',
    ),
    ('train --config=uncond --steps=3', 'no flag --steps; did you mean --config.steps?'),
    ('train --steps=3', 'no flag --steps; did you mean --config.steps?'),
    ('train --config=uncond --path=x', 'no flag --path; did you mean --config.data.path?'),
    (
        'train --config=uncond --config.steps=1e3',
        "--config.steps must be a whole number; got '1e3'",
    ),
    (
        'train --config=uncond --config.optimizer.base_lr=-1',
        'config.optimizer.base_lr must be a number, 0 or more; got -1',
    ),
    ('train --config=uncond --config.data.flip=maybe', "flip must be true or false; got 'maybe'"),
    ('train --config=uncond --config.model=3', 'config.model'),
    ('train --config=uncond --config.steps', 'config.steps'),
]

PREVIEW = [
    ('preview', '--config says what to draw, for example --config='),
    ('preview --config=uncond --out=a.jpg', '--out must end in .png; got a.jpg'),
    ('preview --config=uncond:folder --config.data.path={none}/x', 'x does not exist: give the'),
    ('preview --config=uncond:folder --config.data.kind=memory', 'images in memory, which only'),
]
PLACES = [  # whose folder is not there, nor the one that it would be in
    'sample --workdir={none} --out=',
    'sample --workdir={none} --trajectory=3 --out=',
    'preview --config=uncond --out=',
    'export --workdir={none} --out=',
    'report {none} {hole} --out=',
    'convert {none} ',
    'compile --config=uncond --json=',
    'fetch --url=http://localhost/weights-0a1b2c3d.pth --out=',
    'embed --captions={plain} --encoder=none --out=',
]
NOWHERE = [(f'{words}typo/b/c.png', ': there is no folder typo; make it, or') for words in PLACES]
CONFIGS = {  # files that are no configs
    'torn': 'def get_config():\n    return (1,\n',
    'other': 'x = 1\n',
    'import': 'import nothere\n\ndef get_config():\n    return 1\n',
    'none': 'def get_config():\n    return 1\n',
}


@pytest.fixture(scope='module')
def places(tmp_path_factory, params):
    """Paths by the names that the rows use."""
    here = tmp_path_factory.mktemp('refusals')
    found = {'here': here}
    for name, changes in RUNS.items():
        config = uncond.get_config()
        config.model.variant, config.model.num_classes = TINY, 5
        config.update_from_flattened_dict(changes)
        found[name] = here / name
        write_weights(
            here / name, config.to_dict(), params, {'ema1': params, 'ema2': params}, step=7
        )
    for name, text in CONFIGS.items():
        (here / f'{name}.py').write_text(text)
    for side in (16, 31, 32):
        found[f'px{side}'] = here / f'{side}.png'
        Image.new('RGB', (side, side)).save(found[f'px{side}'])
    for name in ('named/a/1', 'named/b/1', 'plain/1', 'plain/2'):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (32, 32)).save(here / f'{name}.png')
    found |= {'named': here / 'named', 'plain': here / 'plain'}
    (here / 'bare').mkdir()
    found['home'] = os.path.expanduser('~')
    found['young'] = here / 'young'
    (found['young'] / 'checkpoints').mkdir(parents=True)
    (found['young'] / 'config.json').write_text(json.dumps(uncond.get_config().to_dict()))
    found['file'] = here / 'file'
    found['file'].write_text('This is no picture, no config and no weights.')
    bundle = {'step': 2, 'seed': 0, 'checkpoint': 0, 'batch/image': np.zeros((1, 2, 2, 3), 'u1')}
    files = {'bundle': bundle, 'foreign': {'arr_0': np.zeros(3)}}
    files['pickled'] = bundle | {'step': np.array({'a': 1}, object)}
    for name, arrays in files.items():
        found[name] = here / f'{name}.npz'
        np.savez(found[name], **arrays)
    whole = found['bundle'].read_bytes()
    for name, content in (('cut', whole[: len(whole) // 2]), ('empty', b'')):
        found[name] = here / f'{name}.npz'
        found[name].write_bytes(content)
    found['torn'] = here / 'torn.pth'
    found['torn'].write_bytes(b'PK and no more')
    for name, file in (('given', 'checkpoint-last.pth'), ('strange', 'config.json')):
        found[name] = here / name
        found[name].mkdir()
        (found[name] / file).write_text('{"_class_name": "UNet2DModel"}')
    found['array'] = here / 'array.npz'
    with open(found['array'], 'wb') as file:
        np.save(file, np.zeros(3))
    return found


ROWS = [*SAMPLE, *FROM, *REPORT, *EXPORT, *CONVERT, *REPLAY, *TRAIN, *PREVIEW, *NOWHERE]


@pytest.mark.parametrize('line, sentence', ROWS, ids=[line for line, _ in ROWS])
def test_one_sentence_and_nothing_written(places, command, line, sentence, monkeypatch, tmp_path):
    if line.startswith('convert'):
        pytest.importorskip('torch')

    def too_late(*args, **kwargs):
        raise AssertionError('this should have been refused before')

    for module, name in ((trained, 'draw'), (trained, 'trajectory'), (loop, 'train')):
        monkeypatch.setattr(module, name, too_late)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'dont_write_bytecode', True)  # of a config file that is imported
    before = sorted(os.listdir(places['here']))
    code, out, err = command(*(word.format(**places) for word in line.split()))
    assert code == 1 and out == '', out
    assert err.startswith('error: ') and err.count('\n') == 1 and err[-2] in '.?', err
    assert sentence.format(**places) in err, err
    for word in ('Errno', 'Traceback', 'allow_pickle', 'NoneType'):
        assert word not in err
    assert os.listdir(tmp_path) == [] and sorted(os.listdir(places['here'])) == before


def test_out_is_made_before_anything_is_drawn(places, command, monkeypatch, tmp_path):
    """A folder is made; a place that cannot be written to costs no image; parts are kept."""
    monkeypatch.chdir(tmp_path)
    quick = ['sample', f'--workdir={places["none"]}', '--steps=1', '--sampler=euler', '--batch=8']
    assert command(*quick, '--num=10', '--out=new/a.npz')[0] == 0
    images = np.load('new/a.npz')['arr_0']
    assert images.shape == (10, 32, 32, 3) and images.dtype == np.uint8
    with zipfile.ZipFile('new/a.npz') as file:
        assert file.testzip() is None
    assert command(*quick, '--num=10', '--out=images/')[0] == 0
    for i, name in enumerate(sorted(os.listdir('images'))):
        assert name == f'{i:06d}.png' and np.array_equal(Image.open(f'images/{name}'), images[i])
    assert command(*quick, '--num=4', '--out=new/grid.png')[0] == 0
    assert Image.open('new/grid.png').size == (208, 208)
    assert sorted(os.listdir('new')) == ['a.npz', 'grid.png']

    # What was written before the disk is full stays; the sentence names the flag.
    draw, save = trained.draw, 0

    def fills_up(*args, **kwargs):
        for part in draw(*args, **kwargs):
            yield part
            os.chmod('half', 0o500)
            monkeypatch.setattr('jit_jax.output.destination.save_png', full)

    def full(*args):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(trained, 'draw', fills_up)
    code, out, err = command(*quick, '--num=10', '--out=half/')
    assert code == 1 and err.startswith('error: --out: half/ cannot be written (No space left')
    assert len(os.listdir('half')) == 8 and save == 0
