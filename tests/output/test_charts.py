"""Charts and heat maps: what is drawn is what the numbers say."""

import subprocess
import sys

import numpy as np
import pytest

from jit_jax.output import charts


def rgb(color):
    return np.frombuffer(bytes.fromhex(color[1:]), np.uint8).astype(int)


def is_near(picture, color, tolerance=60):
    """Where a picture has a colour, bool [h, w]."""
    return np.abs(picture.astype(int) - rgb(color)).sum(-1) < tolerance


def test_a_curve_goes_where_its_numbers_go():
    falling = charts.chart('x', {'': [(s, 100.0 - s) for s in range(101)]}).astype(int)
    blue = is_near(falling, charts.BLUE)
    rows, columns = np.nonzero(blue)
    assert columns.max() - columns.min() > 700  # from edge to edge
    assert np.corrcoef(rows, columns)[0, 1] > 0.999  # straight down
    assert (
        charts.chart('x', {'': [(5, 1.0)]}).shape
        == charts.chart('x', {'': [(0, 0.0), (1, 0.0)]}).shape
        == falling.shape
    )


@pytest.mark.parametrize('low, high', [(0, 1), (1.3, 1.4), (-5, 12_000), (1e-9, 3e-9), (2, 700)])
def test_ticks_are_round_inside_and_enough(low, high):
    axes = charts._chart_figure('x', {'': [(0, low), (1, high)]}).axes[0]
    bottom, top = axes.get_ylim()
    found = np.array([tick for tick in axes.get_yticks() if bottom <= tick <= top])
    steps = np.diff(found)
    assert 3 <= len(found) <= 7
    np.testing.assert_allclose(steps, steps[0])
    assert round(steps[0] / 10 ** np.floor(np.log10(steps[0] * 1.0001)), 6) in (1, 2, 5)
    labels = [axes.yaxis.get_major_formatter()(tick, 0) for tick in found]
    assert len(set(labels)) == len(labels)
    np.testing.assert_allclose([float(text.replace('−', '-')) for text in labels], found, atol=0)


def test_axes_have_names_and_units():
    curve = {'': [(0, 0.1), (40_000, 0.2)]}
    axes = charts._chart_figure('images_per_second', curve).axes[0]
    assert axes.get_title('left') == 'images_per_second'
    assert (axes.get_xlabel(), axes.get_ylabel()) == ('step', 'images per second')
    assert axes.xaxis.get_major_formatter()(20_000, 0) == '20k'
    psnr = charts._chart_figure('evaluate/psnr', curve).axes[0]
    assert psnr.get_ylabel() == 'dB'


def test_a_single_value_is_a_dot():
    dot = is_near(charts.chart('x', {'': [(5, 1.0)]}), charts.BLUE)
    rows, columns = np.nonzero(dot)
    assert 60 < dot.sum() < 500
    assert np.ptp(rows) < 25 and np.ptp(columns) < 25


def test_several_curves_have_their_colours_and_a_legend_beside_them():
    low = [(s, 1.0) for s in range(50)]
    high = [(s, 2.0) for s in range(50)]
    alone = charts.chart('x', {'': low})
    both = charts.chart('x', {'t0.2': low, 't0.5': high})
    assert both.shape == alone.shape
    blue, orange = (np.argwhere(is_near(both, color)) for color in (charts.BLUE, charts.ORANGE))
    assert len(blue) > 500 and len(orange) > 500
    curve_end = np.argwhere(is_near(both, charts.BLUE))[:, 1]
    legend = curve_end > both.shape[1] * 0.8  # the handle, right of the curves
    assert legend.any() and not is_near(alone, charts.ORANGE).any()


def test_a_run_that_went_on_has_a_mark_there():
    curve = {'': [(0, 1.0), (100, 0.5)]}
    axes = charts._chart_figure('loss', curve, marks=[40, 60]).axes[0]
    lines = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() != '-']
    assert lines == [40, 60] and len(axes.lines) == 3


def test_a_name_keeps_its_colour_where_another_run_has_no_such_number():
    curve = [(0, 1.0), (100, 0.5)]
    axes = charts._chart_figure('loss', {'b': curve}, names=['a', 'b']).axes[0]
    assert axes.lines[0].get_color() == charts.ORANGE
    assert axes.figure.legends[0].get_texts()[0].get_text() == 'b'


def test_what_a_curve_is_held_against_is_dashed_in_its_colour():
    curve = [(0, 1.0), (100, 0.5)]
    names = ['generated', 'held out', 'svc', 'svc held out', 'knn']
    figure = charts._chart_figure('readable', dict.fromkeys(names, curve))
    looks = [(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines[:5]]
    blue, orange, green = charts.COLORS[:3]
    assert looks == [(blue, '-'), (blue, '--'), (orange, '-'), (orange, '--'), (green, '-')]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ['generated', 'svc', 'knn', 'held out']
    runs = charts._chart_figure('loss', {'train': curve, 'x': curve}).axes[0].lines
    assert [line.get_linestyle() for line in runs] == ['-', '-']  # a run of that name


@pytest.mark.parametrize('name', charts.UNITS)
def test_no_name_of_an_axis_is_cut_off(name):
    figure = charts._chart_figure(name, {'': [(0, 1e-4), (100, 0.5)]})
    figure.draw_without_rendering()
    label = figure.axes[0].yaxis.label.get_window_extent()
    assert label.y0 >= 0 and label.y1 <= figure.bbox.height and label.x0 >= 0


def test_the_mean_of_a_long_curve_is_kept():
    points = [(s, float(s % 2)) for s in range(100_000)]
    thin = charts.thinned(points)
    assert len(thin) == charts.POINTS
    np.testing.assert_allclose(thin[:, 1], 0.5, atol=0.01)
    assert len(charts.thinned(points[:7])) == 7


@pytest.mark.parametrize(
    'title, values, on_log',
    [
        ('loss', (1.0, 0.02), True),
        ('loss', (1.0, 0.2), False),
        ('loss', (1.0, 0.0), False),
        ('psnr', (1.0, 0.02), False),
    ],
)
def test_a_loss_that_falls_far_is_on_a_log_scale(title, values, on_log):
    assert charts._on_log_scale(title, {'': list(enumerate(values))}) == on_log


def test_heat_map_shows_the_low_dark_and_frames_the_best():
    table = np.array([[3.0, 1.0, 2.0], [5.0, 4.0, 9.0]])
    picture = charts.heat_map(
        table,
        ['ema1', 'ema2'],
        ['1.0', '1.5', '2.0'],
        'fid of 8 images',
        (0, 1),
        row_name='ema',
        column_name='guidance',
    )
    frame = np.argwhere(is_near(picture, charts.ORANGE))
    top, left = frame.min(0)
    bottom, right = frame.max(0)
    inside = picture[top + 12, left + 12]
    brightest = picture[bottom + 20, right + 20]  # below and right of the best: 9
    assert inside.astype(int).sum() < brightest.astype(int).sum()
    assert np.abs(inside.astype(int) - rgb(charts.SCALE[0])).max() <= 3
    assert np.abs(brightest.astype(int) - rgb(charts.SCALE[-1])).max() <= 3


def test_matplotlib_is_imported_where_something_is_drawn():
    code = "import sys, jit_jax.output.charts; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
