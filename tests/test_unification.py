"""The experiment of docs/unification.md: its plan, its data, its tables; and the paper's toy."""

import json
import os

import jax
import numpy as np
import pytest
from shell import ROOT, run

from benchmarks import few_pairs, toy, unification, unification_page
from jit_jax.diffusion.objective import Diffusion

PAGE = os.path.join(ROOT, 'docs/unification.md')
LINES = os.path.join(ROOT, 'docs/unification.jsonl')


# The plan


def test_a_run_is_planned_once_and_every_seed_has_it():
    names = [run.name for run in unification.plan()]
    assert len(names) == len(set(names))
    kinds = [name.rpartition('/')[0] for name in names]
    assert all(kinds.count(kind) == len(unification.SEEDS) for kind in kinds)
    assert {run.arm for run in unification.plan()} == unification.ARMS.keys()
    assert {run.task for run in unification.plan()} == few_pairs.TASKS.keys()


def test_runs_are_away_from_the_reference_in_one_thing():
    for planned in unification.plan():
        axes = (planned.pairs != unification.PAIRS, planned.drop != unification.DROP)
        assert sum(axes) <= 1


def test_a_run_that_has_its_line_is_skipped(tmp_path, monkeypatch):
    """And one that was cut short by a kill is not, as its line is not there."""
    path = tmp_path / 'results.jsonl'
    experiment = unification.Experiment(str(path), str(tmp_path), unification.QUICK, 4)
    first, second = list(unification.plan())[:2]
    experiment.write(first.name, {'curve': [{'step': 1}]})
    again = unification.Experiment(str(path), str(tmp_path), unification.QUICK, 4)
    asked = []
    monkeypatch.setattr(again, 'bench', lambda *args, **how: asked.append(args) or 1 / 0)
    again.carry_out(first)
    assert asked == []
    with pytest.raises(ZeroDivisionError):
        again.carry_out(second)


@pytest.mark.slow
def test_quick(env, tmp_path):
    """A run of pre-training and fine-tuning, measured; the second time it is skipped."""
    only = '--only=super_resolution/(mask|mixed)/pairs=150/drop=0.1'
    command = ['-m', 'benchmarks.unification', '--quick', only, f'--weights={tmp_path}']
    out = run(command, env | {'PYTHONPATH': ROOT}, ROOT)
    assert 'digits/before-mask/seed=0' in out and 'super_resolution/mask/pairs=150' in out
    lines = unification.read(str(tmp_path / 'quick/results.jsonl'))
    assert len(lines) == 3
    tuned = lines['super_resolution/mask/pairs=150/drop=0.1/seed=0']
    assert [point['step'] for point in tuned['curve']] == [2, 4]
    assert {*unification_page.SCORES} <= tuned['curve'][-1].keys()
    mixed = lines['super_resolution/mixed/pairs=150/drop=0.1/seed=0']
    assert [point['step'] for point in mixed['curve']] == [2, 4, 8]
    assert 'seed=0' not in run(command, env | {'PYTHONPATH': ROOT}, ROOT)


# The data


@pytest.fixture(scope='module')
def glyphs():
    return few_pairs.images('omniglot')


def test_a_glyph_is_to_be_made_from_another_persons_drawing_of_it(glyphs):
    train, test = glyphs.train, glyphs.test
    assert (len(train), len(test), len(train.classes)) == (136 * 16, 136 * 4, 136)
    rows = [train[i] for i in range(16)]
    assert {int(row['label']) for row in rows} == {0}
    for row, partner in zip(rows, rows[-1:] + rows[:-1], strict=True):
        assert row['image'].shape == (32, 32, 1) and row['image'].max() > 128 > row['image'].mean()
        np.testing.assert_array_equal(row['cond'], partner['image'])
        assert not np.array_equal(row['cond'], row['image'])
    batch = {'cond': np.stack([row['cond'] for row in rows])}
    cond = few_pairs.smaller_pair(np.zeros((16, 32, 32, 1)), batch, None)['cond']
    assert cond.shape == (16, 16, 16, 1)


