"""Kernels of whole programs: which run, how often, what they are, where they come from."""

from jit_jax.hardware import hlo
from jit_jax.hardware.kernels import KINDS, collectives, kernels


def test_a_scan(program):
    """Three kernels before the loop, five in each of its six turns; nothing for names."""
    found = {kernel.name: kernel for kernel in kernels(program('layers_h100'))}
    assert sum(kernel.times for kernel in found.values()) == 3 + 6 * 5
    kinds = {name: kernel.kind for name, kernel in found.items()}
    assert kinds == {
        'copy.24': 'copies',
        'copy.23': 'copies',
        'loop_broadcast_fusion': 'fills',
        'loop_dynamic_slice_fusion': 'stacks',
        'loop_dynamic_update_slice_fusion': 'stacks',
        'loop_add_fusion': 'elementwise',
        'custom-call.1': 'products',
        'loop_convert_fusion': 'elementwise',
    }
    assert set(kinds.values()) <= set(KINDS)
    product = found['custom-call.1']
    x, w = 256 * 128 * 2, 128 * 128 * 2
    assert product.times == 6 and product.read == x + w
    assert product.written == x  # its workspace of 32 MB is not written
    assert product.moved == 6 * (2 * x + w) and product.call == '__cublas$lt$matmul'


def test_lines_of_our_code(program):
    """A fusion without a line has that of its last instruction; a copy, that of its user."""
    found = {kernel.name: kernel.source for kernel in kernels(program('layers_h100'))}
    assert found['custom-call.1'] == found['loop_convert_fusion'] == 'jit_jax/model/small.py:13'
    assert found['copy.23'] == 'for jit_jax/model/small.py:14'


def test_a_tpu_moves_only_what_is_in_main_memory(program):
    found = {kernel.name: kernel for kernel in kernels(program('layers_v5e'))}
    x = 256 * 128 * 2
    assert (found['copy-start.1'].read, found['copy-start.1'].written) == (x, 0)
    assert (found['copy-start'].read, found['copy-start'].written) == (0, x)
    assert found['copy.15'].bytes == 0 and 'custom-call' not in found  # AllocateBuffer
    assert found['convolution_tanh_fusion.2'].kind == 'products'


def test_collectives(program):
    """An all-gather of w [128, 32] in bfloat16, of which each of four devices has a quarter."""
    for name in ('gathered_h100', 'gathered_v5e'):
        assert collectives(program(name)) == {'all-gather': (1, 128 * 32 * 2)}
    found = {kernel.name: kernel for kernel in kernels(program('gathered_h100'))}
    assert list(found) == ['all-gather-start', 'custom-call.1']  # its end is no kernel
    start = found['all-gather-start']
    assert start.kind == 'collectives' and (start.read, start.written) == (2048, 8192)


def test_a_collective_in_several_fusions_counts_once():
    line = '  {root}%{name} = f32[8]{{0}} all-reduce(%x), channel_id=4, to_apply=%sum'
    text = '\n'.join(
        ['ENTRY %main (x: f32[8]) -> f32[8] {', '  %x = f32[8]{0} parameter(0)']
        + [line.format(root='', name='a'), line.format(root='ROOT ', name='b'), '}']
    )
    assert collectives(hlo.parse(text)) == {'all-reduce': (1, 32)}


def test_of_two_branches_the_larger_counts(program):
    found = kernels(program('branches_h100'))
    assert [kernel.kind for kernel in found] == ['products', 'elementwise']


def test_attention_is_a_kind_of_its_own(program):
    forward, backward = kernels(program('attention_h100'))
    assert forward.kind == backward.kind == 'attention'
    assert forward.call == 'cudnn$fmhaSoftmax' and backward.call == 'cudnn$fmhaSoftmaxBackward'
    q, sums = 4 * 256 * 2 * 64 * 2, 4 * 2 * 256 * 4
    assert (forward.read, forward.written) == (3 * q, q + sums)
    assert (backward.read, backward.written) == (4 * q + sums, 3 * q)  # q is the gradient too
