"""Charts and heat maps by matplotlib, drawn into arrays. One palette for all pictures of a run."""

import textwrap
from collections.abc import Sequence

import numpy as np

BLUE, ORANGE = '#3566a8', '#d9822b'
COLORS = (BLUE, ORANGE, '#4c9a5f', '#b04a5a', '#7a5fa8', '#5b8c95', '#a08a2e', '#8a8f99')
SCALE = ('#16294d', BLUE, '#8fb0d9', '#f6ead8')  # of a heat map, low to high: dark to bright
INK, FAINT_INK, FAINT = '#444b57', '#8a8f99', '#e4e7ec'

WIDTH, HEIGHT = 460, 250  # of a chart on a page, in pixels; it is drawn twice as large
POINTS = 300  # of a curve at most; a longer one is averaged
LABEL = 26  # letters in a line beside a chart, or they are cut off
ROUND = (1, 2, 5, 10)  # between two ticks, times a power of ten

GENERATED, HELD_AGAINST = 'generated', ('held out', 'train')  # names of curves

# What the numbers of metrics.jsonl are, where the name does not say it: the name of the y axis.
UNITS = {
    'grad_norm': 'norm of the gradient',
    'images_per_second': 'images per second',
    'mfu': 'share of the peak rate',
    'data_wait': 'share of the time',
    'broken_images': 'images',
    'mse': 'mean squared error',
    'perceptual': 'LPIPS of rows with little noise',
    'readable': 'share of the images',
    'classifier_distance': 'Fréchet distance',
    'seams': 'border_steps over those of held-out images',
    'border_steps': 'across borders of patches over inside',
}


def chart(
    title: str,
    series: dict[str, list[tuple[int, float]]],
    marks: Sequence[int] = (),
    names: Sequence[str] = (),
) -> np.ndarray:
    """Curves [(step, value), …] by name, at least one of them: uint8 [2·HEIGHT, 2·WIDTH, 3].

    A loss that spans more than 30 times is on a log scale. A single value is a dot. marks: steps at
    which a dotted line stands, where a run was resumed. names: all that are ever drawn, where a
    name has the same colour on every chart of a page.
    """
    return _pixels(_chart_figure(title, series, marks, names))


def _chart_figure(title: str, series: dict, marks: Sequence[int] = (), names: Sequence[str] = ()):
    from matplotlib.figure import Figure

    figure = Figure((WIDTH / 100, HEIGHT / 100), dpi=200, layout='constrained')
    axes = figure.add_subplot()
    names = names or list(series)
    beside = {name: _beside(name, names) for name in names}
    own = list(dict.fromkeys(beside.values()))  # a colour each
    colors = dict(zip(own, _colors(len(own)), strict=True))
    for name, points in series.items():
        steps, values = thinned(points).T
        marker = 'o' if len(steps) == 1 else ''
        look = {'color': colors[beside[name]], 'marker': marker, 'markersize': 5}
        if beside[name] == name:
            axes.plot(steps, values, label=name, **look)
        else:
            axes.plot(steps, values, linestyle='--', zorder=1.5, **look)
    for words in HELD_AGAINST:
        if any(beside[name] != name and name.endswith(words) for name in series):
            axes.plot([], [], linestyle='--', color=INK, label=words)
    for step in marks:
        axes.axvline(step, color=FAINT_INK, linewidth=1, linestyle=(0, (1, 2)), zorder=0)
    on_log = _on_log_scale(title, series)
    axes.set_title(f'{title}, log scale' if on_log else title, loc='left', color=INK, fontsize=10)
    axes.set_xlabel('step', color=INK, fontsize=9)
    axes.set_ylabel(textwrap.fill(_unit(title), LABEL), color=INK, fontsize=9)
    _set_ticks(axes, on_log=on_log)
    if len(names) > 1:  # beside the axes, where no curve passes
        figure.legend(loc='outside right upper', frameon=False, fontsize=8, labelcolor=INK)
    return figure


def _beside(name: str, names: Sequence[str]) -> str:
    """The curve that another one is held against, drawn dashed in its colour: of a judge's 'svc
    held out' that is 'svc'. Any other name is its own.
    """
    for words in HELD_AGAINST:
        partner = GENERATED if name == words else name.removesuffix(f' {words}')
        if partner != name and partner in names:
            return partner
    return name


def thinned(points: list[tuple[int, float]]) -> np.ndarray:
    """A curve as float64 [n, 2], n at most POINTS: means of neighbours where it has more."""
    parts = np.array_split(np.asarray(points, np.float64), min(len(points), POINTS))
    return np.array([part.mean(0) for part in parts])


def heat_map(
    values: np.ndarray,
    rows: list[str],
    columns: list[str],
    title: str,
    best: tuple[int, int],
    *,
    row_name: str,
    column_name: str,
) -> np.ndarray:
    """A table of numbers [R, C] as coloured cells with their values, the best one framed.

    rows, columns: the names of the table's rows and columns; row_name, column_name: of its axes.
    best: the row and the column of the best value. Returns a picture, uint8 [·, ·, 3].
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    high, wide = np.shape(values)
    size = (max(1.2 + 0.72 * wide, 0.5 + 0.085 * len(title)), 1.1 + 0.46 * high)
    figure = Figure(size, dpi=150, layout='constrained')
    axes = figure.add_subplot()
    colors = LinearSegmentedColormap.from_list('dark to bright', SCALE)
    axes.imshow(values, cmap=colors, aspect='auto')
    low, span = np.min(values), max(np.ptp(values), 1e-12)
    for (row, column), value in np.ndenumerate(values):
        ink = 'white' if (value - low) / span < 0.5 else 'black'
        axes.text(column, row, f'{value:.4g}', color=ink, ha='center', va='center', fontsize=9)
    corner = (best[1] - 0.46, best[0] - 0.44)
    axes.add_patch(Rectangle(corner, 0.92, 0.88, fill=False, edgecolor=ORANGE, linewidth=3))
    axes.set_xticks(range(wide), columns)
    axes.set_yticks(range(high), rows)
    axes.set_xlabel(column_name, color=INK)
    axes.set_ylabel(row_name, color=INK)
    figure.suptitle(title, color=INK, fontsize=11)
    axes.tick_params(length=0, colors=INK, labelsize=9)
    axes.spines[:].set_visible(False)
    return _pixels(figure)


def _colors(count: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(count)]


def _unit(title: str) -> str:
    """The y axis of a chart: `evaluate/psnr` is in dB, whatever stands before it."""
    name = title.rpartition('/')[2]
    if name.startswith('psnr'):
        return 'dB'
    return UNITS.get(name, name.replace('_', ' '))


def _on_log_scale(title: str, series: dict[str, list[tuple[int, float]]]) -> bool:
    values = np.concatenate([thinned(points)[:, 1] for points in series.values()])
    return 'loss' in title and values.min() > 0 and values.max() > 30 * values.min()


def _set_ticks(axes, *, on_log: bool) -> None:
    from matplotlib import ticker

    if on_log:
        axes.set_yscale('log')
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(ticker.NullLocator())
    else:
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=ROUND))
    axes.yaxis.set_major_formatter(ticker.StrMethodFormatter('{x:.6g}'))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, steps=ROUND, integer=True))
    axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=''))  # 20k
    axes.grid(axis='y', color=FAINT, linewidth=0.8)
    axes.tick_params(colors=INK, labelsize=8)
    axes.tick_params(axis='y', length=0)
    axes.spines[['top', 'right', 'left']].set_visible(False)
    axes.spines['bottom'].set_color(INK)


def _pixels(figure) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
