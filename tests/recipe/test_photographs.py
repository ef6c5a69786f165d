"""Pictures of any size as conditions, as training reads and makes them."""

import jax
import numpy as np
import pytest
from PIL import Image

from configs import uncond
from jit_jax.data import center_crop
from jit_jax.data.palette import voc_colors
from jit_jax.diffusion import conditions
from jit_jax.errors import UserError
from jit_jax.recipe import kinds, photographs
from jit_jax.recipe.photographs import FLAGS, as_pictures, condition_rows, made_from

KEY = jax.random.key(0)
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
PHOTO = Image.fromarray(PIXELS)
SMALL = np.asarray(center_crop(PHOTO, 32))


def config_of(kind: str, **changes) -> dict:
    config = uncond.get_config()
    config.condition.kind, config.model.num_classes = kind, 5
    config = config.to_dict()
    config['model'] |= changes
    return config


def refused(sentence: str, call, *args, **kwargs) -> None:
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    text = str(error.value)
    assert sentence in text and text.endswith('.') and '\n' not in text, text


@pytest.fixture
def save(tmp_path):
    """(name, pixels, options of PIL) → the path of a file."""

    def save(name, pixels, **options):
        Image.fromarray(pixels).save(tmp_path / name, **options)
        return str(tmp_path / name)

    return save


# As references


def test_references_are_those_that_training_makes():
    config = config_of('references', reference_images=2)
    config['condition']['paired'] = 2
    turned = PHOTO.rotate(180)
    rows = photographs.reference_rows(config, [[PHOTO], [turned, PHOTO]], 3)
    small = [SMALL, np.asarray(center_crop(turned, 32))]
    batch = {'image': np.stack([SMALL] * 2), 'cond': np.stack([small[0]] * 2)}
    batch['cond2'] = np.stack([small[1], small[0]])
    made = kinds.each_row(batch, KEY, np.arange(2), kinds.condition(config))['references']
    for ours, theirs in zip(rows, made, strict=True):
        assert ours.shape == (3, 16, 16, 3)
        np.testing.assert_allclose(ours[:2], theirs, atol=1e-5)
        np.testing.assert_array_equal(ours[2], ours[0])
    either = config_of('edges+grayscale+edges|references')
    refused(
        'learned edges+grayscale+edges and references; say which it is with kind=', _several, either
    )
    rows = photographs.reference_rows(either, [[PHOTO]], 1, kind='references')
    assert rows[0].shape == (1, 16, 16, 3)


def _several(config):
    return photographs.reference_rows(config, [[PHOTO]], 1)


# As condition images


