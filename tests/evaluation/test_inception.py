"""Inception against features computed by torch-fidelity.

`goldens/inception.npz` was made with weights that anyone can recreate (`measuring.recreate`), so no
checkpoint is shipped.
"""

import sys

import jax
import numpy as np
import pytest
from measuring import GOLDENS, mesh

from jit_jax.errors import UserError
from jit_jax.evaluation import inception
from jit_jax.model.sharding import batch_sharding, replicated

FEATURES = ('64', '192', '768', '2048', 'logits_unbiased', 'logits')


@pytest.fixture(scope='module')
def golden():
    with np.load(GOLDENS / 'inception.npz') as file:
        return dict(file)


@pytest.fixture(scope='module')
def weights(inception_file):
    return inception.load_weights(inception_file)


@pytest.fixture(scope='module')
def extracted(weights, golden):
    """Both sizes' features, with the only two compilations of the network in this process."""
    run = jax.jit(inception.features)
    return {
        size: jax.tree.map(np.asarray, run(weights, golden[f'{size}_images']))
        for size in ('small', 'large')
    }


@pytest.mark.parametrize('size', ['small', 'large'])
@pytest.mark.parametrize('name', FEATURES)
def test_features_agree_with_torch_fidelity(extracted, golden, size, name):
    ours, theirs = extracted[size][name], golden[f'{size}_{name}']
    assert ours.shape == theirs.shape and ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5 * np.abs(theirs).max())


def test_features_have_no_other_names(extracted):
    assert set(extracted['small']) == set(FEATURES)


def test_resize_reads_pixel_i_at_i_times_scale():
    np.testing.assert_array_equal(inception._interpolation(299), np.eye(299))
    np.testing.assert_array_equal(inception._interpolation(598), np.eye(598)[::2])
    matrix = inception._interpolation(
        2
    )  # output i lies at 2i / 299, and beyond pixel 1 there is only pixel 1
    np.testing.assert_allclose(
        matrix[[0, 100, 298]], [[1, 0], [1 - 200 / 299, 200 / 299], [0, 1]], rtol=1e-6
    )


@pytest.mark.parametrize(
    'images',
    [
        np.zeros((1, 8, 8, 3), np.float32),
        np.zeros((1, 3, 8, 8), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
    ],
)
def test_features_take_only_uint8_nhwc(images):
    with pytest.raises(ValueError, match='uint8 images'):
        inception.features({}, images)


def test_eight_devices_equal_one(weights, golden, extracted):
    """Eight rows on eight devices: the batch stays sharded and every row is the golden's."""
    order = [0, 1, 2, 0, 1, 2, 0, 1]
    rows = batch_sharding(mesh(8))
    images = jax.device_put(golden['small_images'][order], rows)
    there = jax.device_put(weights, replicated(mesh(8)))
    found = jax.jit(inception.features)(there, images)
    assert all(x.sharding.is_equivalent_to(rows, 2) for x in found.values())
    for name, one in extracted['small'].items():
        atol = 1e-5 * np.abs(one).max()
        np.testing.assert_allclose(found[name], one[order], rtol=1e-4, atol=atol)


def test_pth_equals_npz(inception_tensors, weights, tmp_path):
    torch = pytest.importorskip('torch')
    path = tmp_path / 'weights.pth'
    torch.save({name: torch.from_numpy(value) for name, value in inception_tensors.items()}, path)
    jax.tree.map(np.testing.assert_array_equal, inception.load_weights(path), weights)


def test_damaged_pth(tmp_path):
    pytest.importorskip('torch')
    path = tmp_path / 'weights.pth'
    path.write_bytes(b'not a checkpoint')
    with pytest.raises(UserError, match='not a readable PyTorch state dict'):
        inception.load_weights(path)


def test_pth_without_torch_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)
    path = tmp_path / 'weights.pth'
    path.touch()
    with pytest.raises(UserError, match='pip install torch'):
        inception.load_weights(path)


def test_every_bad_tensor_is_in_one_error(inception_tensors):
    bad = {**inception_tensors, 'AuxLogits.fc.weight': np.zeros(1), 'fc.bias': np.zeros(1000)}
    del bad['Mixed_7c.branch1x1.conv.weight']
    with pytest.raises(UserError) as error:
        inception.fold(bad)
    for words in (
        'missing Mixed_7c.branch1x1.conv.weight',
        'unexpected AuxLogits',
        'fc.bias [1000], not [1008]',
    ):
        assert words in str(error.value)


def test_another_network_is_not_listed_in_full():
    with pytest.raises(
        ValueError, match='and 462 more'
    ) as error:  # 94 convolutions of 5 tensors, 2 more, 10 listed
        inception.fold({'layer1.weight': np.zeros(3)})
    assert len(str(error.value)) < 1000


def test_counters_are_optional(inception_tensors, weights):
    without = {
        name: value for name, value in inception_tensors.items() if 'num_batches' not in name
    }
    jax.tree.map(np.testing.assert_array_equal, inception.fold(without), weights)


def test_weights_that_are_no_weights(tmp_path):
    with pytest.raises(UserError, match='jit-jax fetch'):
        inception.load_weights(tmp_path / 'absent.npz')
    other = tmp_path / 'weights.txt'
    other.touch()
    with pytest.raises(UserError, match=r'a \.pth or an \.npz'):
        inception.load_weights(other)
    damaged = tmp_path / 'damaged.npz'
    damaged.write_bytes(b'PK damaged')
    with pytest.raises(UserError, match='not a readable'):
        inception.load_weights(damaged)
    pickled = tmp_path / 'pickled.npz'
    np.savez(pickled, x=np.array([{}], dtype=object))
    with pytest.raises(UserError, match='not a readable .npz of plain arrays'):
        inception.load_weights(pickled)
