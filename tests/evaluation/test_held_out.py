"""Held-out images and their conditions."""

import numpy as np
import pytest
from PIL import Image

from jit_jax import data
from jit_jax.errors import UserError
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


def test_the_only_held_out_image_may_break_during_a_run(holes, tmp_path):
    """A run's grid then shows blank images and its training goes on; nothing is measured on
    them.
    """
    for i in range(3):
        Image.new('RGB', (32, 32), 'white').save(tmp_path / f'{i}.png')
    test = data.open_source('folder', path=tmp_path, split='test', image_size=32)
    (tmp_path / '2.png').write_bytes(b'no more')
    config = holes[0].config
    conditioning, truth = held_out.examples(config, 4, 0, test, or_blank=True)
    assert len(test) == 1 and (truth == 128).all() and len(conditioning['cond']) == 4
    with pytest.raises(UserError, match='None of the 1 images can be read'):
        held_out.examples(config, 4, 0, test)
