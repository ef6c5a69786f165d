"""Charts and heat maps."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLOURS = (
    (68, 1, 84),
    (59, 82, 139),
    (33, 145, 140),
    (94, 201, 98),
    (253, 231, 37),
)  # low to high: dark to bright


def heat_map(
    values: np.ndarray, rows: list[str], columns: list[str], title: str, best: tuple[int, int]
) -> np.ndarray:
    """A table of numbers [R, C] as coloured cells with their values, named rows and columns, and the best one framed: uint8."""
    wide, high, left, top = 52, 32, 20 + 8 * max(map(len, rows)), 72
    sheet = Image.new(
        'RGB',
        (max(left + wide * len(columns) + 12, 20 + 8 * len(title)), top + high * len(rows) + 12),
        'white',
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    draw.text((10, 10), title, 'black', ImageFont.load_default(15))
    for j, name in enumerate(columns):
        draw.text((left + wide * (j + 0.5), top - 14), name, 'black', font, 'mm')
    low, span = values.min(), max(np.ptp(values), 1e-12)
    for i, name in enumerate(rows):
        draw.text((left - 8, top + high * (i + 0.5)), name, 'black', font, 'rm')
        for j, value in enumerate(values[i]):
            x, y, at = left + wide * j, top + high * i, (value - low) / span
            colour = tuple(int(np.interp(at * 4, range(5), channel)) for channel in zip(*COLOURS))
            draw.rectangle(
                (x, y, x + wide - 2, y + high - 2), colour, 'red' if (i, j) == best else None, 3
            )
            draw.text(
                (x + wide / 2, y + high / 2),
                f'{value:.4g}',
                'black' if at > 0.5 else 'white',
                font,
                'mm',
            )
    return np.asarray(sheet)


WIDTH, HEIGHT, LEFT, TOP = 460, 240, 56, 34  # of a chart and its margins, in pixels
COLORS = ('#3566a8', '#d9822b', '#4c9a5f', '#b04a5a', '#7a5fa8', '#5b8c95')
INK, FAINT = '#444b57', '#e4e7ec'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from low to high, about `count`."""
    raw = (high - low) / count
    step = next(
        m * 10 ** math.floor(math.log10(raw))
        for m in (1, 2, 5, 10)
        if m * 10 ** math.floor(math.log10(raw)) >= raw * 0.99
    )
    return [
        i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def chart(title: str, series: dict[str, list], zoom: int = 4) -> np.ndarray:
    """Curves [(step, value), …] by name as a picture, uint8 [2·HEIGHT, 2·WIDTH, 3]; a loss that spans more than 30 times is on a log scale."""
    image = Image.new('RGB', (WIDTH * zoom, HEIGHT * zoom), 'white')
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(11 * zoom)
    line = lambda points, color, width: pen.line(
        [(x * zoom, y * zoom) for x, y in points], color, width * zoom, joint='curve'
    )
    words = lambda x, y, text, anchor, color=INK: pen.text(
        (x * zoom, y * zoom), text, color, font, anchor=anchor
    )
    thin = {
        name: np.array(
            [part.mean(0) for part in np.array_split(np.array(rows), min(len(rows), 300))]
        )
        for name, rows in series.items()
    }
    points = np.concatenate(list(thin.values()))
    log = (
        'loss' in title and points[:, 1].min() > 0 and points[:, 1].max() > 30 * points[:, 1].min()
    )
    scale = np.log10 if log else np.asarray
    x0, x1, y0, y1 = (
        points[:, 0].min(),
        points[:, 0].max(),
        *scale([points[:, 1].min(), points[:, 1].max()]),
    )
    x1, margin = max(x1, x0 + 1), 0.05 * (y1 - y0 or abs(y0) or 1)
    y0, y1, right, bottom = y0 - margin, y1 + margin, WIDTH - 14, HEIGHT - 30
    at_x = lambda x: LEFT + (x - x0) / (x1 - x0) * (right - LEFT)
    at_y = lambda y: bottom - (y - y0) / (y1 - y0) * (bottom - TOP)
    words(LEFT, 16, title + (', log scale' if log else ''), 'lm')
    for y in ticks(y0, y1):
        line([(LEFT, at_y(y)), (right, at_y(y))], FAINT, 1)
        words(LEFT - 6, at_y(y), f'{10.0**y if log else y:.3g}', 'rm')
    for x in ticks(x0, x1):
        line([(at_x(x), bottom), (at_x(x), bottom + 4)], INK, 1)
        words(at_x(x), bottom + 14, f'{x / 1000:g}k' if x >= 10_000 else f'{x:g}', 'mm')
    line([(LEFT, bottom), (right, bottom)], INK, 1)
    for i, (name, rows) in enumerate(thin.items()):
        color = COLORS[i % len(COLORS)]
        line(
            [(at_x(x), at_y(y)) for x, y in zip(rows[:, 0], scale(rows[:, 1]), strict=True)],
            color,
            2,
        )
        words(right - 48 * (len(thin) - 1 - i), 16, name, 'rm', color)
    return np.asarray(image.resize((WIDTH * 2, HEIGHT * 2), Image.Resampling.LANCZOS))
