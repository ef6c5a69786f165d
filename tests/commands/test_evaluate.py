"""The command that measures a run: what it keeps, draws again, says and refuses."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from jit_jax import data, trained
from jit_jax.commands import evaluate
from jit_jax.evaluation import image_parts, measure, results
from jit_jax.recipe import build


@pytest.fixture
def command(finished, call, one_classifier, tmp_path):
    """`jit-jax evaluate` on a copy of the finished run: flags → what it prints."""
    folder = tmp_path / 'run'
    shutil.copytree(finished[0] / 'runs/uncond', folder)

    def flags(*flags):
        return call('evaluate', f'--workdir={folder}', '--batch=8', '--steps=2', *flags)

    flags.folder = folder
    return flags


def entries(command) -> list[dict]:
    return list(json.loads((command.folder / 'evaluation.json').read_text()).values())


@pytest.fixture
def drawn(monkeypatch):
    """A list of the settings with which each part was asked for."""
    found, part = [], image_parts.ImageParts.part

    def noted(self, params, settings, start, folder=''):
        found.append(settings)
        return part(self, params, settings, start, folder)

    monkeypatch.setattr(image_parts.ImageParts, 'part', noted)
    return found


@pytest.fixture
def error(capsys):
    """A call that must fail → its one sentence."""

    def sentence(call, *flags) -> str:
        with pytest.raises(SystemExit) as end:
            call(*flags)
        said = capsys.readouterr().err.strip().splitlines()
        assert end.value.code == 1 and said[-1].startswith('error: ')
        assert 'Traceback' not in said
        return said[-1]

    return sentence


def test_the_command_goes_on_where_it_was(command):
    said = command('--num=20')
    path = command.folder / 'evaluation.json'
    (entry,) = json.loads(path.read_text()).values()
    begin = [line for line in said.splitlines() if line.endswith(' …')]
    assert begin == [
        f'Measuring classifier, seams, denoising of {command.folder}, step 12 …',
        'Now: 20 images …',
        'Now: denoising of held-out images …',
    ]
    assert {
        'readable',
        'classifier_distance',
        'classifier_distance_train',
        'psnr_t0.5',
        'v_loss_t0.0_0.25',
    } <= entry.keys()
    assert (entry['num'], entry['step'], entry['settings']['steps']) == (20, 12, 2)
    (shown,) = [line for line in said.splitlines() if line.startswith('classifier_distance ')]
    assert float(shown.split()[1]) == pytest.approx(entry['classifier_distance'], abs=1e-4)
    assert '|' not in said  # each number once

    parts = sorted(command.folder.glob('evaluation/*/*.npz'))
    assert [part.name for part in parts] == ['000000-8.npz', '000008-8.npz', '000016-8.npz']
    before = {part: (part.stat().st_mtime_ns, np.load(part)['arr_0']) for part in parts}
    parts[1].unlink()
    (parts[0].parent / '000008-8.npz.tmp.npz').write_bytes(b'torn')
    path.unlink()
    command('--num=20')
    assert json.loads(path.read_text()) == {key: entry for key in json.loads(path.read_text())}
    for part, (when, images) in before.items():
        assert (part.stat().st_mtime_ns == when) == (part != parts[1])
        np.testing.assert_array_equal(np.load(part)['arr_0'], images)


def test_images_of_other_weights_are_not_taken(command, monkeypatch):
    """The same run folder, step and settings, but trained again."""
    command('--num=8', '--metrics=classifier')
    load = trained.load

    def other(path, ema=None):
        model, params = load(path, ema)
        return model, jax.tree.map(lambda x: x + np.float32(0.1), params)

    monkeypatch.setattr(trained, 'load', other)
    command('--num=8', '--metrics=classifier')
    first, second = sorted(command.folder.glob('evaluation/*/*.npz'))
    assert (np.load(first)['arr_0'] != np.load(second)['arr_0']).any()
    assert len({entry['classifier_distance'] for entry in entries(command)}) == 2


def test_a_sweep_finds_the_best_cell_and_is_not_done_twice(command, drawn):
    axes = ('--metrics=classifier', '--num=8', '--sweep', 'steps=1:2:1', 'ema=ema1,params')
    said = command(*axes)
    found = {}
    for entry in entries(command):
        found[entry['ema'], entry['settings']['steps']] = entry['classifier_distance']
    assert found.keys() == {(ema, steps) for ema in ('ema1', 'params') for steps in (1, 2)}
    best = min(found, key=found.get)
    assert f'with ema={best[0]}' in said and f'steps={best[1]};' in said
    assert len(list(command.folder.glob('evaluation/*/'))) == 1  # the best cell's images
    (picture,) = command.folder.glob('evaluation/sweep-ema-steps-*.png')
    width, height = Image.open(picture).size
    assert width > 2 * 48 and height > 2 * 24

    drawn.clear()
    assert said.splitlines()[-1] in command(*axes) and not drawn
    said = command(*axes, '--final_num=16')
    assert '| 16 |' in said and '| classifier_distance |' in said
    assert '\nclassifier_distance ' not in said  # said once
    assert '\n8/16 images\n16/16 images\n' in said and '\r' not in said
    assert [settings.steps for settings in drawn] == [best[1]] * 2  # the second part is new


def test_all_of_a_sweep_is_checked_before_its_first_cell(command, drawn, error):
    said = error(command, '--num=8', '--sweep', 'ema=ema1,ema7')
    assert 'ema7' in said and 'ema2' in said
    said = error(command, '--num=8', '--metrics=denoising', '--sweep', 'ema=ema1,params')
    assert '--sweep compares generated images' in said
    assert not drawn and not (command.folder / 'evaluation.json').exists()


def test_a_condition_is_measured_with_and_without_guidance(holes, command, monkeypatch):
    model, params, _, _ = holes
    monkeypatch.setattr(trained, 'load', lambda path, ema: (model, params))
    said = command('--metrics=truth', '--num=8')
    (entry,) = entries(command)
    other = f'_guidance_{results.GUIDED}'
    names = {f'{name}{which}' for name in ('psnr', 'ssim') for which in ('', '_baseline', other)}
    assert names <= entry.keys() and all(name in said for name in names)
    assert entry['psnr'] != entry[f'psnr{other}'] and entry['psnr_baseline'] > 10


def test_a_run_that_was_never_without_its_condition(holes, command, error, monkeypatch):
    """It has no null branch, so nothing is shown with guidance."""
    model, params, _, _ = holes
    condition = model.config['condition'] | {'drop': 0.0}
    model = replace(model, config=model.config | {'condition': condition})
    monkeypatch.setattr(trained, 'load', lambda path, ema: (model, params))
    for flags in (['--guidance=2'], ['--sweep', 'guidance=1,2']):
        assert 'never learned to go without its condition' in error(command, '--num=8', *flags)
    command('--metrics=truth', '--num=8')
    (entry,) = entries(command)
    assert not [name for name in entry if 'guidance_' in name]


def test_a_sweep_over_guidance(holes, command, monkeypatch):
    model, params, _, _ = holes
    monkeypatch.setattr(trained, 'load', lambda path, ema: (model, params))
    command('--metrics=truth', '--num=8', '--sweep=guidance=1.0,1.5')
    assert sorted(entry['settings']['guidance'] for entry in entries(command)) == [1.0, 1.5]
    assert len({entry['psnr'] for entry in entries(command)}) == 2


@pytest.mark.parametrize(
    'flags, words',
    [
        (['--guidance=2'], '--guidance does nothing in a run without a condition'),
        (['--guidance=nan'], '--guidance: must be a number'),
        (['--sweep', 'guidance=1,2'], 'guidance does nothing in a run without a condition'),
        (['--sweep', 'steps=1:4:0'], 'a step above 0'),
        (['--final_num=8'], '--final_num measures the best cell of a --sweep'),
        (['--ema=ema7'], 'ema7'),
        (['--metrics=truth'], 'no condition image'),
        (['--reference=nothing.npz', '--metrics=fid', '--inception=/nowhere'], 'no Inception'),
    ],
)
def test_what_cannot_be_measured(command, drawn, error, flags, words):
    assert words in error(command, *flags)
    assert not drawn and not (command.folder / 'evaluation').exists()


def test_an_evaluation_json_that_cannot_be_read(command, drawn, error):
    (command.folder / 'evaluation.json').write_text('{torn')
    said = error(command, '--num=8')
    assert 'evaluation.json cannot be read' in said and 'remove it' in said and not drawn


def test_the_only_held_out_image_is_broken(holes, command, drawn, error, monkeypatch, tmp_path):
    """Nothing is measured, and one sentence says which image, or that there is none."""
    model, params, train, _ = holes
    path = tmp_path / 'images' / 'test' / 'only.png'
    for file in (path, tmp_path / 'images' / 'train' / 'one.png'):
        file.parent.mkdir(parents=True)
        Image.fromarray(train[0]['image']).save(file)

    def source(config, split):
        how = {'path': str(tmp_path / 'images'), 'split': split, 'image_size': 32}
        opened = data.open_source('folder', **how)
        if split == 'test':
            path.write_bytes(b'broken')  # after it was opened, when it was still there
        return opened

    monkeypatch.setattr(trained, 'load', lambda path, ema: (model, params))
    monkeypatch.setattr(build, 'source', source)
    for metrics in ('classifier', 'truth', 'denoising'):
        Image.fromarray(train[0]['image']).save(path)
        said = error(command, f'--metrics={metrics}', '--num=8')
        assert 'can be read' in said
    assert not (command.folder / 'evaluation').exists()


def said_about(capsys, model, names, num, held_out, metrics=None) -> str:
    args = SimpleNamespace(metrics=metrics, num=num, final_num=None)
    run = SimpleNamespace(model=model, test=range(held_out))
    evaluate.say_what_to_know(args, run, names)
    return capsys.readouterr().out


def test_what_the_numbers_would_not_tell(holes, capsys):
    model = holes[0]
    said = said_about(capsys, model, ['truth'], 12, 5)
    assert '12 images of 5 held-out conditions' in said and 'other noise' in said
    assert said_about(capsys, model, ['truth', 'denoising'], 5, 5) == ''
    assert 'all 5 held-out' in said_about(capsys, model, ['denoising'], 12, 5, ['denoising'])


def test_unlabelled_photographs_by_default(holes, capsys):
    """One sentence says what is measured instead of generated images, and why."""
    config = holes[0].config | {'classes': [], 'condition': {'kind': 'none'}}
    args = SimpleNamespace(metrics=None, num=8, final_num=None)
    names = evaluate.chosen_metrics(args, config, measure.Files())
    assert names == ['denoising']
    said = said_about(capsys, replace(holes[0], config=config), names, 5, 5)
    assert said.count('\n') == 1
    assert 'neither labels nor condition images' in said and '--metrics=fid' in said