def test_some_images_have_a_condition_and_all_are_seen(glyphs):
    some = few_pairs.SomeWithCondition(glyphs.train, 50, 0.25, 0, mixed=False)
    assert len(some) == 50 and {float(some[i]['drop']) for i in range(50)} == {0.25}
    other = few_pairs.SomeWithCondition(glyphs.train, 50, 0.25, 1, mixed=False)
    assert not np.array_equal(some[0]['image'], other[0]['image'])
    both = few_pairs.SomeWithCondition(glyphs.train, 50, 0.25, 0, mixed=True)
    drops = np.array([both[i]['drop'] for i in range(len(both))])
    assert (drops == 0.25).sum() == (drops == 1).sum() == len(glyphs.train)
    paired = {both[i]['image'].tobytes() for i in range(len(both) // 2)}
    assert paired == {some[i]['image'].tobytes() for i in range(50)}


def test_rows_lose_their_condition_by_their_own_rate():
    condition = few_pairs.condition('super_resolution', 4, 2)
    x = np.zeros((400, 32, 32, 1), np.float32)
    rates = np.repeat(np.float32([0, 0.5, 1]), [100, 200, 100])
    valid = np.asarray(condition(x, {'drop': rates}, jax.random.key(0))['cond_valid'])
    assert valid.shape == (400, 16) and (valid.all(1) | ~valid.any(1)).all()
    assert valid[:100].all() and not valid[-100:].any() and 70 < valid[100:300, 0].sum() < 130


def test_held_out_examples_are_spread_over_the_classes(glyphs):
    assert len({int(glyphs.test[i]['label']) for i in range(96)}) > 60
    assert sorted(few_pairs.spread(297)) == list(range(297))


# The page


def test_the_page_says_what_the_results_say():
    results = unification.results(LINES)
    with open(PAGE) as file:
        text = file.read()
    assert unification_page.with_tables(text, results) == text, (
        'run: python -m benchmarks.unification --page'
    )
    for name in unification_page.TABLES:
        assert f'<!-- {name} -->' in text


def line(seed, psnr, **changes):
    """A line of results with a curve of two points."""
    curve = [{'step': 50, 'psnr': psnr - 1}, {'step': 150, 'psnr': psnr, 'ssim': 0.5}]
    about = {'task': 'inpaint', 'arm': 'mask', 'pairs': 150, 'drop': 0.1, 'long': False}
    return {'seed': seed, 'curve': curve, **about, **changes}


def test_a_cell_is_the_mean_and_deviation_over_seeds():
    lines = [line(seed, psnr) for seed, psnr in enumerate((20.0, 21.0, 22.0))]
    results = unification_page.Results([*lines, line(3, 9.0, drop=0.5)], (50, 150), 600)
    table = unification_page.equal_steps(results)
    what = 'pre-trained, dead slots | 3'
    early = f'| inpainting | 50 | {what} | 20.0 ± 1.0 |  |  |'
    assert table.splitlines()[2:] == [
        early,
        f'| inpainting | 150 | {what} | 21.0 ± 1.0 | 0.500 ± 0.000 |  |',
    ]
    assert unification_page.cell(np.array([3.0]), 1) == '3.0'
    steps, mean, spread = unification_page.curve(lines, 'psnr')
    assert steps == [50, 150] and mean.tolist() == [20, 21] and spread.tolist() == [1, 1]


# The toy


def test_the_plane_is_kept_in_any_number_of_dimensions():
    for D in (2, 512):
        np.testing.assert_allclose(toy.plane(D) @ toy.plane(D).T, np.eye(2), atol=1e-6)
    points = np.asarray(toy.spiral(jax.random.key(0), 50))
    assert toy.distance(points, points) < 1e-3 < toy.perfect() < 0.1
    assert toy.distance(points @ toy.plane(8) + 3 * np.eye(8)[0], points @ toy.plane(8)) > 1


def test_a_small_toy_learns(tmp_path):
    result = toy.result(3, 'x', 'v', 150)
    far = toy.distance(np.random.default_rng(0).standard_normal((1000, 2)), result.points)
    assert result.points.shape == (toy.POINTS, 2) and result.distance < 0.6, (far, result.distance)
    results = {(2, predict, 'v'): result for predict in toy.QUANTITIES}
    toy.figure(results, [2], str(tmp_path / 'toy.png'))
    assert (tmp_path / 'toy.png').stat().st_size > 5000


def test_the_toy_predicts_what_it_is_told(monkeypatch):
    """The loss of the package for this prediction, and its conversion to x̂."""
    asked = []

    def note(*args, D, d, **how):
        asked.append(d)
        return np.zeros((toy.POINTS, D))

    monkeypatch.setattr(toy, 'trained', note)
    monkeypatch.setattr(toy, 'generated', note)
    toy.result(2, 'eps', 'x', 1)
    assert asked == [Diffusion(noise_scale=1.0, **toy.TIMES, predict='eps', loss='x')] * 2


def test_results_are_read_back(tmp_path):
    path = tmp_path / 'r.jsonl'
    path.write_text(json.dumps({'run': 'a', 'curve': []}) + '\n')
    assert unification.read(str(path)) == {'a': {'run': 'a', 'curve': []}}
    assert unification.read(str(tmp_path / 'none')) == {}
