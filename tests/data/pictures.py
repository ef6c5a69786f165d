"""What the tests of the data room share: images as files, and how sources are opened."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jit_jax import data
from jit_jax.errors import UserError

RGB = (
    np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8).repeat(5, 0).repeat(5, 1)
)  # [30, 40, 3] of blocks


def encode(image, format='PNG', **options):
    """The bytes of an image file."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        file, format, **options
    )
    return file.getvalue()


def png_header(width, height):
    """The bytes of a PNG that says how large it is, and ends before the first pixel."""

    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack('>I4s', len(content), kind) + content + struct.pack('>I', check)

    header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', b'')


def pixels(encoded):
    return np.asarray(data.decode(encoded))


def write(folder, files):
    """Writes files by relative path: bytes, or a gray level for an 8 × 8 PNG."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            encode(np.full((8, 8), content, np.uint8)) if isinstance(content, int) else content
        )
    return folder


def open_gray(kind, path, split='train', **options):
    """A source of 8 × 8 one-channel images."""
    return data.open_source(kind, path=path, split=split, image_size=8, channels=1, **options)


def levels(source):
    """The gray level of every example."""
    return [int(source[i]['image'][0, 0, 0]) for i in range(len(source))]


def refused(match, kind, **options):
    """Opening says why not, in one sentence that matches."""
    options = {'split': 'train', 'image_size': 8} | options
    with pytest.raises(UserError, match=match) as error:
        data.open_source(kind, **options)
    assert '\n' not in str(error.value)


def batches(source, **options):
    defaults = {
        'batch_size': 4,
        'seed': 0,
        'start_step': 0,
        'flip': True,
        'threads': 0,
        'prefetch': 0,
    }
    return data.train_batches(source, **defaults | options)


def same(left, right):
    assert left.keys() == right.keys()
    for key in left:
        np.testing.assert_array_equal(left[key], right[key])
        assert left[key].dtype == right[key].dtype
