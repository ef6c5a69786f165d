"""The data sets of drawings that come with the package: who drew what, and who is held out."""

import numpy as np
from pictures import refused
from sklearn.datasets import load_digits

from jit_jax import data
from jit_jax.data import handwriting, omniglot


def opened(kind, split):
    return data.open_source(kind, split=split, image_size=16, channels=1)


def test_omniglot_shows_a_character_by_three_people():
    drawings, names = omniglot.drawings()
    assert drawings.shape == (136, 20, 105, 105) and set(np.unique(drawings)) == {0, 255}
    assert drawings.mean() < 40 and len(set(names)) == 136  # ink is bright, and little
    for way in range(omniglot.WAYS):
        assert all(len(set(omniglot.people_of(one, way, 20))) == 3 for one in range(20))
    source = opened('omniglot', 'test')
    assert len(source) == 27 * 20 and '109 characters of 5 alphabets' in source.summary
    small = data.from_arrays([drawings[4, 1], drawings[4, 10]], image_size=16)  # Balinese 5
    example = source[0]
    np.testing.assert_array_equal(example['cond'], small[0]['image'])
    np.testing.assert_array_equal(example['cond2'], small[1]['image'])
    assert not np.array_equal(source[1]['image'], example['image'])  # another character
    train = opened('omniglot', 'train')
    assert len(train) == 109 * 20 * omniglot.WAYS * omniglot.TURNS
    turned = train[109 * 20]  # the first drawing of the first way, by a quarter
    for name in ('image', 'cond', 'cond2'):
        expected = np.rot90(drawings[0, omniglot.people_of(0, 0, 20)[train.images.index(name)]])
        again = data.from_arrays([np.ascontiguousarray(expected)], image_size=16)[0]['image']
        np.testing.assert_array_equal(turned[name], again)


def test_no_character_is_in_both_splits():
    """The first person's drawings of all of them."""
    train, test = opened('omniglot', 'train'), opened('omniglot', 'test')
    images = [train[i]['image'] for i in range(109)] + [test[i]['image'] for i in range(27)]
    drawings, _ = omniglot.drawings()
    expected = data.from_arrays(drawings[:, 0], image_size=16)
    expected = {expected[i]['image'].tobytes() for i in range(136)}
    assert {image.tobytes() for image in images} == expected and len(expected) == 136


def test_a_digit_has_a_reference_of_another_class_by_its_writer(monkeypatch):
    monkeypatch.setattr(handwriting, 'style', lambda number, way: handwriting.PLAIN)
    levels, classes = load_digits(return_X_y=True)
    starts = np.asarray(handwriting.STARTS)
    assert (classes[starts[:, None] + np.arange(9)] == np.arange(9)).mean() > 0.9
    hand_of = {}
    for number, one in enumerate(levels.reshape(-1, 8, 8)):
        hand_of.setdefault(np.asarray(handwriting.enlarged(one)).tobytes(), set()).add(
            int(np.searchsorted(starts, number, 'right')) - 1
        )
    seen = {}
    for split in ('train', 'test'):
        source = data.open_source('handwriting', split=split, image_size=32, channels=1)
        some = range(0, len(source), 7) if split == 'train' else range(len(source))
        hands = [[hand_of[source[i][name].tobytes()] for name in ('image', 'cond')] for i in some]
        assert all(image & cond for image, cond in hands)
        seen[split] = set.union(*(image for image, _ in hands))
        assert not any(np.array_equal(source[i]['image'], source[i]['cond']) for i in some)
    assert seen['test'] == set(handwriting.HELD_OUT) and not seen['test'] & seen['train']
    assert sorted(int(source[i]['label']) for i in range(20)) == sorted(2 * list(range(10)))


def test_both_pictures_of_an_example_have_one_style(monkeypatch):
    given = []
    enlarged = handwriting.enlarged

    def noted(levels, style):
        given.append(style)
        return enlarged(levels, style)

    monkeypatch.setattr(handwriting, 'enlarged', noted)
    for split in ('train', 'test'):
        source = data.open_source('handwriting', split=split, image_size=32, channels=1)
        given.clear()  # opening it reads an example
        for i in (0, 1, 0):
            source[i]
        (first, of_its_reference), (second, _), again = given[:2], given[2:4], tuple(given[4:])
        assert first == of_its_reference and again == (first, first) and second != first


def test_a_style_leans_and_presses():
    levels, classes, _ = handwriting.written()
    one = levels[np.flatnonzero(classes == 1)[0]]

    def drawn(slant, pen):
        return np.asarray(handwriting.enlarged(one, handwriting.Style(slant, pen)), float)

    def lean(image):
        """Where the ink of the upper half lies, to the right of that of the lower half."""
        x = np.arange(32)
        upper, lower = image[:16].sum(0), image[16:].sum(0)
        return upper @ x / upper.sum() - lower @ x / lower.sum()

    left, plain, right = (lean(drawn(slant, 1.0)) for slant in (-0.3, 0.0, 0.3))
    assert left < plain - 2 < plain + 2 < right
    fine, plain, broad = (drawn(0.0, pen).mean() for pen in (2.0, 1.0, 0.5))
    assert fine < 0.9 * plain < 1.1 * plain < broad
    styles = [handwriting.style(number, way) for number in range(100) for way in range(9)]
    slants, pens = np.asarray(styles).T
    assert abs(slants.mean()) < 0.03 and np.abs(slants).max() <= handwriting.SLANT
    assert abs(np.log(pens).mean()) < 0.05 and 0.5 <= pens.min() < 0.6 < 1.8 < pens.max() <= 2


def test_other_splits_are_refused():
    for kind in ('omniglot', 'handwriting'):
        refused("must be 'train' or 'test', not 'validation'", kind, split='validation')
