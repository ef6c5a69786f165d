"""The picture of what a run is about to train on."""

import contextlib
import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from shell import config_of

from jit_jax import data, loop
from jit_jax.commands.draw_batch import first_rows
from jit_jax.evaluation import first_batch, slot_picture
from jit_jax.output.images import MARGIN, Places
from jit_jax.recipe import build
from jit_jax.training.step import draw, keys_at

MIXED = 'inpaint|grayscale|super_resolution+class'
IMAGES = np.random.default_rng(0).integers(0, 256, (80, 32, 32, 3), np.uint8)


@pytest.fixture(scope='module')
def run():
    """A run with three kinds of condition, on images in memory, eight rows a batch."""
    config = config_of()
    config.condition.kind, config.batch_size, config.condition.drop = MIXED, 8, 0.0
    config.model.num_classes = 5
    memory = data.in_memory(IMAGES, np.arange(80) % 5)
    return build.run(build.on_memory(config), memory)


def test_the_rows_are_those_of_the_first_batch(run):
    with contextlib.closing(loop.open_batches(run, 0)) as batches:
        first = next(batches)
    for name, rows in first_rows(run, 20).items():
        np.testing.assert_array_equal(rows[:8], first[name])


def test_kinds_are_those_that_made_the_conditions(run):
    """All three are there, and each row is shown under its own."""
    rows = first_rows(run, 30)
    key, _ = keys_at(jax.random.key(run.config.seed), 0)
    drawn = jax.jit(partial(draw, recipe=run.recipe))(rows, key)
    told = jax.tree.map(np.asarray, drawn['conditioning'])
    kinds = first_batch.kinds_of(run, key, 30)
    assert set(kinds) == set(MIXED.split('|'))
    for kind, valid, with_class in zip(kinds, told['cond_valid'], told['label_valid'], strict=True):
        assert with_class == ('class' in kind)
        assert valid.all() == (kind == 'grayscale')
        assert (valid.sum() == 64) == (kind == 'super_resolution+class')
    chosen = first_batch.rows_of_each(kinds, 6)
    assert [kinds[i] for i in chosen] == [kind for kind in dict.fromkeys(kinds) for _ in range(2)]
    assert len(first_batch.rows_of_each(kinds, 1)) == 3


def test_the_picture_shows_the_images_as_they_are_trained_on(run):
    """Each after cropping, beside the condition, the noise and the slots, at its place."""
    config = run.config.copy_and_resolve_references()
    config.condition.kind = 'none'
    plain = dataclasses.replace(
        run, config=config, recipe=build.step_recipe(config, jax.devices()[0])
    )
    rows = first_rows(plain, 4)
    picture = first_batch.picture(plain, rows, 4)
    shape = (4, 3, 96, 96, 3)
    heads = ('image', 'noisy', 'live slots')
    place = Places(shape, 2, heads=heads, captions=[''] * 4)
    assert picture.shape == (*place.size[::-1], 3) and picture.shape[1] > 2 * MARGIN
    for i in range(4):
        left, top = place.image(i, 0)
        shown = picture[top : top + 96, left : left + 96]
        np.testing.assert_array_equal(shown[1::3, 1::3], rows['image'][i])
        left, top = place.image(i, 2)
        slots = picture[top : top + 96, left : left + 96]
        assert (slots[:, :48] == slot_picture.rgb(slot_picture.DEAD)).all()
        assert (slots[:, 48:] == slot_picture.rgb(slot_picture.ORANGE)).all()


def test_tiles_show_each_slot_where_it_is(tiny):
    valid = np.zeros((2, 256), bool)
    valid[0, 17], valid[1] = True, True
    conditioning = {'cond': np.zeros((2, 32, 32, 3), np.float32), 'cond_valid': valid}
    squares = slot_picture.tiles(conditioning, tiny(), 2, 64)
    blue = (squares == slot_picture.rgb(slot_picture.BLUE)).all(-1)
    assert blue[0].sum() == 8 and blue[0, 4:8, 2:4].all()  # slot 17: line 1, column 1, of 4 × 2
    assert blue[1, :, :32].all() and not blue[1, :, 32:].any()
