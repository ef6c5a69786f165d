"""The grids of samples that a run draws."""

from types import SimpleNamespace

import numpy as np
import pytest

from jit_jax.diffusion.generate import Settings
from jit_jax.evaluation import held_out
from jit_jax.evaluation.preview import Preview, by_condition, sheet, strip

MIXED = 'inpaint|edges|class'


@pytest.mark.parametrize('step, due', [(1, False), (6, True), (12, True), (13, False), (14, True)])
def test_a_grid_is_due_every_few_steps_and_at_the_end(step, due):
    config = SimpleNamespace(steps=14, sample=SimpleNamespace(every=6))
    preview = SimpleNamespace(run=SimpleNamespace(config=config))
    assert Preview.due(preview, step) == due


def test_a_grid_is_drawn_with_the_average_as_the_run_samples(tmp_path):
    asked, written = [], []

    def generate(*arguments):
        asked.append(arguments)
        levels = (np.arange(8, dtype=np.float32)[:, None, None, None] + 0.25) / 127.5
        return levels * np.ones((16, 16, 3))  # more than are shown, for the devices' sake

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
        order=by_condition(4, 2),
        kinds=[],
        said=[],
        _ordered=list,
        workdir=str(tmp_path),
    )
    state = SimpleNamespace(params='weights', ema={'ema1': 'average', 'ema2': 'other'})
    archived = {}

    def images(*arguments, archives):
        written.append(arguments)
        archived.update(archives)

    writer = SimpleNamespace(images=images)
    Preview.draw(preview, state, 12, writer)
    assert asked == [('average', 'noise', {}, 1.5, (0.2, 0.8))]
    ((step, name, picture, *paths),) = written
    assert (step, name, picture.shape) == (12, 'samples', (208, 208, 3))
    assert paths == [f'{tmp_path}/samples/{file}.png' for file in ('0000012', 'latest')]

    ((path, exact),) = archived.items()
    assert path == f'{tmp_path}/samples/latest.npz'
    # Of four rows the first and third have one condition, and stand side by side.
    expected = 128 + np.array([0, 2, 1, 3])[:, None, None, None] * np.ones((16, 16, 3))
    np.testing.assert_array_equal(exact, expected)


def test_a_grid_shows_more_conditions_than_there_are_side_by_side():
    assert by_condition(7, 3).tolist() == [0, 3, 6, 1, 4, 2, 5]
    assert by_condition(4, 36).tolist() == [0, 1, 2, 3]


def test_classes_stand_below_their_images(holes):
    images = np.full((4, 32, 32, 3), 255, np.uint8)
    labels = {'label': np.array([0, 1, 0, 7])}
    picture = sheet(images, labels, None, holes[0].net, ['same', 'other'])
    texts = [picture[y : y + 19, x : x + 96] for y in (102, 221) for x in (6, 106)]
    assert all((text < 128).any() for text in texts)
    assert np.array_equal(texts[0], texts[2])
    assert not np.array_equal(texts[0], texts[1])


def test_captions_stand_below_their_images(holes):
    images = np.full((2, 32, 32, 3), 255, np.uint8)
    tokens = np.frombuffer(b'a sevena two..', np.uint8).reshape(2, 7)
    live = np.arange(7) < np.array([[7], [5]])
    spoken = {'cond_tokens': tokens.astype(np.int32), 'cond_tokens_valid': live}
    expected = sheet(images, {'label': np.array([0, 1])}, None, holes[0].net, ['a seven', 'a two'])
    np.testing.assert_array_equal(sheet(images, spoken, None, holes[0].net), expected)
    embedded = spoken | {'cond_tokens': np.ones((2, 7, 5), np.float32)}
    said = ['a seven', 'a two']
    found = sheet(images, embedded, None, holes[0].net, said=said)
    np.testing.assert_array_equal(found, expected)


def test_the_kind_of_each_row_is_the_one_that_made_its_condition(holes):
    """In a mixed run, whose rows have dead slots in a rectangle, or a class and no image."""
    config = holes[0].config | {'condition': holes[0].config['condition'] | {'kind': MIXED}}
    conditioning, _ = held_out.examples(config, 9, 3, holes[3], start=2)
    kinds = held_out.kinds(config, 9, 3, start=2)
    assert set(kinds) == set(MIXED.split('|'))
    for kind, live, has_class in zip(
        kinds, conditioning['cond_valid'], conditioning['label_valid'], strict=True
    ):
        assert has_class == (kind == 'class')
        assert live.all() == (kind == 'edges') and live.any() == (kind != 'class')
    assert held_out.kinds(holes[0].config, 9, 3) == []
    white = np.full((9, 32, 32, 3), 255, np.uint8)
    labelled = sheet(white, {}, None, holes[0].net, kinds=kinds)
    assert labelled.shape != sheet(white, {}, None, holes[0].net).shape
    assert (labelled[102:121, 6:102] < 128).any()


def test_a_trajectory_is_labelled():
    path = [(t, np.full((32, 32, 3), t), np.full((32, 32, 3), -t)) for t in (0.0, 0.5, 0.75, 1.0)]
    picture = strip(path, 3)
    assert (picture[:20] < 128).any(), 'no times above'
    assert (picture[:, :60] < 128).any(), 'no names of the rows'
    values = np.unique(picture[60, 110:]), np.unique(picture[170, 110:])
    assert {128, 223, 255} <= set(values[0]) and {128, 32, 0} <= set(values[1])
