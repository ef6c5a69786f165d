"""The page of a run, looked at in a browser, and the numbers on it."""

import base64
import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from shell import run

from configs import uncond
from jit_jax.commands import convert, report
from jit_jax.errors import UserError
from jit_jax.evaluation import page
from jit_jax.output.files import save_npz, write_whole
from jit_jax.output.images import grid, save_png

BROWSER = shutil.which('chromium') or shutil.which('google-chrome')
HEADLESS = [
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
]
HEADLESS += ['--disable-component-update', '--disable-sync']


def arguments(*runs, out='comparison'):
    """Those of the command."""
    return SimpleNamespace(runs=[str(run) for run in runs], workdir=None, out=str(out))


def test_a_run_ends_with_a_page_that_a_browser_shows(finished, tmp_path):
    cwd, said = finished
    page = cwd / 'runs/uncond/report/index.html'
    assert f'are in {page.relative_to(cwd)}' in said
    text = page.read_text()
    assert not re.search(r'(src|href)="(?!data:)', text), 'the page needs other files'
    pictures = dict(re.findall(r'alt="([^"]+)"[^>]*base64,([^"]+)"', text))
    assert {
        'chart-loss',
        'chart-learning_rate',
        'chart-mfu',
        'samples-0000006',
        'newest',
        'neighbours',
        'slots',
    } <= pictures.keys()
    for name, data in pictures.items():
        assert base64.b64decode(data) == (page.parent / f'{name}.png').read_bytes()
    for fact in (
        'M parameters',
        '>12 of 12, batch 8: 96 images<',
        'of training steps',
        ' UTC: Starting',
    ):
        assert fact in text, fact
    assert (
        '4 held-out' not in text
        and 'of 4 samples are closer' in text
        and '"steps": 12' in text.replace('&quot;', '"')
    )
    if BROWSER is None:
        pytest.skip('no chromium or google-chrome here: the page was checked, but not looked at')
    shot, profile = tmp_path / 'shot.png', tmp_path / 'profile'
    browser = [BROWSER, *HEADLESS, f'--user-data-dir={profile}', '--window-size=1100,6000']
    subprocess.run(
        [*browser, f'--screenshot={shot}', f'file://{page}'],
        check=True,
        capture_output=True,
        timeout=120,
    )
    seen = np.asarray(Image.open(shot).convert('RGB')).reshape(-1, 3)
    assert (seen == (0xD9, 0x82, 0x2B)).all(1).sum() > 10_000, 'the target slots are not to be seen'
    assert (np.abs(seen.astype(int) - (0x35, 0x66, 0xA8)).sum(1) < 9).sum() > 1000, (
        'the curves are not to be seen'
    )


def test_the_command_does_without_what_is_gone(finished, env, tmp_path):
    """On a run whose images have moved; and a report never spoils a run."""
    cwd, _ = finished
    shutil.copytree(
        cwd / 'runs/uncond',
        tmp_path / 'moved',
        ignore=shutil.ignore_patterns('checkpoints', 'report'),
    )
    config = json.loads((tmp_path / 'moved/config.json').read_text())
    config['data'] |= {'kind': 'folder', 'path': str(tmp_path / 'gone')}
    (tmp_path / 'moved/config.json').write_text(json.dumps(config))
    said = run(['-m', 'jit_jax', 'report', '--workdir=moved'], env, tmp_path)
    text = (tmp_path / 'moved/report/index.html').read_text()
    assert (
        'Without its images' in said
        and 'gone does not exist' in said
        and 'The 512 slots' in text
        and 'copies' not in text
    )
    assert 'could not be drawn' in page.try_write(str(tmp_path / 'nowhere'), config)


