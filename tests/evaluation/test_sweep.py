"""The axes of a sweep."""

import pytest

from jit_jax.commands import command_line, evaluate
from jit_jax.diffusion.generate import Settings
from jit_jax.errors import UserError
from jit_jax.evaluation.results import Cell
from jit_jax.evaluation.sweep import grid, parse_axes


@pytest.mark.parametrize(
    'text, words',
    [
        *((text, 'is not ema=') for text in ('ema', 'speed=1,2', 'guidance=1:2', 'steps=many')),
        *((text, 'is not ema=') for text in ('steps=1.5', 'guidance=1,2:3', 'ema=,')),
        ('ema=a steps=1 guidance=2', 'one or two'),
        ('', 'one or two'),
        ('steps=1 steps=2', 'steps twice'),
        *((f'guidance={text}', 'finite') for text in ('nan', '1,inf', '-inf')),
        *((f't_eps={text}', '0 to below 1') for text in ('1', '-0.1', 'nan')),
        *((f'steps={text}', '1 step or more') for text in ('0', '20,-1', '0:4:1')),
        ('sampler=huen', 'one of euler, heun, multistep'),
        *((f'guidance=1:2:{step}', 'by a step above 0') for step in ('0', '-0.1', 'nan', 'inf')),
        ('guidance=nan:2:1', 'by a step above 0'),
        ('guidance=3:2:1', 'from first to last'),
        ('guidance=1:2:1e-9', 'more than 1000 values'),
    ],
)
def test_sweeps_that_cannot_be(text, words):
    with pytest.raises(UserError, match=words):
        parse_axes(text)


def test_axes_of_the_paper():
    sweep = ['guidance=1.0:4.0:0.1', 'ema=ema1,ema2']
    parser = command_line.Parser(evaluate, 'jit-jax evaluate')
    args = parser.parse(['--num=8000', '--sweep', *sweep, '--seed=1'])
    assert args.sweep == sweep and args.num == 8000 and args.seed == 1
    assert parser.parse([f'--sweep={" ".join(sweep)}']).sweep == [' '.join(sweep)]
    axes = parse_axes('guidance=1.0:4.0:0.1 ema=ema1,ema2')
    assert list(axes) == ['ema', 'guidance']
    assert axes['guidance'] == [round(1 + i / 10, 1) for i in range(31)]


def test_values_are_taken_once():
    assert parse_axes('steps=20,20,50') == {'steps': [20, 50]}
    assert parse_axes('t_eps=0,0.05') == {'t_eps': [0.0, 0.05]}
    assert parse_axes('steps=10:30:10') == {'steps': [10, 20, 30]}


def test_a_grid_goes_row_by_row():
    base = Cell('ema1', Settings('heun', 50, 1.5))
    cells = grid(parse_axes('steps=1,2 sampler=euler,heun'), base)
    found = [(cell.ema, cell.settings.steps, cell.settings.sampler) for cell in cells]
    steps = [('ema1', 1, 'euler'), ('ema1', 1, 'heun'), ('ema1', 2, 'euler'), ('ema1', 2, 'heun')]
    assert found == steps and all(cell.settings.guidance == 1.5 for cell in cells)
    assert [cell.ema for cell in grid(parse_axes('ema=ema2,params'), base)] == ['ema2', 'params']
