"""The page of a run, looked at in a browser, and the numbers on it."""

import base64
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from shell import run

from jit_jax.evaluation import page
from jit_jax.model.sequence import slot_mask
from jit_jax.output import charts
from jit_jax.output.images import grid

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


def write_lines(path, lines):
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


def test_families_put_what_ends_in_a_number_on_one_chart(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    write_lines(
        path,
        [
            {
                'step': s,
                'loss': 2.0 / s,
                'v_loss_t0.2': 1.0,
                'v_loss_t0.5': 0.5 * s,
                'broken': 0,
                'odd': float('nan'),
            }
            for s in (1, 2)
        ],
    )
    found = page.families(path)
    assert list(found) == ['loss', 'v_loss']
    assert found['loss'] == {'': [(1, 2.0), (2, 1.0)]} and found['v_loss'] == {
        't0.2': [(1, 1.0), (2, 1.0)],
        't0.5': [(1, 0.5), (2, 1.0)],
    }


@pytest.mark.parametrize('low, high', [(0, 1), (1.3, 1.4), (-5, 12_000), (1e-9, 3e-9), (2, 700)])
def test_ticks_are_round_inside_and_enough(low, high):
    found = charts.ticks(low, high)
    steps = np.diff(found)
    assert (
        3 <= len(found) <= 7
        and low - 1e-6 * (high - low) <= found[0]
        and found[-1] <= high * (1 + 1e-9)
    )
    np.testing.assert_allclose(steps, steps[0])
    assert round(steps[0] / 10 ** np.floor(np.log10(steps[0] * 1.0001)), 6) in (1, 2, 5)


def test_a_curve_goes_where_its_numbers_go():
    falling = charts.chart('x', {'': [(s, 100.0 - s) for s in range(101)]}).astype(int)
    blue = (falling[..., 2] - falling[..., 0]) > 60
    rows, columns = np.nonzero(blue)
    assert columns.max() - columns.min() > 700  # from edge to edge
    assert np.corrcoef(rows, columns)[0, 1] > 0.999  # straight down
    assert (
        charts.chart('x', {'': [(5, 1.0)]}).shape
        == charts.chart('x', {'': [(0, 0.0), (1, 0.0)]}).shape
        == falling.shape
    )


def test_results_are_cut_out_of_the_grid_they_were_drawn_in():
    random = np.random.default_rng(0)
    cells = random.integers(0, 255, (7, 16, 48, 3), np.uint8)  # condition | result | truth
    np.testing.assert_array_equal(page.results(grid(cells, 3), 16, True, 7), cells[:, :, 16:32])
    plain = random.integers(0, 255, (5, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(page.results(grid(plain, 2), 32, False, 5), plain)
    captioned = np.pad(plain, ((0, 0), (0, 14), (0, 0), (0, 0)))
    np.testing.assert_array_equal(page.results(grid(captioned, 2), 32, False, 5), plain)


def test_copies_are_found_and_others_are_not():
    random = np.random.default_rng(0)
    image = lambda n: random.integers(0, 256, (n, 32, 32, 3), np.uint8)
    train, held_out = image(40), image(300)
    samples = np.concatenate(
        [image(3), train[7:8], np.clip(train[11:12].astype(int) + 1, 0, 255).astype(np.uint8)]
    )
    words, grid = page.neighbours(samples, train, held_out)
    assert words.startswith('2 of 5 samples are closer to a training image') and '(0.0)' in words
    np.testing.assert_array_equal(grid[2:34, 2:34], train[7])  # the closest first: the copy,
    np.testing.assert_array_equal(grid[2:34, 34:66], train[7])  # beside what it is a copy of
    d = page.distances(samples, train)
    small = lambda x: x.astype(float).reshape(16, 2, 16, 2, 3).mean((1, 3))
    assert d[0, 0] == pytest.approx(
        np.sqrt(np.mean((small(samples[0]) - small(train[0])) ** 2)), rel=1e-4
    )


def test_slots_are_painted_as_the_mask_says(tiny):
    random = np.random.default_rng(0)
    valid = random.random((2, 64)) < 0.5
    conditioning = {
        'cond': np.zeros((2, 16, 16, 3)),
        'cond_valid': valid,
        'label': np.zeros(2, int),
        'label_valid': np.array([True, False]),
    }
    picture = page.slots(conditioning, tiny(), rows=2)
    want = np.asarray(slot_mask(2, valid, conditioning['label_valid'], tiny().class_tokens))
    blue, orange, pale = (0x35, 0x66, 0xA8), (0xD9, 0x82, 0x2B), (0xE9,) * 3
    for i, row in enumerate(want):
        strip = picture[18 * i + 3, : 2 * 512 : 2]
        assert [tuple(x) for x in strip] == [
            pale if not live else blue if slot < 256 else orange for slot, live in enumerate(row)
        ]
        square = picture[2 * 18 + 8 :, 513 * i : 513 * i + 512]
        np.testing.assert_array_equal((square != 0xE9).any(-1), row[None] & row[:, None])


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
    assert (
        '4 held-out' not in text
        and 'of 4 samples are closer' in text
        and '"steps": 12' in text.replace('&quot;', '"')
    )
    if BROWSER is None:
        pytest.skip('no chromium or google-chrome here: the page was checked, but not looked at')
    shot, profile = tmp_path / 'shot.png', tmp_path / 'profile'
    browser = [BROWSER, *HEADLESS, f'--user-data-dir={profile}', '--window-size=1100,2400']
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
