"""The bytes that fused kernels move, against counts by hand."""

import pytest

from jit_jax.hardware import fusions, hlo

KERNEL = """
%fused () -> {result} {{
{body}
}}
ENTRY %main () -> {result} {{
{arguments}
  ROOT %kernel = {result} fusion({operands}), kind=kLoop, calls=%fused
}}
"""


def traffic(result: str, parameters: dict[str, str], body: str) -> tuple[float, float]:
    """(read, written) of a fusion of `body` over parameters, {name: shape}."""
    inner, outer = [], []
    for place, (name, shape) in enumerate(parameters.items()):
        inner.append(f'  %{name} = {shape} parameter({place})')
        outer.append(f'  %arg_{name} = {shape} parameter({place})')
    text = KERNEL.format(
        result=result,
        body='\n'.join([*inner, body]),
        arguments='\n'.join(outer),
        operands=', '.join(f'%arg_{name}' for name in parameters),
    )
    program = hlo.parse(text)
    return fusions.traffic(program, program.entry['kernel'], program.entry)


def of(program, name: str) -> tuple[float, float]:
    """(read, written) of the kernel `name` of a program, wherever it stands."""
    for computation in program.computations.values():
        if name in computation:
            return fusions.traffic(program, computation[name], computation)
    raise KeyError(name)


def test_pointwise_reads_and_writes_all():
    body = '  ROOT %sum = bf16[64,32]{1,0} add(%x, %x)'
    assert traffic('bf16[64,32]{1,0}', {'x': 'bf16[64,32]{1,0}'}, body) == (4096, 4096)


def test_a_slice_reads_only_itself(program):
    assert of(program('sums_h100'), 'loop_multiply_fusion') == (512 * 64 * 2, 512 * 64 * 2)
    assert of(program('sums_h100'), 'input_reduce_fusion') == (512 * 256 * 2, 512 * 4)


def test_stacked_arrays_move_by_the_slice(program):
    """Of w [6, 128, 128] one matrix; x [256, 128] into [6, 256, 128] in place; 4 bytes of index."""
    layers = program('layers_h100')
    assert of(layers, 'loop_dynamic_slice_fusion') == (128 * 128 * 2 + 4, 128 * 128 * 2)
    assert of(layers, 'loop_dynamic_update_slice_fusion') == (256 * 128 * 2 + 4, 256 * 128 * 2)
    assert of(layers, 'loop_broadcast_fusion') == (0, 6 * 256 * 128 * 2)


def test_rows_of_a_table(program):
    """32 of 1000 rows of 256 floats, 128 bytes of indices; adding to them reads them as well."""
    rows = program('rows_h100')
    assert of(rows, 'loop_gather_fusion') == (32 * 1024 + 128, 32 * 1024)
    assert of(rows, 'input_scatter_fusion') == (32 * 1024 + 128, 2 * 32 * 1024)


def test_a_column_comes_in_sectors():
    """One column of [64, 32] floats: 64 sectors of 32 bytes, not 64 × 4 bytes."""
    body = '  ROOT %s = f32[64,1]{1,0} slice(%x), slice={[0:64], [3:4]}'
    assert traffic('f32[64,1]{1,0}', {'x': 'f32[64,32]{1,0}'}, body) == (64 * 32, 64 * 4)


def test_two_slices_add_up_and_the_same_one_twice_does_not():
    halves = """  %a = f32[32,8]{1,0} slice(%x), slice={[0:32], [0:8]}
  %b = f32[32,8]{1,0} slice(%x), slice={[32:64], [0:8]}
  ROOT %s = f32[32,8]{1,0} add(%a, %b)"""
    assert traffic('f32[32,8]{1,0}', {'x': 'f32[64,8]{1,0}'}, halves)[0] == 64 * 8 * 4
    same = halves.replace('[32:64]', '[0:32]')
    assert traffic('f32[32,8]{1,0}', {'x': 'f32[64,8]{1,0}'}, same)[0] == 32 * 8 * 4


def test_a_concatenation_of_which_half_is_needed():
    body = """  %c = f32[64,8]{1,0} concatenate(%x, %y), dimensions={0}
  ROOT %s = f32[32,8]{1,0} slice(%c), slice={[0:32], [0:8]}"""
    parts = {'x': 'f32[32,8]{1,0}', 'y': 'f32[32,8]{1,0}'}
    assert traffic('f32[32,8]{1,0}', parts, body)[0] == 32 * 8 * 4


def test_what_does_not_lie_in_main_memory_is_not_moved(program):
    """On a TPU: x in VMEM, one matrix of w from main memory, the result in VMEM."""
    layers = program('layers_v5e')
    assert of(layers, 'convolution_tanh_fusion.2') == (128 * 128 * 2, 0)
    assert of(layers, 'bitcast_dynamic-update-slice_fusion.2') == (0, 256 * 128 * 2)


@pytest.mark.parametrize('rows', [1, 4])
def test_a_slice_that_stands_by_itself(rows):
    line = f'ROOT %s = f32[{rows},8]{{1,0}} slice(%x), slice={{[0:{rows}], [0:8]}}'
    instruction = hlo.parse(f'ENTRY %m () -> f32[] {{\n  {line}\n}}').entry['s']
    (shape,) = hlo.shapes('f32[64,8]{1,0}')
    assert fusions.window_bytes(instruction, shape) == rows * 8 * 4