def test_a_converted_folder_is_drawn_too(tmp_path, capsys):
    """It has no images, no curves and no samples: its mask and its config are there."""
    folder = tmp_path / 'official'
    folder.mkdir()
    architecture = uncond.get_config().model.to_dict() | {'num_classes': 10}
    config = convert.run_config(architecture, convert.PUBLISHED_DECAYS)
    (folder / 'config.json').write_text(json.dumps(config))
    report.main(arguments(folder))
    said = capsys.readouterr().out
    assert 'this run was converted' in said and f'{folder}/report/index.html' in said
    text = (folder / 'report/index.html').read_text()
    assert 'The 512 slots' in text and 'How it was made' in text
    assert '>condition</th><td>class<' in text
    assert 'Curves' not in text and 'amples' not in text


@pytest.fixture
def broken_held_out(tmp_path):
    """A run on a folder of images whose only held-out one is broken: (workdir, config)."""
    random = np.random.default_rng(0)
    images = tmp_path / 'images'
    for split, count in (('train', 5), ('test', 1)):
        (images / split).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(images / split / f'{i}.png')
    (images / 'test/0.png').write_bytes(b'no picture')
    config = uncond.get_config().to_dict()
    config['data'] |= {'kind': 'folder', 'path': str(images), 'train': 'train', 'test': 'test'}
    config['sample']['num'] = 4
    workdir = tmp_path / 'run'
    write_whole(workdir / 'config.json', json.dumps(config).encode())
    samples = random.integers(0, 256, (4, 32, 32, 3), np.uint8)
    save_png(workdir / 'samples/0000006.png', grid(samples, 2))
    save_npz(workdir / 'samples/latest.npz', arr_0=samples)
    (workdir / 'samples/0000007.png').write_bytes(b'torn')
    return workdir, config


def test_a_broken_held_out_image_leaves_out_what_needs_it(broken_held_out, capsys):
    workdir, _ = broken_held_out
    report.main(arguments(workdir))
    text = (workdir / 'report/index.html').read_text()
    assert 'Distance to the nearest of 5 training images' in text
    assert 'no held-out image that can be read' in text and 'The 512 slots' in text
    assert 'Step 6.' in text and 'step 7' not in text


def test_a_condition_made_from_a_broken_image_is_left_out(broken_held_out):
    workdir, config = broken_held_out
    config['condition']['kind'] = 'grayscale'
    shutil.rmtree(workdir / 'samples')
    sources = report.open_images(config)
    page.write(str(workdir), config, *sources)
    text = (workdir / 'report/index.html').read_text()
    assert 'The 512 slots' not in text and 'How it was made' in text


@pytest.mark.parametrize(
    'content, says',
    [
        (None, 'needs a run folder, and .*config.json cannot be read .No such file'),
        ('{"model": {}, ', 'is not a config of a run'),
        ('[1]', 'is not a config of a run'),
    ],
)
def test_what_is_no_run_is_said_in_words(tmp_path, content, says):
    if content is not None:
        (tmp_path / 'config.json').write_text(content)
    with pytest.raises(UserError, match=says):
        report.main(arguments(tmp_path))
    assert not (tmp_path / 'report').exists()


def test_a_folder_that_cannot_be_written_is_said_in_words(broken_held_out):
    workdir, config = broken_held_out
    (workdir / 'report').write_text('a file where the folder goes')
    with pytest.raises(UserError, match='report cannot be written .(File exists|Not a directory)'):
        page.write(str(workdir), config)
    assert 'could not be drawn: ' in page.try_write(str(workdir), config)


def test_a_page_promises_what_it_shows(broken_held_out):
    workdir, _ = broken_held_out
    assert page.contents(str(workdir)) == 'Samples and their nearest training images are in'
    (workdir / 'metrics.jsonl').write_text('{"step": 2, "loss": 0.5}\n')
    assert page.contents(str(workdir)).startswith('Curves, samples and their nearest')
    shutil.rmtree(workdir / 'samples')
    assert 'samples when the first are drawn' in page.contents(str(workdir))
    (workdir / 'metrics.jsonl').unlink()
    assert 'neither curves nor samples yet' in page.contents(str(workdir))
