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
    }
    picture = slot_picture.slots(conditioning, tiny(), rows=2)
    want = np.asarray(slot_mask(2, valid, conditioning['label_valid'], tiny().class_tokens))
    blue, orange, pale = (0x35, 0x66, 0xA8), (0xD9, 0x82, 0x2B), (0xE9,) * 3
    for i, row in enumerate(want):
        strip = picture[18 * i + 3, : 2 * 512 : 2]
        assert [tuple(x) for x in strip] == [
            pale if not live else blue if slot < 256 else orange for slot, live in enumerate(row)
        ]
        square = picture[2 * 18 + 8 :, 513 * i : 513 * i + 512]
        np.testing.assert_array_equal((square != 0xE9).any(-1), row[None] & row[:, None])
