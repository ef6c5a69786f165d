"""The parser of optimised programs: shapes, instructions, computations, lines of Python."""

import pytest

from jit_jax.hardware import hlo


def test_a_shape_with_its_tiles_and_its_memory():
    (shape,) = hlo.shapes('f32[16,12,250]{2,1,0:T(8,128)S(1)}')
    assert shape.dims == (16, 12, 250) and shape.layout == (2, 1, 0)
    assert shape.tile == (8, 128) and shape.space == 1 and shape.elements == 16 * 12 * 250
    assert shape.bytes == 16 * 16 * 256 * 4 and shape.dense_bytes == 16 * 12 * 250 * 4
    assert shape.traffic == 0  # it lies in VMEM
    (turned,) = hlo.shapes('bf16[250,12]{0,1:T(8,128)(2,1)}')  # dimension 0 lies side by side
    assert turned.bytes == turned.traffic == 256 * 16 * 2


def test_shapes_of_a_tuple():
    text = '((bf16[8]{0}, /*index=5*/pred[]), (f32[2,3]{1,0}, u32[]{:S(2)}))'
    found = hlo.shapes(text)
    assert [(s.dtype, s.dims, s.traffic) for s in found] == [
        ('bf16', (8,), 16),
        ('pred', (), 1),
        ('f32', (2, 3), 24),
        ('u32', (), 0),
    ]


def test_a_program(program):
    layers = program('layers_h100')
    assert layers.entry_name == 'main.6' and len(layers.computations) == 9
    body = layers.computations['region_0.4']
    product = body['custom-call.1']
    assert product.op == 'custom-call' and product.target == '__cublas$lt$matmul'
    assert product.operands == ('get-tuple-element.11', 'bitcast.2') and not product.root
    assert [shape.dims for shape in product.shapes] == [(256, 128), (33554432,)]
    assert product.path == 'jit(layers)/while/body/closed_call/dot_general'
    assert body['tuple.6'].root and len(body['tuple.6'].shapes) == 4
    update = layers.computations['fused_dynamic_update_slice']['dynamic_update_slice.0.1']
    assert update.root and update.operands[0] == 'param_0'
    taken = layers.computations['fused_dynamic_slice']['dynamic_slice.0.1']
    assert taken.numbers('dynamic_slice_sizes') == (1, 128, 128)
    assert taken.numbers('slice_sizes') == () and body['loop_add_fusion'].called == 'fused_add'


def test_lines_of_python(program):
    layers = program('layers_h100')
    product = layers.computations['region_0.4']['custom-call.1']
    frames = layers.stack(product)
    assert [(frame.line, frame.function) for frame in frames] == [
        (13, 'layers.<locals>.one'),
        *[(14, 'layers')] * 3,  # inside lax.scan, whose own lines JAX leaves out
        (29, '<module>'),
    ]
    assert layers.source(product) == 'jit_jax/model/small.py:13'
    assert layers.source(product, package='model') == 'model/small.py:13'
    assert layers.source(product, package='flax') == ''
    assert layers.stack(layers.computations['region_0.4']['tuple.6']) == []


def test_lines_as_older_compilers_write_them():
    text = """
ENTRY %main (x: f32[2]) -> f32[2] {
  ROOT %x = f32[2]{0} parameter(0), metadata={source_file="/a/jit_jax/loop.py" source_line=7}
}
"""
    program = hlo.parse(text)
    assert program.source(program.entry['x']) == 'jit_jax/loop.py:7'


def test_an_instruction_over_several_lines():
    text = """
ENTRY %main (x: f32[2]) -> f32[2] {
  %x = f32[2]{0} parameter(0)
  %y = f32[2]{0} custom-call(%x), custom_call_target="tpu_custom_call", attributes={kernel={
 "a": "b = (c"
}}, metadata={op_name="jit(f)/kernel"}
  ROOT %z = f32[2]{0} negate(%y)
}
"""
    entry = hlo.parse(text).entry
    assert list(entry) == ['x', 'y', 'z'] and entry['z'].root
    assert entry['y'].path == 'jit(f)/kernel' and entry['y'].operands == ('x',)


def test_what_is_no_program():
    with pytest.raises(ValueError, match='no ENTRY'):
        hlo.parse('HloModule nothing')
