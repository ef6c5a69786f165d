"""A run that is measured, and which of its weights are."""

from types import SimpleNamespace

import numpy as np

from jit_jax import trained
from jit_jax.evaluation.results import MeasuredRun


def test_each_name_stands_for_its_own_weights(monkeypatch):
    there = {'ema1': 1.0, 'ema2': 2.0, 'params': 3.0}
    model = SimpleNamespace(config={})  # of converted weights: there is no data

    def load(path, ema):
        assert path == 'run'
        return model, {'kernel': np.full(3, there[ema], np.float32)}

    monkeypatch.setattr(trained, 'load', load)
    run = MeasuredRun('run', list(there))
    assert len(set(run.hashes.values())) == 3 and run.model is model
    for ema in ('params', 'ema1', 'ema2', 'ema2', 'ema1', 'params'):
        np.testing.assert_array_equal(run.params(ema)['kernel'], [there[ema]] * 3)
