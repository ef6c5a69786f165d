"""Held-out images and their conditions."""

import numpy as np

from jit_jax.evaluation import held_out


def test_conditions_are_those_of_the_image_in_any_batching(holes):
    model, _, _, test = holes
    whole, truth = held_out.examples(model.config, 6, 3, test)
    part, other = held_out.examples(model.config, 2, 3, test, 4)
    np.testing.assert_array_equal(truth[4:], other)
    for name in whole:
        np.testing.assert_array_equal(whole[name][4:], part[name])
    holes_cut = {row.tobytes() for row in whole['cond_valid']}
    assert len(holes_cut) == 6
