"""Generated images, part by part: which they are, and when those that were kept serve again."""

import errno
from dataclasses import replace

import jax
import numpy as np
import pytest
from measuring import compilations, on, parts

from jit_jax.diffusion.generate import Settings
from jit_jax.evaluation import image_parts, kept_files


def drawn(run, num: int, batch: int, folder='') -> np.ndarray:
    """The images of an evaluation on one device."""
    some, params = parts(1, run, num=num, batch=batch), on(1, run[1])
    found = [
        some.part(params, run[0].settings, start, str(folder)).images for start in some.starts()
    ]
    return np.concatenate(found)


def test_more_images_than_were_kept(holes, tmp_path):
    """However many there are already, an evaluation of 8 images has 8 different ones."""
    few = drawn(holes, 3, 8, tmp_path)
    many = drawn(holes, 8, 8, tmp_path)
    assert len(few) == 3 and len(many) == 8
    np.testing.assert_array_equal(many, drawn(holes, 8, 8))
    np.testing.assert_allclose(many[:3].astype(int), few, atol=1)
    np.testing.assert_array_equal(drawn(holes, 3, 8, tmp_path), few)


def test_image_i_and_its_condition_are_the_same_in_any_batching(holes):
    params = on(1, holes[1])
    some, other = (parts(1, holes, num=8, batch=batch) for batch in (8, 4))
    whole = some.part(params, holes[0].settings, 0)
    half = other.part(params, holes[0].settings, 4)
    np.testing.assert_array_equal(whole.truth[4:], half.truth)
    for name, rows in half.conditioning.items():
        np.testing.assert_array_equal(whole.conditioning[name][4:], rows)
    np.testing.assert_allclose(whole.images[4:].astype(int), half.images, atol=1)


def test_kept_images_serve_again(holes, tmp_path, monkeypatch):
    first = drawn(holes, 12, 8, tmp_path)
    monkeypatch.setattr(image_parts, 'compiled_sampler', None)  # nobody draws again
    np.testing.assert_array_equal(drawn(holes, 12, 8, tmp_path), first)
    np.testing.assert_array_equal(drawn(holes, 9, 8, tmp_path), first[:9])


@pytest.mark.parametrize(
    'content',
    [
        b'torn',
        {'arr_0': np.zeros((3, 32, 32, 3), np.uint8)},
        {'arr_0': np.zeros((8, 32, 32, 3))},
        {'others': np.zeros((8, 32, 32, 3), np.uint8)},
    ],
    ids=['torn', 'too few', 'of another type', 'of another name'],
)
def test_kept_images_that_do_not_fit_are_drawn_again(holes, tmp_path, content):
    path = tmp_path / '000000-8.npz'
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    found = drawn(holes, 8, 8, tmp_path)
    assert found.std() > 10
    np.testing.assert_array_equal(np.load(path)['arr_0'], found)


def test_a_full_disk_keeps_nothing_and_costs_nothing(holes, tmp_path, monkeypatch):
    def full(*args, **arrays):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(kept_files, 'save_npz', full)
    assert drawn(holes, 8, 8, tmp_path).std() > 10
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_named_by_all_that_decides_an_image(holes, monkeypatch):
    model, params, train, test = holes
    one = parts(1, holes).folder('root', 'weights', model.settings)
    assert one == parts(8, holes, num=40, batch=8).folder('root', 'weights', model.settings)
    kinds = {**model.config, 'condition': {**model.config['condition'], 'kind': 'half'}}
    others = [
        parts(1, holes).folder('root', 'other weights', model.settings),
        parts(1, holes).folder('root', 'weights', replace(model.settings, guidance=2.5)),
        parts(1, holes).folder('root', 'weights', replace(model.settings, interval=(0.2, 1.0))),
        parts(1, holes, seed=1).folder('root', 'weights', model.settings),
        parts(1, (replace(model, config=kinds), params, train, test)).folder(
            'root', 'weights', model.settings
        ),
        parts(1, (model, params, train, range(5))).folder('root', 'weights', model.settings),
    ]
    monkeypatch.setattr(image_parts, 'VERSION', image_parts.VERSION + 1)
    others.append(parts(1, holes).folder('root', 'weights', model.settings))
    assert len({one, *others}) == 1 + len(others)


def test_the_hash_of_weights_is_of_their_bits(holes):
    params = holes[1]
    assert kept_files.weights_hash(params) == kept_files.weights_hash(jax.tree.map(np.copy, params))
    leaves, tree = jax.tree.flatten(params)
    leaves[-1] = np.nextafter(leaves[-1], np.float32(1))
    other = jax.tree.unflatten(tree, leaves)
    assert kept_files.weights_hash(params) != kept_files.weights_hash(other)


def test_labels_go_round_the_classes(holes):
    model, params, train, test = holes
    condition = model.config['condition'] | {'kind': 'class'}
    labelled = replace(model, config=model.config | {'condition': condition})
    some = parts(8, (labelled, params, train, test), num=24, batch=8)
    params = on(8, params)
    labels = [
        some.part(params, model.settings, start).conditioning['label'] for start in some.starts()
    ]
    np.testing.assert_array_equal(np.concatenate(labels), np.arange(24) % 10)


def test_guidance_is_off_outside_the_interval_of_the_settings(holes):
    some, params = parts(1, holes, num=4, batch=4), on(1, holes[1])
    found = [
        some.part(params, Settings('euler', 2, guidance, interval), 0).images.astype(int)
        for guidance, interval in ((1.0, (0.0, 1.0)), (6.0, (0.6, 1.0)), (6.0, (0.0, 1.0)))
    ]
    assert np.abs(found[1] - found[0]).max() <= 1 < np.abs(found[2] - found[0]).max()


def test_batches_and_guidance_share_one_program(holes):
    """Of several held-out batches and values of guidance, only the first compiles."""
    some, params = parts(1, holes, num=40, batch=8), on(1, holes[1])
    some.part(params, Settings('heun', 2, 1.5, (0.1, 1.0)), 0)
    with compilations() as compiled:
        for start, guidance in ((8, 1.5), (16, 2.0), (24, 3.1)):
            some.part(params, Settings('heun', 2, guidance, (0.2, 0.9)), start)
    assert compiled == []
    with compilations() as compiled:  # or the test would find none in any case
        some.part(params, Settings('heun', 3, 1.5, (0.1, 1.0)), 0)
    assert compiled