def test_a_photograph_is_cropped_as_in_training(save):
    path = save('photo.png', PIXELS)
    rows, said = condition_rows(config_of('edges'), [path], 2, words=FLAGS)
    assert rows.keys() == {'cond'} and rows['cond'].dtype == np.float32
    np.testing.assert_array_equal(rows['cond'], [SMALL / np.float32(127.5) - 1] * 2)
    assert said == f'{path}, 60×40: centre crop, scaled to 32×32 pixels.'
    rows, said = condition_rows(config_of('edges'), [path], 1, fit='resize')
    whole = np.asarray(PHOTO.resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(rows['cond'][0], whole / np.float32(127.5) - 1)
    assert said.endswith('squeezed to 32×32 pixels.')


def test_one_of_the_right_size_is_taken_as_it_is(save):
    for fit in ('crop', 'resize', 'error'):
        rows, said = condition_rows(config_of('edges'), [SMALL], 1, fit=fit)
        np.testing.assert_array_equal(rows['cond'][0], SMALL / np.float32(127.5) - 1)
        assert said == ''
    rows, said = condition_rows(config_of('edges'), [SMALL, PIXELS, PHOTO], 5)
    assert said == '2 of 3 pictures: centre crop, scaled to 32×32 pixels.'
    np.testing.assert_array_equal(rows['cond'], [rows['cond'][0]] * 5)


def test_it_is_read_as_training_reads_it(save):
    """Sixteen bits are scaled, one channel is luma, and EXIF turns the picture."""
    gray = config_of('edges', channels=1)
    sixteen = np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64
    rows, _ = condition_rows(gray, [save('16.png', sixteen)], 1)
    expected = (sixteen.astype(int) + 128) // 257
    np.testing.assert_allclose((rows['cond'][0, ..., 0] + 1) * 127.5, expected, atol=1e-4)
    green = np.zeros((32, 32, 3), np.uint8)
    green[:16, :, 1] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    rows, _ = condition_rows(gray, [save('green.png', green, exif=exif)], 1)
    luma = (rows['cond'][0, ..., 0] + 1) * 127.5
    assert np.allclose(luma[:16], 0, atol=1e-4) and np.allclose(luma[16:], 150, atol=1e-4)


def test_transparent_patches_are_missing_where_the_run_cuts_holes():
    rgba = np.full((64, 96, 4), 255, np.uint8)
    rgba[..., :3] = 40
    rgba[42:, 42:, 3] = 0  # from column 13 of the 32 of the crop, and row 21: within patches
    clear = Image.fromarray(rgba)
    rows, said = condition_rows(config_of('inpaint'), [clear], 1)
    live = rows['cond_valid'].reshape(16, 16)
    assert live[:10].all() and live[:, :5].all() and not live[10:, 6:].any()
    assert said.endswith('32×32 pixels.')
    shown = np.asarray(conditions.picture(rows, 32))[0]
    np.testing.assert_allclose(shown[:18], 40 / 127.5 - 1, atol=0.02)
    for kind in ('edges', 'super_resolution'):
        rows, said = condition_rows(config_of(kind), [clear], 1)
        assert rows.keys() == {'cond'} and said.endswith('What is transparent lies on white.')
        assert rows['cond'][0, -1, -1].min() == 1


def test_a_run_of_several_sizes_takes_either_and_asks_about_others():
    config = config_of('inpaint|super_resolution')
    half = np.asarray(PHOTO.resize((16, 16)))
    for picture in (SMALL, half):
        assert condition_rows(config, [picture], 1)[0]['cond'].shape[1:] == picture.shape
    refused(
        '--cond: the picture is 60×40 pixels, and this run learned 16×16 or 32×32; say which it is '
        'with --kind=inpaint',
        condition_rows,
        config,
        [PHOTO],
        1,
        words=FLAGS,
    )
    for kind, side in (('inpaint', 32), ('super_resolution', 16)):
        assert condition_rows(config, [PHOTO], 1, kind=kind)[0]['cond'].shape[1:3] == (side, side)
    refused(
        'kind=edges: this run learned inpaint, super_res',
        condition_rows,
        config,
        [PHOTO],
        1,
        kind='edges',
    )


def test_what_cannot_be_a_condition(save, tmp_path):
    config = config_of('edges')
    refused('cond: There is no file', condition_rows, config, [tmp_path / 'x.png'], 1)
    (tmp_path / 'text.png').write_text('<html>')
    refused('text.png cannot be read as an', condition_rows, config, [tmp_path / 'text.png'], 1)
    refused('fit is one of crop, resize, error', condition_rows, config, [PHOTO], 1, fit='squash')
    refused(
        'cond: all condition images must have one size',
        condition_rows,
        config,
        [PHOTO, SMALL],
        2,
        fit='error',
    )
    line = np.zeros((1, 50, 3), np.uint8)
    refused('cond: the picture: a picture of 50 × 1 pixels', condition_rows, config, [line], 1)


def test_what_counts_as_pictures():
    assert as_pictures('a.png') == ['a.png'] and as_pictures(['a.png', PHOTO]) == ['a.png', PHOTO]
    assert len(as_pictures(PIXELS)) == 1 and len(as_pictures(PIXELS[None].repeat(3, 0))) == 3
    for numbers in (np.zeros((2, 4, 4, 3)), [[[0.5]]], np.zeros(3, np.int32), [0.5, 1]):
        assert as_pictures(numbers) is None


# As what conditions are made from


@pytest.mark.parametrize(
    'kind',
    [kind for kind in conditions.KINDS if kind not in ('class', 'pairs', 'references', 'text')],
)
def test_the_condition_is_that_of_training(kind):
    config = config_of(kind)
    made = made_from(config, [PHOTO], range(3, 5), KEY)
    np.testing.assert_array_equal(made.images, [SMALL] * 2)
    assert made.said == 'the picture, 60×40: centre crop, scaled to 32×32 pixels.'
    x = conditions.from_uint8(SMALL[None])
    for row, i in enumerate((3, 4)):
        expected = jax.jit(conditions.make(kind))(x, {}, jax.random.fold_in(KEY, i))
        assert expected.keys() == made.conditioning.keys()
        for name, array in expected.items():
            np.testing.assert_allclose(made.conditioning[name][row], array[0], atol=1e-2)


def test_a_run_of_several_kinds_is_asked_which():
    config = config_of('edges|super_resolution+class|class')
    refused(
        '--from: this run learned edges, super_resolution+class; say which to make with '
        '--kind=edges',
        made_from,
        config,
        [PHOTO],
        range(1),
        KEY,
        words=FLAGS,
    )
    assert made_from(config, [PHOTO], range(1), KEY, kind='edges').conditioning.keys() == {'cond'}
    refused(
        'super_resolution+class needs a class (label) too; give it',
        made_from,
        config,
        [PHOTO],
        range(1),
        KEY,
        kind='class+super_resolution',
    )
    both = {'kind': 'class+super_resolution', 'beside': ['class']}
    made = made_from(config, [PHOTO], range(1), KEY, **both).conditioning
    assert made.keys() == {'cond'} and made['cond'].shape == (1, 16, 16, 3)
    begun = made_from(config, [PHOTO], range(1), KEY, beside=['class'], begins=True)
    assert begun.conditioning == {}  # the class is a condition by itself


@pytest.mark.parametrize(
    'kind, asked, sentence',
    [
        ('none', {}, '--from: this run learned no condition images (config.condition.kind=none)'),
        ('none', {}, 'add --start=0.4'),
        ('none', {'kind': 'edges'}, '--kind=edges: this run learned no condition; name one'),
        ('class', {}, '--from: this run learned no condition images (config.condition.kind=class)'),
        ('pairs', {}, '--from: the condition of a pair is not made from its picture; give one'),
        ('pairs', {'begins': True}, 'is not made from its picture; give one with --cond'),
        ('edges', {'kind': 'inpaint'}, '--kind=inpaint: this run learned edges; name one that it'),
        ('edges|pairs', {'kind': 'pairs'}, '--kind=pairs is not made from a picture'),
        ('super_resolution+text', {}, 'super_resolution+text needs a caption (text) too; give it'),
        ('edges', {'fit': 'error'}, 'is 60×40 pixels, and this run makes 32×32; resize it'),
    ],
)
def test_what_no_picture_gives(kind, asked, sentence):
    refused(sentence, made_from, config_of(kind), [PHOTO], range(1), KEY, words=FLAGS, **asked)


def test_a_run_without_condition_images_may_begin_from_a_picture():
    for kind in ('none', 'class'):
        made = made_from(config_of(kind), [PHOTO], range(2), KEY, begins=True)
        assert made.conditioning == {} and made.images.shape == (2, 32, 32, 3)


def test_a_picture_is_not_in_the_colours_of_classes(monkeypatch):
    """Only condition images hold numbers of classes, in runs with a palette."""
    config = config_of('edges|pairs')
    config['data']['palette'] = 'voc'
    numbers = np.arange(1024, dtype=np.uint8).reshape(32, 32) % 12
    rows, _ = condition_rows(config, [numbers], 1)
    expected = voc_colors()[numbers] / np.float32(127.5) - 1
    np.testing.assert_array_equal(rows['cond'][0], expected)
    assert photographs.made_from(config, [numbers], range(1), KEY).images.max() == 11
