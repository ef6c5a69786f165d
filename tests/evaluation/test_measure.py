"""Measuring a run: the command, the same numbers on one device and eight, and numbers worked out by another road."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import perturb
from PIL import Image
from shell import TINY, assert_same_run, lines, run, train
from test_fid import recreate

from configs import cond
from jit_jax import trained
from jit_jax.__main__ import main
from jit_jax.commands import command_line, environment, evaluate
from jit_jax.evaluation import classifier, denoising, distances, inception, lpips, measure, preview
from jit_jax.model import sharding
from jit_jax.output import charts
from jit_jax.output.images import to_uint8
from jit_jax.recipe import build

GOLDENS = Path(__file__).parents[1] / 'goldens'


@pytest.fixture(scope='module')
def holes(env):
    """A model that fills in holes of digits with weights that mean nothing, and its held-out images: (model, params, train, test)."""
    os.environ['TFDS_DATA_DIR'] = env['TFDS_DATA_DIR']
    config = cond.get_config()
    config.model.variant, config.sample.steps = TINY, 2
    train, test = (build.source(config, split) for split in ('train', 'test'))
    config = config.to_dict() | {'classes': list(train.classes)}
    net = build.network(config)
    params = jax.jit(net.init)(jax.random.key(0), np.zeros((1, 32, 32, 3)), np.zeros(1))['params']
    return (
        trained.Model(net, build.diffusion(config), build.settings(config), config, 0),
        perturb(jax.device_get(params), 0.05),
        train,
        test,
    )


@pytest.fixture(autouse=True)
def one_classifier(monkeypatch):
    """The classifier of the digits is the same each time: it is trained once."""
    monkeypatch.setattr(
        classifier,
        'Classifier',
        lambda *data: known.get(len(data[0])) or known.setdefault(len(data[0]), make(*data)),
    )


known, make = {}, classifier.Classifier


def mesh(count: int):
    return sharding.make_mesh((-1, 1, 1), devices=jax.devices()[:count])


def on(devices: int, holes, names, tmp_path=None, **more):
    """A Measure of `holes` on so many devices, and the parameters there."""
    model, params, train, test = holes
    place = mesh(devices)
    how = {'num': 20, 'batch': 16, 'seed': 0, 'train': train, 'test': test} | more
    return measure.Measure(model, place, names, **how), jax.device_put(
        params, sharding.replicated(place)
    )


def test_eight_devices_equal_one(holes, tmp_path):
    results = {}
    for devices in (1, 8):
        see, params = on(devices, holes, ['truth', 'classifier'])
        results[devices] = see(params, folder=str(tmp_path / str(devices)))
        denoising = measure.Denoising(holes[0], mesh(devices), holes[3], num=32, batch=16, seed=0)
        results[devices] |= denoising(params)
    assert results[8] == pytest.approx(results[1], rel=1e-3) and len(results[1]) == 4 + 4 + 10
    for name in ('000000-16.npz', '000016-16.npz'):
        one, eight = (
            np.load(tmp_path / str(devices) / name)['arr_0'].astype(int) for devices in (1, 8)
        )
        assert one.shape == (16, 32, 32, 3) and np.abs(one - eight).max() <= 1


@pytest.fixture(scope='module')
def inception_file(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'inception.npz'
    shapes = json.loads((GOLDENS / 'inception_shapes.json').read_text())
    np.savez(path, **{name: recreate(name, shape) for name, shape in shapes.items()})
    return str(path)


def test_inception_sharded_and_part_by_part_equals_all_at_once(holes, inception_file, tmp_path):
    names = ['is', 'kid', 'precision_recall']
    files = {'inception': inception_file, 'reference': 'test[:12]', 'num': 12, 'batch': 8}
    found, folder = {}, str(tmp_path / 'parts')
    for devices in (8, 1):
        see, params = on(
            devices, holes, names + ['fid'] * (devices == 8), **files
        )  # its roots of matrices take seconds
        found[devices] = see(
            params, folder=folder
        )  # the second time of images that are there already
    assert {name: found[8][name] for name in found[1]} == pytest.approx(found[1], rel=1e-4)

    look, weights = jax.jit(inception.features), inception.load_weights(inception_file)
    images = np.concatenate([np.load(path)['arr_0'] for path in sorted(Path(folder).iterdir())])[
        :12
    ]
    real = np.stack([holes[3][i]['image'] for i in range(12)])

    def features(x):
        parts = [look(weights, x[:8]), look(weights, x[4:])]  # one shape, one compilation
        return [
            np.concatenate([parts[0][name], parts[1][name][4:]])
            for name in ('2048', 'logits_unbiased')
        ]

    (ours, logits), (theirs, _) = features(images), features(real)
    moments = [s for x in (theirs, ours) for s in (x.mean(0, dtype=float), np.cov(x, rowvar=False))]
    assert found[8]['fid'] == pytest.approx(distances.frechet(*moments), rel=1e-4)
    assert found[8]['is'] == pytest.approx(distances.inception_score(logits)[0], rel=1e-4)
    assert found[8]['kid'] == pytest.approx(
        distances.kid(theirs, ours, subset_size=12)[0], rel=1e-3
    )
    assert (found[8]['precision'], found[8]['recall']) == distances.precision_recall(theirs, ours)


def test_statistics_of_a_reference_are_kept_and_serve_as_one(
    holes, inception_file, tmp_path, monkeypatch
):
    files = {'inception': inception_file, 'num': 8, 'batch': 8, 'cache': str(tmp_path)}
    eye = lambda reference: on(8, holes, ['fid'], reference=reference, **files)[0].eyes[0]
    mu, sigma, _ = eye('test[:12]').learn()
    (stats,) = tmp_path.glob('reference-*.npz')
    monkeypatch.setattr(measure.data, 'eval_batches', None)  # so that nobody reads the images again
    for reference in ('test[:12]', str(stats)):
        again = eye(reference).learn()
        np.testing.assert_array_equal(again[0], mu)
        np.testing.assert_array_equal(again[1], sigma)


def test_what_reference_names(holes, tmp_path):
    config, test = holes[0].config, holes[3]
    images = np.stack([test[i]['image'] for i in range(5)])
    opened = lambda text, with_images=False: measure.open_reference(str(text), config, with_images)
    shown = lambda sources: sorted(
        source[i]['image'].tobytes() for source in sources for i in range(len(source))
    )
    (tmp_path / 'folder').mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / 'folder' / f'{i}.png')
    np.savez(tmp_path / 'adm.npz', arr_0=images, mu=np.zeros(3), sigma=np.eye(3))
    np.savez(tmp_path / 'images.npz', images)
    distances.save_stats(tmp_path / 'stats.npz', np.ones(3), np.eye(3))
    expected = shown(opened('test[:5]'))
    assert expected == sorted(image.tobytes() for image in images)
    for sources in (
        opened(tmp_path / 'folder'),
        opened(tmp_path / 'images.npz'),
        opened(tmp_path / 'adm.npz', True),
    ):
        assert shown(sources) == expected
    assert opened(tmp_path / 'adm.npz')[0].tolist() == [0, 0, 0] and opened(tmp_path / 'stats.npz')[
        0
    ].tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match='statistics'):
        opened(tmp_path / 'stats.npz', True)
    with pytest.raises(ValueError, match='no split .*: its splits are'):
        opened('nothing')
    for text in ('a/folder', 'stats.npz'):
        with pytest.raises(FileNotFoundError, match='--reference: there is no'):
            opened(text)


def test_metrics_that_do_not_fit_are_refused(holes):
    config = holes[0].config
    for names, words in ((['fod'], 'not one of'), (['fid'], 'needs --inception')):
        with pytest.raises(ValueError, match=words):
            measure.check(config, names, '', '')
    with pytest.raises(ValueError, match='no condition image'):
        measure.check(config | {'condition': {'kind': 'class'}}, ['truth'], '', '')
    with pytest.raises(ValueError, match='has none'):
        measure.check(config | {'classes': []}, ['classifier'], '', '')
    with pytest.raises(ValueError, match='only --metrics=fid,is'):
        measure.check(
            config | {'classes': [], 'condition': {'kind': 'none'}},
            measure.measurable({'condition': {'kind': 'none'}}),
            '',
            '',
        )
    with pytest.raises(FileNotFoundError, match='no Inception weights at'):
        measure.check(config, ['fid'], '/nowhere.pth', '')


def test_conditions_are_those_of_the_image_in_any_batching(holes):
    model, _, _, test = holes
    whole, truth = preview.held_out(model.config, 6, 3, test)
    part, other = preview.held_out(model.config, 2, 3, test, 4)
    np.testing.assert_array_equal(truth[4:], other)
    for name in whole:
        np.testing.assert_array_equal(whole[name][4:], part[name])
    holes_cut = {row.tobytes() for row in whole['cond_valid']}
    assert len(holes_cut) == 6


def test_labels_go_round_the_classes(holes):
    model, params, train, test = holes
    labelled = replace(
        model, config=model.config | {'condition': model.config['condition'] | {'kind': 'class'}}
    )
    see, params = on(8, (labelled, params, train, test), [], num=24, batch=8)
    labels = np.concatenate(
        [see.part(params, model.settings, '', start)[1]['label'] for start in (0, 8, 16)]
    )
    np.testing.assert_array_equal(labels, np.arange(24) % 10)


def test_denoising_of_a_model_that_says_grey(holes):
    """x̂ = 0 wherever it starts: every number follows from the images, and padded rows count for nothing."""
    model, params, _, test = holes
    grey = jax.tree.map(np.zeros_like, params)
    found = measure.Denoising(model, mesh(8), test, num=len(test), batch=200, seed=0)(grey)
    x = np.stack([test[i]['image'] for i in range(len(test))]) / 127.5 - 1
    mse = (x**2).mean((1, 2, 3))
    for t in denoising.TIMES:
        assert found[f'mse_t{t}'] == pytest.approx(mse.mean(), rel=1e-5)
        assert found[f'psnr_t{t}'] == pytest.approx((10 * np.log10(4 / mse)).mean(), rel=1e-5)
    within = lambda low, high: (
        (1 / (1 - high) - 1 / (1 - low)) / (high - low)
    )  # the mean of (1 − t)⁻²
    assert found['v_loss_t0.25_0.5'] == pytest.approx(mse.mean() * within(0.25, 0.5), rel=0.05)
    assert (
        found['v_loss_t0.0_0.25']
        < found['v_loss_t0.25_0.5']
        < found['v_loss_t0.5_0.75']
        < found['v_loss_t0.75_1.0']
    )


def test_lpips_agrees_with_torch(tmp_path):
    torch = pytest.importorskip('torch')
    F, random = torch.nn.functional, np.random.default_rng(0)
    convs = {'slice1.0': (64, 3, 11), 'slice2.3': (192, 64, 5), 'slice3.6': (384, 192, 3)}
    convs |= {'slice4.8': (256, 384, 3), 'slice5.10': (256, 256, 3)}
    state = {'scaling_layer.shift': np.zeros((1, 3, 1, 1))}
    for i, (name, (out, into, side)) in enumerate(convs.items()):
        state[f'net.{name}.weight'] = random.standard_normal((out, into, side, side)) * np.sqrt(
            2 / (into * side**2)
        )
        state[f'net.{name}.bias'] = random.standard_normal(out) * 0.1
        state[f'lin{i}.model.1.weight'] = random.random((1, out, 1, 1))
    state = {name: torch.from_numpy(value).float() for name, value in state.items()}
    torch.save(state, tmp_path / 'lpips.pth')
    a, b = random.integers(0, 256, (2, 3, 64, 48, 3), dtype=np.uint8)

    def features(images):
        x = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
        x = (x - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor(
            [0.458, 0.448, 0.450]
        )[:, None, None]
        for name, (stride, pad, pool) in zip(
            convs, ((4, 2, 0), (1, 2, 1), (1, 1, 1), (1, 1, 0), (1, 1, 0)), strict=True
        ):
            x = F.max_pool2d(x, 3, 2) if pool else x
            x = F.relu(
                F.conv2d(x, state[f'net.{name}.weight'], state[f'net.{name}.bias'], stride, pad)
            )
            yield x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)

    pairs = enumerate(zip(features(a), features(b), strict=True))
    expected = sum(
        F.conv2d((x - y) ** 2, state[f'lin{i}.model.1.weight']).mean((1, 2, 3))
        for i, (x, y) in pairs
    )
    weights = lpips.load_weights(tmp_path / 'lpips.pth')
    np.testing.assert_allclose(lpips.distance(weights, a, b), expected, rtol=1e-4)
    np.testing.assert_array_equal(lpips.distance(weights, a, a), 0)
    np.savez(
        tmp_path / 'less.npz',
        **{name: value for name, value in state.items() if name != 'lin2.model.1.weight'},
    )
    with pytest.raises(ValueError, match=r'nothing for lin2.model.1.weight, not \[1, 384, 1, 1\]'):
        lpips.load_weights(tmp_path / 'less.npz')


@pytest.fixture
def command(finished, env, tmp_path, monkeypatch, capsys):
    """`jit-jax evaluate` on a copy of the finished run, in this process: flags → what it prints."""
    shutil.copytree(finished[0] / 'runs/uncond', tmp_path / 'run')
    for name, value in (
        ('TFDS_DATA_DIR', env['TFDS_DATA_DIR']),
        ('JAX_NUM_CPU_DEVICES', '8'),
    ):
        monkeypatch.setenv(name, value)
    # This process uses its devices already.
    monkeypatch.setattr(environment, 'join_processes', lambda args: None)

    def call(*flags):
        main(['evaluate', f'--workdir={tmp_path / "run"}', '--batch=8', '--steps=2', *flags])
        return capsys.readouterr().out

    call.folder = tmp_path / 'run'
    return call


def test_the_command_goes_on_where_it_was(command):
    said = command('--num=20')
    path = command.folder / 'evaluation.json'
    (entry,) = json.loads(path.read_text()).values()
    assert {
        'readable',
        'classifier_distance',
        'classifier_distance_train',
        'psnr_t0.5',
        'v_loss_t0.0_0.25',
    } <= entry.keys()
    assert (entry['num'], entry['step'], entry['settings']['steps']) == (20, 12, 2)
    names, rule, row = [
        [cell.strip() for cell in line.split('|')[1:-1]]
        for line in said.splitlines()
        if line.startswith('|')
    ]
    table = dict(zip(names, row, strict=True))
    assert set(rule) == {'---'} and float(table['classifier_distance']) == pytest.approx(
        entry['classifier_distance'], rel=1e-3
    )

    parts = sorted(command.folder.glob('evaluation/*/*.npz'))
    assert [part.name for part in parts] == ['000000-8.npz', '000008-8.npz', '000016-8.npz']
    before = {part: (part.stat().st_mtime_ns, np.load(part)['arr_0']) for part in parts}
    parts[1].unlink()
    (parts[0].parent / '000008-8.npz.tmp.npz').write_bytes(b'torn')
    path.unlink()
    command('--num=20')
    assert json.loads(path.read_text()) == {key: entry for key in json.loads(path.read_text())}
    for part, (when, drawn) in before.items():
        assert (part.stat().st_mtime_ns == when) == (part != parts[1])
        np.testing.assert_array_equal(np.load(part)['arr_0'], drawn)


def test_a_sweep_finds_the_best_cell_and_is_not_done_twice(command, monkeypatch):
    axes = ('--metrics=classifier', '--num=8', '--sweep', 'steps=1:2:1', 'ema=ema1,params')
    said = command(*axes)
    entries = json.loads((command.folder / 'evaluation.json').read_text()).values()
    cells = {
        (entry['ema'], entry['settings']['steps']): entry['classifier_distance']
        for entry in entries
    }
    assert cells.keys() == {(ema, steps) for ema in ('ema1', 'params') for steps in (1, 2)}
    best = min(cells, key=cells.get)
    assert f'with ema={best[0]}' in said and f'steps={best[1]};' in said
    assert len(list(command.folder.glob('evaluation/*/'))) == 1  # the best cell's images
    (picture,) = command.folder.glob('evaluation/sweep-ema-steps-*.png')
    width, height = Image.open(picture).size
    assert width > 2 * 48 and height > 2 * 24

    drawn = []
    part = measure.Measure.part
    monkeypatch.setattr(
        measure.Measure,
        'part',
        lambda self, *args: drawn.append(args[1].steps) or part(self, *args),
    )
    assert said.splitlines()[-1] in command(*axes) and not drawn
    assert (
        '| 16 |' in command(*axes, '--final_num=16') and drawn == [best[1]] * 2
    )  # the second of these parts is new


@pytest.mark.parametrize(
    'text, words',
    [
        *((text, 'is not ema=') for text in ('ema', 'speed=1,2', 'guidance=1:2', 'steps=many')),
        ('ema=a steps=1 guidance=2', 'one or two'),
        ('guidance=1,2', 'without a condition'),
    ],
)
def test_sweeps_that_cannot_be(text, words):
    with pytest.raises(ValueError, match=words):
        evaluate.sweep_axes(text, 'without' not in words)


def test_axes_of_the_paper():
    sweep = ['guidance=1.0:4.0:0.1', 'ema=ema1,ema2']
    parser = command_line.Parser(evaluate, 'jit-jax evaluate')
    args = parser.parse(['--num=8000', '--sweep', *sweep, '--seed=1'])
    assert args.sweep == sweep and args.num == 8000 and args.seed == 1
    assert parser.parse([f'--sweep={" ".join(sweep)}']).sweep == [' '.join(sweep)]
    axes = evaluate.sweep_axes('guidance=1.0:4.0:0.1 ema=ema1,ema2', True)
    assert list(axes) == ['ema', 'guidance'] and axes['guidance'] == [
        round(1 + i / 10, 1) for i in range(31)
    ]


def test_a_condition_is_measured_with_and_without_guidance(holes, command, monkeypatch):
    model, params, _, _ = holes
    monkeypatch.setattr(trained, 'load', lambda path, ema: (model, params))
    said = command('--metrics=truth', '--num=8')
    (entry,) = json.loads((command.folder / 'evaluation.json').read_text()).values()
    names = {
        f'{name}{which}'
        for name in ('psnr', 'ssim')
        for which in ('', '_baseline', f'_guidance_{evaluate.GUIDED}')
    }
    assert names <= entry.keys() and all(name in said for name in names)
    assert (
        entry['psnr'] != entry[f'psnr_guidance_{evaluate.GUIDED}'] and entry['psnr_baseline'] > 10
    )


def test_training_measures_itself_and_is_the_same_run(finished, env, tmp_path):
    how = {'every': 6, 'num': 8, 'batch': 8, 'denoise_every': 4, 'denoise_num': 12}
    train(
        tmp_path,
        env,
        'uncond',
        *(f'--config.evaluate.{name}={value}' for name, value in how.items()),
    )
    mine, other = tmp_path / 'runs/uncond', finished[0] / 'runs/uncond'
    said = {}
    for line in lines(mine):
        if 'loss' not in line:
            said[line['step']] = line
    there = lambda name: [step for step in said if f'evaluate/{name}' in said[step]]
    assert there('psnr_t0.5') == [4, 8, 12] and there('classifier_distance') == [6, 12]
    (mine / 'metrics.jsonl').write_text(
        ''.join(json.dumps(line) + '\n' for line in lines(mine) if 'loss' in line)
    )
    assert_same_run(mine, other)


def test_training_refuses_what_it_could_not_measure(env, tmp_path):
    said = train(
        tmp_path,
        env,
        'uncond',
        '--config.evaluate.every=6',
        '--config.evaluate.inception=/nowhere.pth',
        code=1,
    )
    assert 'no Inception weights at /nowhere.pth' in said and 'Traceback' not in said


def test_a_trajectory_ends_in_the_sample(holes):
    model, params, _, test = holes
    conditioning, _ = preview.held_out(model.config, 1, 0, test)
    for sampler in ('euler', 'heun'):
        path = trained.trajectory(
            model, params, jax.random.key(0), steps=3, sampler=sampler, **conditioning
        )
        assert [t for t, _, _ in path] == pytest.approx([0, 1 / 3, 2 / 3, 1])
        image = trained.sample(
            model, params, jax.random.key(0), 1, steps=3, sampler=sampler, **conditioning
        )
        assert np.abs(to_uint8(path[-1][1]).astype(int) - image[0]).max() <= 1
        z, x = path[2][1:]  # the last step is Euler's
        np.testing.assert_allclose(path[3][1], x, atol=1e-3 * np.abs(z).max())
    assert preview.strip(path, 3).shape == (2 + 64 + 14 + 2, 3 * 34 + 2, 3)


def test_classes_stand_below_their_images(holes):
    images = np.zeros((4, 32, 32, 3), np.uint8)
    sheet = preview.sheet(
        images, {'label': np.array([0, 1, 0, 7])}, None, holes[0].net, ['same', 'other']
    )
    assert sheet.shape == (2 + 2 * (32 + 14 + 2), 2 + 2 * 34, 3)
    text = [sheet[top + 32 : top + 46, left : left + 32] for top in (2, 50) for left in (2, 36)]
    assert (
        all((t < 128).any() for t in text)
        and np.array_equal(text[0], text[2])
        and not np.array_equal(text[0], text[1])
    )


def test_heat_map_shows_the_low_dark_and_frames_the_best():
    table = np.array([[3.0, 1.0, 2.0], [5.0, 4.0, 9.0]])
    picture = charts.heat_map(
        table, ['ema1', 'ema2'], ['1.0', '1.5', '2.0'], 'fid of 8 images', (0, 1)
    ).astype(int)
    red = np.argwhere((picture == (255, 0, 0)).all(-1))
    top, left = red.min(0)
    bottom, right = red.max(0)
    inside = picture[top + 4, left + 4]
    brightest = picture[bottom + 8, right + 8]  # below and right of the best: 9
    assert (
        inside.sum() < brightest.sum()
        and tuple(inside) == charts.COLOURS[0]
        and tuple(brightest) == charts.COLOURS[-1]
    )


def test_images_in_a_folder(finished, env, tmp_path):
    cwd, _ = finished
    base = ['-m', 'jit_jax', 'sample', '--workdir=runs/uncond', '--steps=2', '--num=3', '--batch=2']
    run([*base, f'--out={tmp_path}/images/'], env, cwd)
    run([*base, f'--out={tmp_path}/all.npz'], env, cwd)
    files = sorted((tmp_path / 'images').iterdir())
    assert [file.name for file in files] == ['000000.png', '000001.png', '000002.png']
    np.testing.assert_array_equal(
        [np.asarray(Image.open(file)) for file in files], np.load(tmp_path / 'all.npz')['arr_0']
    )
