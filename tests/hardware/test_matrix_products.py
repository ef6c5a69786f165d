"""Operations of matrix products, against the arithmetic of their shapes."""

from jit_jax.hardware import hlo
from jit_jax.hardware.matrix_products import Product, attention_kernel, products


def of(program, name: str) -> list[Product]:
    """The products of the kernel `name` of a program, wherever it stands."""
    for computation in program.computations.values():
        if name in computation:
            return products(program, computation[name], computation)
    raise KeyError(name)


def single(line: str, *operands: str) -> list[Product]:
    """Of one instruction whose operands have these shapes."""
    inputs = [f'  %p{place} = {shape} parameter({place})' for place, shape in enumerate(operands)]
    text = '\n'.join(['ENTRY %main () -> f32[] {', *inputs, f'  ROOT %k = {line}', '}'])
    program = hlo.parse(text)
    return products(program, program.entry['k'], program.entry)


def test_a_product_of_matrices(program):
    """[256, 128] by [128, 128]: two operations for each of 256 · 128 results and 128 terms."""
    want = [Product(2.0 * 256 * 128 * 128, 'bfloat16')]
    assert of(program('layers_h100'), 'custom-call.1') == want
    assert of(program('layers_v5e'), 'convolution_tanh_fusion.2') == want
    line = 'f32[4,5]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}'
    assert single(line, 'f32[4,3]{1,0}', 'bf16[3,5]{1,0}') == [Product(2.0 * 4 * 5 * 3, 'float32')]
    assert of(program('sums_h100'), 'input_reduce_fusion') == []


def test_attention_of_cudnn(program):
    """Four rows, two heads, 256 slots of width 64: two products forward and five backward."""
    one = 2.0 * 4 * 2 * 256 * 256 * 64
    attention = program('attention_h100')
    assert of(attention, 'dot_product_attention_fwd.5') == [Product(2 * one, 'bfloat16')]
    assert of(attention, 'dot_product_attention_bwd.8') == [Product(5 * one, 'bfloat16')]
    forward = attention.entry['dot_product_attention_fwd.5']
    assert attention_kernel(forward) == 'cudnn$fmhaSoftmax'
    assert attention_kernel(attention.entry['q.1']) == ''


def test_attention_of_a_tpu():
    """The logits and their use forward; the backward pass in two kernels, seven products."""
    shapes = 's8[1,2,2]{2,1,0}', *['bf16[16,12,256,64]{3,2,1,0}'] * 3
    counted = {}
    for name in ('splash_mha_fwd_residuals.1', 'splash_mha_dq_no_residuals', 'splash_mha_dkv.7'):
        call = 'custom-call(%p0, %p1, %p2, %p3), custom_call_target="tpu_custom_call"'
        inputs = [f'  %p{i} = {shape} parameter({i})' for i, shape in enumerate(shapes)]
        text = '\n'.join(
            ['ENTRY %m () -> f32[] {', *inputs, f'  ROOT %{name} = bf16[2]{{0}} {call}', '}']
        )
        program = hlo.parse(text)
        (product,) = products(program, program.entry[name], program.entry)
        counted[attention_kernel(program.entry[name])] = product.operations
    one = 2.0 * 16 * 12 * 256 * 256 * 64
    assert counted == {
        'splash_mha_fwd': 2 * one,
        'splash_mha_dq': 3 * one,
        'splash_mha_dkv': 4 * one,
    }


def test_a_convolution_without_its_padding():
    """A product in batches as a TPU writes it: the padded window meets each row of a batch once."""
    line = (
        'bf16[5,8,6]{2,1,0} convolution(%p0, %p1), '
        'window={size=5 stride=4 pad=0_0 lhs_dilate=5}, dim_labels=0bf_0io->0bf'
    )
    batched = single(line, 'bf16[5,8,7]{2,1,0}', 'bf16[5,7,6]{2,1,0}')
    assert batched == [Product(2.0 * 5 * 8 * 6 * 7, 'bfloat16')]
    same = 'f32[2,8,8,3]{3,2,1,0} convolution(%p0, %p1), window={size=3x3 pad=1_1x1_1}, '
    whole = single(same + 'dim_labels=b01f_01io->b01f', 'f32[2,8,8,4]{3,2,1,0}', 'f32[3,3,4,3]{}')
    pairs = (8 * 3 - 2) ** 2  # of a pixel and a place of the window, without the border
    assert whole == [Product(2.0 * 2 * pairs * 3 * 4, 'float32')]


def test_a_convolution_of_cudnn():
    line = (
        '(f32[2,3,8,8]{3,2,1,0}, u8[64]{0}) custom-call(%p0, %p1), window={size=3x3 pad=1_1x1_1}, '
        'dim_labels=bf01_oi01->bf01, custom_call_target="__cudnn$convForward"'
    )
    found = single(line, 'f32[2,4,8,8]{3,2,1,0}', 'f32[3,4,3,3]{3,2,1,0}')
    assert found == [Product(2.0 * 2 * 3 * 8 * 8 * 4 * 9, 'float32')]
