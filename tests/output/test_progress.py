"""The line that a person reads."""

import pytest

from jit_jax.output.progress import duration, measured, progress_line, times_left


def test_a_line_of_training():
    values = {
        'grad_norm': 0.2083,
        'learning_rate': 1.2345e-4,
        'loss': 0.41234567,
        'images_per_second': 86.123,
        'mfu': 0.01759,
    }
    assert (
        progress_line(50, 2200, values, 186.0)
        == 'step 50/2200    loss 0.412   lr 1.2e-04     86.1 images/s  left 3.1 min'
    )


def test_lines_are_aligned():
    small = {'loss': 1.0, 'learning_rate': 1e-9, 'images_per_second': 5.0}
    large = {'loss': 0.01234, 'learning_rate': 0.5, 'images_per_second': 12345.6}
    a, b = progress_line(2, 2200, small, 60.0), progress_line(2200, 2200, large, 60.0)
    assert b == 'step 2200/2200  loss 0.0123  lr 5.0e-01    12346 images/s  left 1.0 min'
    for word in ('loss', 'lr', 'images/s', 'left'):
        assert a.index(word) == b.index(word)


@pytest.mark.parametrize(
    'values, line',
    [
        (
            {'psnr': 23.45678, 'seams': 1.2, 'v_loss_t0_0.5': 0.1, 'v_loss_t0.5_1': 0.3},
            'held-out loss 0.2, PSNR 23.46 dB; all numbers are in metrics.jsonl',
        ),
        (
            {'readable': 0.8594, 'classifier_distance': 25.91, 'readable_held_out': 1.0},
            '85.9% readable, classifier distance 25.9; all numbers are in metrics.jsonl',
        ),
        ({'fid': 9.0}, 'FID 9'),
        ({'is': 7.25}, 'is 7.25'),
    ],
)
def test_an_evaluation_is_a_line_with_what_matters(values, line):
    values = {f'evaluate/{name}': value for name, value in values.items()}
    assert measured(100, values) == f'measured at step 100: {line}'


def test_how_often_something_still_comes():
    """After every so many steps and after the last; after this one too, whose line comes first."""
    for every in (1, 3, 4, 12, 50):
        due = [step for step in range(1, 13) if step % every == 0 or step == 12]
        for step in range(1, 13):
            assert times_left(every, step, 12) == sum(step <= at for at in due)
    assert times_left(0, 1, 12) == 0  # never


def test_durations_have_units():
    assert [duration(s) for s in (0.4, 59, 60, 3599, 3600, 100_000)] == [
        '0 s',
        '59 s',
        '1.0 min',
        '60.0 min',
        '1.0 h',
        '27.8 h',
    ]
