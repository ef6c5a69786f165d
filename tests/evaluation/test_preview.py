"""The grids of samples that a run draws."""

from types import SimpleNamespace

import numpy as np
import pytest

from jit_jax.diffusion.generate import Settings
from jit_jax.evaluation.preview import Preview, results, sheet
from jit_jax.output.images import grid


def test_results_are_cut_out_of_the_grid_they_were_drawn_in():
    random = np.random.default_rng(0)
    cells = random.integers(0, 255, (7, 16, 48, 3), np.uint8)  # condition | result | truth
    np.testing.assert_array_equal(results(grid(cells, 3), 16, 7, triples=True), cells[:, :, 16:32])
    plain = random.integers(0, 255, (5, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(results(grid(plain, 2), 32, 5, triples=False), plain)
    captioned = np.pad(plain, ((0, 0), (0, 14), (0, 0), (0, 0)))
    np.testing.assert_array_equal(results(grid(captioned, 2), 32, 5, triples=False), plain)


@pytest.mark.parametrize('step, due', [(1, False), (6, True), (12, True), (13, False), (14, True)])
def test_a_grid_is_due_every_few_steps_and_at_the_end(step, due):
    config = SimpleNamespace(steps=14, sample=SimpleNamespace(every=6))
    preview = SimpleNamespace(run=SimpleNamespace(config=config))
    assert Preview.due(preview, step) == due


def test_a_grid_is_drawn_with_the_average_as_the_run_samples(tmp_path):
    asked, written = [], []

    def generate(*arguments):
        asked.append(arguments)
        return np.zeros((8, 16, 16, 3), np.float32)  # more than are shown, for the devices' sake

    preview = SimpleNamespace(
        run=SimpleNamespace(
            settings=Settings('heun', 2, 1.5, (0.2, 0.8)),
            model=SimpleNamespace(image_size=16),
            train=SimpleNamespace(classes=()),
        ),
        generate=generate,
        inputs=('noise', {}),
        conditioning={},
        truth=None,
        num=4,
        workdir=str(tmp_path),
    )
    state = SimpleNamespace(params='weights', ema={'ema1': 'average', 'ema2': 'other'})
    writer = SimpleNamespace(images=lambda *arguments: written.append(arguments))
    Preview.draw(preview, state, 12, writer)
    assert asked == [('average', 'noise', {}, 1.5, (0.2, 0.8))]
    ((step, name, picture, *paths),) = written
    assert (step, name, picture.shape) == (12, 'samples', (2 + 2 * 18, 2 + 2 * 18, 3))
    assert paths == [f'{tmp_path}/samples/{file}.png' for file in ('0000012', 'latest')]


def test_classes_stand_below_their_images(holes):
    images = np.zeros((4, 32, 32, 3), np.uint8)
    labels = {'label': np.array([0, 1, 0, 7])}
    picture = sheet(images, labels, None, holes[0].net, ['same', 'other'])
    assert picture.shape == (2 + 2 * (32 + 14 + 2), 2 + 2 * 34, 3)
    text = [picture[top + 32 : top + 46, left : left + 32] for top in (2, 50) for left in (2, 36)]
    assert all((t < 128).any() for t in text)
    assert np.array_equal(text[0], text[2])
    assert not np.array_equal(text[0], text[1])
