"""The picture of the mask, held against the mask."""

import numpy as np

from jit_jax.evaluation import slot_picture
from jit_jax.model.sequence import slot_mask


def test_slots_are_painted_as_the_mask_says(tiny):
    random = np.random.default_rng(0)
    valid = random.random((2, 64)) < 0.5
    conditioning = {
        'cond': np.zeros((2, 16, 16, 3)),
        'cond_valid': valid,
        'label': np.zeros(2, int),
        'label_valid': np.array([True, False]),
        'references': (np.zeros((2, 4, 4, 3)), np.zeros((2, 2, 2, 3))),
        'references_valid': random.random((2, 5)) < 0.5,
        'cond_tokens': np.zeros((2, 9, 6)),
        'cond_tokens_valid': random.random((2, 9)) < 0.5,
    }
    beside = [conditioning[f'{name}_valid'] for name in ('references', 'cond_tokens')]
    valid = np.concatenate([valid, *beside], 1)
    picture = slot_picture.slots(conditioning, tiny(), rows=2)
    want = np.asarray(slot_mask(2, valid, conditioning['label_valid'], tiny().class_tokens))
    blue, orange, grey = (0x35, 0x66, 0xA8), (0xD9, 0x82, 0x2B), (0xD9, 0xDC, 0xE1)
    for i, row in enumerate(want):
        strip = picture[22 + 16 * i + 3, 110 : 110 + 512]
        assert [tuple(x) for x in strip] == [
            grey if not live else blue if slot < 256 else orange for slot, live in enumerate(row)
        ]
        left, top = 110 + i * (256 + 16), 22 + 2 * 16 + 22
        square = picture[top : top + 256, left : left + 256]
        attends = row[None] & row[:, None]
        np.testing.assert_array_equal((square != grey).any(-1), attends[::2, ::2])


def test_the_legend_and_the_names_of_the_rows_are_in_the_picture(tiny):
    picture = slot_picture.slots({}, tiny(), rows=2, names=['edges', 'class'])
    legend = picture[:20, 100:].reshape(-1, 3)
    for color in (slot_picture.BLUE, slot_picture.ORANGE, slot_picture.DEAD):
        assert (legend == slot_picture.rgb(color)).all(1).sum() > 100
    names = [picture[22 + 16 * i : 22 + 16 * i + 12, :100] for i in range(2)]
    assert all((name < 128).any() for name in names)
    assert not np.array_equal(*names)
