"""Pictures of a run, and the held-out images that they are conditioned on."""

import numpy as np

from jit_jax.evaluation import preview


def test_conditions_are_those_of_the_image_in_any_batching(holes):
    model, _, _, test = holes
    whole, truth = preview.held_out(model.config, 6, 3, test)
    part, other = preview.held_out(model.config, 2, 3, test, 4)
    np.testing.assert_array_equal(truth[4:], other)
    for name in whole:
        np.testing.assert_array_equal(whole[name][4:], part[name])
    holes_cut = {row.tobytes() for row in whole['cond_valid']}
    assert len(holes_cut) == 6


def test_classes_stand_below_their_images(holes):
    images = np.zeros((4, 32, 32, 3), np.uint8)
    sheet = preview.sheet(
        images, {'label': np.array([0, 1, 0, 7])}, None, holes[0].net, ['same', 'other']
    )
    assert sheet.shape == (2 + 2 * (32 + 14 + 2), 2 + 2 * 34, 3)
    text = [sheet[top + 32 : top + 46, left : left + 32] for top in (2, 50) for left in (2, 36)]
    assert (
        all((t < 128).any() for t in text)
        and np.array_equal(text[0], text[2])
        and not np.array_equal(text[0], text[1])
    )
