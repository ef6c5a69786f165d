"""The same numbers on one device and eight, and numbers worked out otherwise."""

import jax
import numpy as np
import pytest
from measuring import measure, mesh

from jit_jax.errors import UserError
from jit_jax.evaluation import distances, inception
from jit_jax.evaluation import measure as measurement
from jit_jax.evaluation.denoising import DenoisingScore
from jit_jax.evaluation.image_scores import TruthMetric
from jit_jax.evaluation.measure import Files, check, make_metrics, measurable


def test_eight_devices_equal_one(holes, one_classifier, tmp_path):
    model, _, _, test = holes
    results = {}
    for devices in (1, 8):
        run, params = measure(devices, holes, ['truth', 'classifier', 'seams'])
        results[devices] = run(params, model.settings, str(tmp_path / str(devices)))
        score = DenoisingScore(model, mesh(devices), test, num=32, batch=16, seed=0)
        results[devices] |= score(params)
    assert results[8] == pytest.approx(results[1], rel=1e-3) and len(results[1]) == 4 + 10 + 3 + 10
    for name in ('000000-16.npz', '000016-16.npz'):
        one = np.load(tmp_path / '1' / name)['arr_0'].astype(int)
        eight = np.load(tmp_path / '8' / name)['arr_0'].astype(int)
        assert one.shape == (16, 32, 32, 3) and np.abs(one - eight).max() <= 1


def test_a_measure_serves_again_and_again(holes, one_classifier):
    """A metric begins anew with each set of images."""
    run, params = measure(8, holes, ['truth', 'classifier'], num=16)
    settings = holes[0].settings
    first = run(params, settings)
    run(jax.tree.map(np.zeros_like, params), settings)
    assert run(params, settings) == first


def test_progress_counts_images(holes):
    done = []
    run, params = measure(8, holes, [], num=20, batch=8)
    assert run(params, holes[0].settings, progress=done.append) == {}
    assert done == [8, 16, 20]


def test_inception_sharded_and_part_by_part_equals_all_at_once(
    holes, inception_file, tmp_path, monkeypatch
):
    """Eight devices and a part after another, and one device by the definitions.

    FID's roots of matrices take seconds and have tests of their own: here its moments are compared.
    """
    given = []

    def frechet(*moments):
        given.extend(moments)
        return 7.0

    monkeypatch.setattr(distances, 'frechet', frechet)
    names = ['is', 'kid', 'precision_recall', 'fid']
    files = Files(inception=inception_file, reference='test[:12]')
    run, params = measure(8, holes, names, num=12, batch=8, files=files)
    found = run(params, holes[0].settings, str(tmp_path / 'parts'))

    network, weights = jax.jit(inception.features), inception.load_weights(inception_file)
    kept = [np.load(path)['arr_0'] for path in sorted((tmp_path / 'parts').iterdir())]
    images = np.concatenate(kept)[:12]
    real = np.stack([holes[3][i]['image'] for i in range(12)])

    def features(x):
        halves = [network(weights, x[:6]), network(weights, x[6:])]  # one shape, one compilation
        return jax.tree.map(lambda *rows: np.concatenate(rows), *halves)

    generated = features(images)
    ours, theirs = generated['2048'], features(real)['2048']
    moments = []
    for x in (theirs, ours):
        moments += [x.mean(0, dtype=float), np.cov(x, rowvar=False)]
    assert found['fid'] == 7.0
    for got, expected in zip(given, moments, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    score, _ = distances.inception_score(generated['logits_unbiased'])
    assert found['is'] == pytest.approx(score, rel=1e-4)
    kid, _ = distances.kid(theirs, ours, subset_size=12)
    assert found['kid'] == pytest.approx(kid, rel=1e-3)
    assert (found['precision'], found['recall']) == distances.precision_recall(theirs, ours)


def test_what_can_be_measured_by_default():
    def names(kind, classes, file='', **data):
        config = data | {'condition': {'kind': kind}, 'classes': classes}
        config['model'] = {'image_size': 32, 'channels': 3, 'num_classes': len(classes)}
        return measurable(config, file)

    assert names('inpaint', ['a']) == ['truth', 'classifier']
    assert names('class', ['a'], 'inception.pth') == ['classifier', 'fid']
    assert names('none', []) == []
    assert names('none', ['a'], data={}) == ['classifier', 'seams']
    assert names('none', [], data={}) == []


def test_metrics_that_do_not_fit_are_refused(holes):
    config = holes[0].config
    no_condition = config | {'classes': [], 'condition': {'kind': 'none'}}
    classes = config | {'condition': {'kind': 'class'}}
    there = Files(inception=__file__)
    cases = (
        (config, ['fod'], Files(), 20, "no 'fod': did you mean fid"),
        (config, ['fid'], Files(), 20, 'needs --inception'),
        (config, ['truth', 'fid'], Files(), 20, '--metrics=fid needs --inception'),
        (classes, ['truth'], Files(), 20, 'no condition image'),
        (config | {'classes': []}, ['classifier'], Files(), 20, 'has none'),
        (no_condition, [], Files(), 20, 'only --metrics=fid,is'),
        (config, ['fid'], Files(inception='/nowhere.pth'), 20, 'no Inception weights at'),
        (config | {'model': {'image_size': 16}}, ['seams'], Files(), 20, 'of 32 or more'),
        (config, ['is'], there, 9, '--metrics=is needs --num=10'),
        (config, ['precision_recall'], there, 3, 'needs --num=4'),
    )
    for config, names, files, num, words in cases:
        with pytest.raises(UserError, match=words):
            check(config, names, files, num)


def test_weights_without_data_are_measured_against_a_reference(holes):
    converted = {name: holes[0].config[name] for name in ('model', 'condition')}
    with pytest.raises(UserError, match='without a data set; --reference'):
        check(converted, ['fid'], Files(inception=__file__), 20)
    with pytest.raises(UserError, match='only --metrics=fid,is'):
        check(converted, ['denoising'], Files(), 20)
    check(converted, ['is'], Files(inception=__file__), 20)
    check(converted, ['fid'], Files(inception=__file__, reference='stats.npz'), 20)


def test_fid_is_against_the_training_images_by_default(holes, monkeypatch):
    model, _, train, test = holes
    monkeypatch.setattr(measurement, 'open_network', lambda path, mesh: None)
    for reference, expected in (('', train), ('test', test)):
        files = Files(inception='weights.npz', reference=reference)
        images = {'train': train, 'test': test}
        (metric,) = make_metrics(['fid'], model, mesh(1), rows=8, files=files, **images)
        (source,) = metric.reference
        assert len(source) == len(expected) and len(train) != len(test)
        np.testing.assert_array_equal(source[0]['image'], expected[0]['image'])


def test_files_are_read_before_anything_is_drawn(holes, tmp_path):
    model, _, train, test = holes
    damaged = tmp_path / 'lpips.npz'
    damaged.write_bytes(b'PK damaged')
    with pytest.raises(UserError, match='not a readable .npz'):
        make_metrics(
            ['truth'],
            model,
            mesh(1),
            rows=8,
            train=train,
            test=test,
            files=Files(lpips=str(damaged)),
        )
    with pytest.raises(UserError, match='--lpips needs images of at least 32 pixels'):
        TruthMetric(16, str(damaged))
