"""What generated images are compared with."""

import numpy as np
import pytest
from PIL import Image

from jit_jax.errors import UserError
from jit_jax.evaluation import moments
from jit_jax.evaluation.reference import Statistics, open_reference


def contents(sources) -> list[bytes]:
    """The images of sources, in an order of their own."""
    found = []
    for source in sources:
        found += [source[i]['image'].tobytes() for i in range(len(source))]
    return sorted(found)


def test_what_reference_names(holes, tmp_path):
    config, test = holes[0].config, holes[3]
    images = np.stack([test[i]['image'] for i in range(5)])

    def opened(name, with_images=False):
        return open_reference(str(name), config, with_images=with_images)

    (tmp_path / 'folder').mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / 'folder' / f'{i}.png')
    np.savez(tmp_path / 'adm.npz', arr_0=images, mu=np.zeros(3), sigma=np.eye(3))
    np.savez(tmp_path / 'images.npz', images)
    moments.save_stats(tmp_path / 'stats.npz', np.ones(3), np.eye(3))
    expected = contents(opened('test[:5]'))
    assert expected == sorted(image.tobytes() for image in images)
    assert contents(opened(tmp_path / 'folder')) == expected
    assert contents(opened(tmp_path / 'images.npz')) == expected
    assert contents(opened(tmp_path / 'adm.npz', True)) == expected
    assert opened(tmp_path / 'adm.npz')[0].tolist() == [0, 0, 0]
    assert opened(tmp_path / 'stats.npz')[0].tolist() == [1, 1, 1]
    assert isinstance(opened(tmp_path / 'stats.npz'), Statistics)
    with pytest.raises(UserError, match='statistics'):
        opened(tmp_path / 'stats.npz', True)
    with pytest.raises(UserError, match='no split .*: its splits are'):
        opened('nothing')
    for name in ('a/folder', 'stats.npz'):
        with pytest.raises(UserError, match='--reference: there is no'):
            opened(name)


@pytest.mark.parametrize(
    'content, words',
    [
        (b'PK damaged', 'not a readable .npz'),
        (np.zeros((2, 8, 8, 3)), r'must be uint8 \[N, H, W, 3\], not float64 \[2, 8, 8, 3\]'),
        (np.zeros((2, 8, 8), np.uint8), r'must be uint8 .* not uint8 \[2, 8, 8\]'),
    ],
)
def test_files_that_are_no_reference(holes, tmp_path, content, words):
    path = tmp_path / 'reference.npz'
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, content)
    with pytest.raises(UserError, match=words):
        open_reference(str(path), holes[0].config, with_images=False)
