"""How often loops turn."""

from jit_jax.hardware import hlo, trip_counts

LOOP = """
%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %p = (s32[], f32[4]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[4]{{0}} get-tuple-element(%p), index=1
  %step = s32[] constant({step})
  %next = s32[] add(%i, %step)
  ROOT %t = (s32[], f32[4]{{0}}) tuple(%next, %x)
}}
%condition (q: (s32[], f32[4])) -> pred[] {{
  %q = (s32[], f32[4]{{0}}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %limit = s32[] constant(12)
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}}
ENTRY %main (a: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %a = (s32[], f32[4]{{0}}) parameter(0)
  ROOT %w = (s32[], f32[4]{{0}}) while(%a), condition=%condition, body=%body{known}
}}
"""


def turns(step: int, known: str = '') -> int:
    program = hlo.parse(LOOP.format(step=step, known=known))
    return trip_counts.turns(program, program.entry['w'])


def test_counter_and_limit():
    assert turns(1) == 12
    assert turns(2) == 6  # unrolled by two


def test_what_the_compiler_says_goes_first(program):
    assert turns(1, ', backend_config={"known_trip_count":{"n":"5"}}') == 5
    layers = program('layers_h100')
    assert trip_counts.turns(layers, layers.entry['while.10']) == 6


def test_a_loop_of_a_tpu_which_says_nothing(program):
    layers = program('layers_v5e')
    loop = next(c for c in layers.entry.values() if c.op == 'while')
    assert 'known_trip_count' not in loop.attributes and trip_counts.turns(layers, loop) == 6
