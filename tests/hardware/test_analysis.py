"""The roofline and the summary of a program, against arithmetic by hand."""

import json

import pytest
from conftest import ROOT

from jit_jax.hardware import analysis, roofline
from jit_jax.hardware.cards import cards
from jit_jax.hardware.kernels import Kernel
from jit_jax.hardware.matrix_products import Product

H100 = cards()['h100']


def kernel(moved: float, operations: float, dtype: str = 'bfloat16', times: int = 1) -> Kernel:
    multiplied = (Product(operations, dtype),) if operations else ()
    return Kernel('k', 'products', '', times, moved, 0.0, multiplied, '', '')


def test_a_kernel_takes_the_longer_of_its_bytes_and_its_products():
    assert roofline.seconds(kernel(3.35232e12, 0), H100) == pytest.approx(1.0)
    assert roofline.seconds(kernel(3.35232e12, 989e12), H100) == pytest.approx(1.25)
    assert roofline.seconds(kernel(2 * 3.35232e12, 989e12, times=3), H100) == pytest.approx(6.0)
    assert roofline.seconds(kernel(0, 495e12, 'float32'), H100) == pytest.approx(1.25)
    assert roofline.seconds(kernel(0, 65e12, 'float16'), cards()['t4']) == pytest.approx(1.25)
    # A T4 has no bfloat16: it is computed in float32.
    assert roofline.seconds(kernel(0, 8.1e12), cards()['t4']) == pytest.approx(1.25)


def test_the_share_of_products():
    both = [kernel(3.35232e12, 989e12), kernel(3 * 1.25 * 3.35232e12, 0)]
    assert roofline.share_of_products(both, H100) == pytest.approx(0.25)
    assert roofline.total(both, H100) == pytest.approx(5.0)
    assert roofline.share_of_products([], H100) == 0


def test_a_program_in_numbers():
    text = (ROOT / 'tests/hardware/programs/layers_h100.hlo').read_text()
    found = analysis.analyse(text, H100)
    x, w = 256 * 128 * 2, 128 * 128 * 2
    once = 2 * 4 + 2 * x + 6 * x  # two copies and a fill
    turn = (2 * w + 4) + (2 * x + 4) + 2 * 4 + (2 * x + w) + 2 * x
    assert found.bytes == once + 6 * turn and found.kernels == 33
    assert found.operations == 6 * 2 * 256 * 128 * 128
    assert found.products['bfloat16'].kernels == 6 and found.attention == {}
    assert sum(kind.bytes for kind in found.kinds.values()) == found.bytes
    assert sum(kind.ms for kind in found.kinds.values()) == pytest.approx(found.roofline_ms)
    assert found.roofline_ms == pytest.approx(1e3 * found.bytes / 3.35232e12)
    assert found.share_of_products == pytest.approx(6 * (2 * x + w) / found.bytes)
    largest = found.largest[0]
    assert largest.bytes == 6 * (2 * x + w) and largest.source == 'jit_jax/model/small.py:13'
    assert len(found.largest) == 5 and largest.times == 6
    again = json.loads(json.dumps(found.as_dict()))
    assert again['kinds']['fills'] == {
        'bytes': 6.0 * x,
        'kernels': 1,
        'ms': pytest.approx(6e3 * x / 3.35232e12),
    }


def test_a_device_that_no_file_describes():
    text = (ROOT / 'tests/hardware/programs/attention_h100.hlo').read_text()
    found = analysis.analyse(text, None)
    assert found.roofline_ms is None and found.share_of_products is None
    assert found.attention == {'cudnn$fmhaSoftmax': 1, 'cudnn$fmhaSoftmaxBackward': 1}
    assert [kind.ms for kind in found.kinds.values()] == [None]
