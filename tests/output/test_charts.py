"""Charts and heat maps."""

import numpy as np

from jit_jax.output import charts


def test_heat_map_shows_the_low_dark_and_frames_the_best():
    table = np.array([[3.0, 1.0, 2.0], [5.0, 4.0, 9.0]])
    picture = charts.heat_map(
        table, ['ema1', 'ema2'], ['1.0', '1.5', '2.0'], 'fid of 8 images', (0, 1)
    ).astype(int)
    red = np.argwhere((picture == (255, 0, 0)).all(-1))
    top, left = red.min(0)
    bottom, right = red.max(0)
    inside = picture[top + 4, left + 4]
    brightest = picture[bottom + 8, right + 8]  # below and right of the best: 9
    assert (
        inside.sum() < brightest.sum()
        and tuple(inside) == charts.COLOURS[0]
        and tuple(brightest) == charts.COLOURS[-1]
    )
