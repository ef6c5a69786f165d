"""A run that measures itself while it trains."""

import json
from types import SimpleNamespace

import pytest
from shell import TINY, assert_same_run, lines, train

from configs import uncond
from jit_jax.errors import UserError
from jit_jax.evaluation.periodic import PeriodicEvaluation


def config():
    some = uncond.get_config()
    some.model.variant, some.steps = TINY, 10
    some.evaluate.every, some.evaluate.denoise_every = 4, 3
    return some


def run_of(some, classes=('0', '1')):
    """As much of a run as an evaluation knows before it is due."""
    return SimpleNamespace(config=some, record=some.to_dict() | {'classes': list(classes)})


def test_training_measures_itself_and_is_the_same_run(finished, env, tmp_path):
    how = {'every': 6, 'num': 8, 'batch': 8, 'denoise_every': 4, 'denoise_num': 12}
    flags = [f'--config.evaluate.{name}={value}' for name, value in how.items()]
    train(tmp_path, env, 'uncond', *flags)
    mine, other = tmp_path / 'runs/uncond', finished[0] / 'runs/uncond'
    measured, rest = {}, []
    for line in lines(mine):
        if 'loss' in line:
            rest.append(line)
        else:
            measured[line['step']] = line

    def steps(name):
        return [step for step in measured if f'evaluate/{name}' in measured[step]]

    assert steps('psnr_t0.5') == [4, 8, 12] and steps('classifier_distance') == [6, 12]
    (mine / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in rest))
    assert_same_run(mine, other)


def test_when_something_is_due():
    some = config()
    evaluation = PeriodicEvaluation(run_of(some))
    assert [step for step in range(1, 11) if evaluation.due(step)] == [3, 4, 6, 8, 9, 10]
    some.evaluate.every = some.evaluate.denoise_every = 0
    evaluation = PeriodicEvaluation(run_of(some))
    assert not any(evaluation.due(step) for step in range(1, 11))


def test_the_average_is_measured_and_not_the_last_weights(monkeypatch):
    some = config()
    some.steps = 12
    run = run_of(some)
    run.settings = 'as the run samples'
    monkeypatch.setattr(
        PeriodicEvaluation, '_make_denoising', lambda self: lambda params: {'mse': params}
    )
    monkeypatch.setattr(
        PeriodicEvaluation, '_make_measure', lambda self: lambda params, how: {'fid': (params, how)}
    )
    state = SimpleNamespace(params='weights', ema={'ema1': 'average', 'ema2': 'other'})
    assert PeriodicEvaluation(run)(state, 12) == {
        'evaluate/mse': 'average',
        'evaluate/fid': ('average', 'as the run samples'),
    }


def test_training_refuses_what_it_could_not_measure():
    some = config()
    with pytest.raises(UserError, match='set config.evaluate.inception, or every to 0'):
        PeriodicEvaluation(run_of(some, classes=()))
    some.evaluate.inception = '/nowhere.pth'
    with pytest.raises(UserError, match='no Inception weights at /nowhere.pth'):
        PeriodicEvaluation(run_of(some))
