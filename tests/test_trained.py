"""The library's verbs on a model in memory: what is drawn, and what is refused before anything
is.
"""

import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jit_jax
from configs import uncond
from jit_jax import trained
from jit_jax.data import center_crop
from jit_jax.diffusion.generate import Settings
from jit_jax.diffusion.objective import Diffusion
from jit_jax.errors import UserError
from jit_jax.evaluation import held_out
from jit_jax.output.images import to_uint8
from jit_jax.recipe import photographs

KEY = jax.random.key(0)


def config_of(kind: str, drop: float = 0.1) -> dict:
    config = uncond.get_config()
    config.condition.kind, config.condition.drop = kind, drop
    config.condition.tokens, config.model.vocabulary = 16, 256
    return config.to_dict()


@pytest.fixture
def model(tiny):
    """(kind of condition, drop) → a model of a run that learned it."""
    settings = Settings('euler', steps=1)

    def of_kind(kind, drop=0.1):
        net = tiny(vocabulary=256) if 'text' in kind else tiny()
        return trained.Model(net, Diffusion(noise_scale=1.0), settings, config_of(kind, drop), 3)

    return of_kind


def images(num: int, side: int = 32, dtype=np.float32) -> np.ndarray:
    return np.zeros((num, side, side, 3), dtype)


PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))


def test_both_places_of_a_verb_have_one_signature():
    for name in ('load', 'sample'):
        ours, theirs = (inspect.signature(getattr(m, name)) for m in (jit_jax, trained))
        assert [*ours.parameters] == [*theirs.parameters]
        defaults = [[p.default for p in s.parameters.values()] for s in (ours, theirs)]
        assert defaults[0] == defaults[1]
        assert all(p.annotation is not inspect.Parameter.empty for p in ours.parameters.values())


def test_image_i_depends_on_the_key_and_i_alone(model, params):
    net = model('none')
    seven = jit_jax.sample(net, params, KEY, 7, batch_size=8)
    assert seven.shape == (7, 32, 32, 3) and seven.dtype == np.uint8 and seven.std() > 1
    three = jit_jax.sample(net, params, KEY, 3, start=4, batch_size=2)
    assert np.abs(three.astype(int) - seven[4:]).max() <= 1
    assert not np.array_equal(seven[0], seven[1])


def test_words_that_python_refuses(model, params):
    for mistake in ({'guidence': 3}, {'stepz': 3}, {'t': 0.5}):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{min(mistake)}'"):
            jit_jax.sample(model('none'), params, KEY, 1, **mistake)


def test_a_seed_or_an_older_key_is_the_key_of_its_numbers(model, params):
    expected = jit_jax.sample(model('none'), params, jax.random.key(3), 1)
    raw = jax.random.PRNGKey(3)
    for key in (3, np.int64(3), np.uint32(3), np.array(3), jnp.int32(3), raw, np.asarray(raw)):
        np.testing.assert_array_equal(jit_jax.sample(model('none'), params, key, 1), expected)
    others = jit_jax.sample(model('none'), params, 4, 1)
    assert (others != expected).any()


@pytest.mark.parametrize(
    'key, sentence',
    [
        (None, 'key is missing; give a seed such as 0, or a random key such as jax.random.key(0)'),
        (1.5, 'or a random key such as jax.random.key(0); got 1.5.'),
        (True, 'got True.'),
        ('seed', "got 'seed'."),
        (np.random.default_rng(0), 'got Generator(PCG'),
        (np.zeros(2), 'got float64 [2].'),
        (jnp.zeros(3, jnp.uint32), 'got uint32 [3].'),
        (jax.random.split(jax.random.key(0), 3), '(0); got key<fry> [3].'),
        (-1, 'key is a seed from 0 to 4294967295, or a random key; got -1.'),
        (2**32, 'got 4294967296.'),  # whose images would be those of 0
    ],
    ids=lambda x: str(x)[:20],
)
def test_what_is_no_key(model, params, key, sentence):
    with pytest.raises(UserError) as error:
        jit_jax.sample(model('none'), params, key, 1)
    assert sentence in str(error.value) and '\n' not in str(error.value)


def test_a_model_and_its_own_parameters(model, params, tiny):
    """A path, what `load` returned as one, the two in each other's place, those of another run."""
    one = model('none')
    for mistake, words in (
        (('runs/a', params, 0), r"model, params = jit_jax.load\('runs/a'\); got 'runs/a'"),
        (((one, params), 0), r'model is the first of what jit_jax.load returns: .*; got \(Model'),
        ((params, one, 0), r'model is the first of what jit_jax.load returns'),
        ((tiny(), params, 0), r'model is the first of what jit_jax.load returns: .*; got JiT'),
        ((one, None, 0), 'params is what jit_jax.load returns beside the model, .*; got None'),
        ((one, {'params': params}, 0), 'params are not of this model, whose .* here is missing; '),
        (
            (one, deeper(params), 0),
            r'whose blocks/\S+ is \[2, .* and here is \[3, .*; give the',
        ),
    ):
        with pytest.raises(UserError, match=words) as error:
            jit_jax.sample(*mistake)
        assert '\n' not in str(error.value) and len(str(error.value)) < 200


def deeper(params: dict) -> dict:
    """The parameters of a model with three layers instead of two."""
    return params | {'blocks': jax.tree.map(lambda x: np.concatenate([x, x[:1]]), params['blocks'])}


def test_what_names_no_weights(tmp_path):
    for path in (None, 3, '', b'runs/a', ['runs/a']):
        with pytest.raises(UserError, match="path is the folder of a run, such as 'runs/uncond'"):
            jit_jax.load(path)
    for which in (1, ['ema1']):
        with pytest.raises(UserError, match="ema names weights, such as 'ema1' or 'params'"):
            jit_jax.load(str(tmp_path), which)
    (tmp_path / 'official.pth').write_bytes(b'weights')
    with pytest.raises(UserError, match='official.pth is a file, .* first run: jit-jax convert /'):
        jit_jax.load(str(tmp_path / 'official.pth'))


def test_what_is_no_array_of_images():
    """Of another dtype or shape, one image, and what is no array at all."""
    wrong = [images(2), images(1)[0], images(2, dtype=np.uint8)[0], None, 'a.png', [PHOTO]]
    wrong.append(np.zeros((2, 3, 32, 32), np.uint8))
    for one in wrong:
        with pytest.raises(UserError, match=r'images are uint8 \[N, H, W, 1 or 3\], as .*; got '):
            jit_jax.to_pil(one)
    assert jit_jax.to_pil(jnp.zeros((2, 4, 6, 3), jnp.uint8))[1].size == (6, 4)


def test_flags_may_be_numbers():
    numbers = trained.arrays_given(label_valid=[1, 0], cond_valid=np.array([[0.0, 1.0]]))
    assert numbers['label_valid'].tolist() == [True, False] and numbers['cond_valid'].dtype == bool
    assert trained.arrays_given(label_valid=[2, 0])['label_valid'].dtype != bool  # to be refused


def test_one_label_is_for_all_images(model):
    changes = dict.fromkeys(['steps', 'sampler', 'guidance', 'interval', 't_eps'])
    given, _ = trained.checked(model('class'), 3, {'label': 4}, changes)
    assert given['label'].tolist() == [4, 4, 4]


REFUSED = [
    ('none', {'num': 0}, 'num is a whole number, at least 1; got 0'),
    ('none', {'num': 2.5}, 'num is a whole number'),
    ('none', {'batch_size': 0}, 'batch_size is a whole number, at least 1'),
    ('none', {'start': -1}, 'start is a whole number, at least 0'),
    ('none', {'steps': 0}, 'steps is a whole number, at least 1; got 0'),
    ('none', {'steps': 1.5}, 'steps is a whole number'),
    ('none', {'sampler': 'hoin'}, "sampler is one of euler, heun, multistep, meanflow; got 'hoin'"),
    ('inpaint', {'guidance': np.nan}, 'guidance is a number, 1 for none; got nan'),
    ('inpaint', {'guidance': np.inf}, 'guidance is a number'),
    ('inpaint', {'t_eps': 1.0}, 't_eps is a number from 0 to below 1; got 1.0'),
    ('inpaint', {'guidance': 'much'}, "guidance is a number, 1 for none; got 'much'"),
    ('inpaint', {'interval': (0.5, 0.5)}, 'interval is (low, high) with low < high'),
    ('inpaint', {'interval': (0.1, np.nan)}, 'interval is (low, high)'),
    ('inpaint', {'interval': 0.5}, 'interval is (low, high)'),
    ('none', {'skip_blocks': (2,)}, 'skip_blocks is numbers of blocks, from 0 to 1 and not all'),
    ('none', {'skip_blocks': (0, 1)}, 'skip_blocks is numbers of blocks'),
    ('none', {'skip_blocks': '0'}, 'skip_blocks is numbers of blocks'),
    ('none', {'skip_scale': np.nan}, 'skip_scale is a number, 1 for none; got nan'),
    ('none', {'skip_interval': (0.5, 0.5)}, 'skip_interval is (low, high) with low < high'),
    ('none', {'start': 2**31}, 'start + num is at most 2147483648; got 2147483650'),
    ('none', {'sampler': ['heun']}, "sampler is one of euler, heun, multistep, meanflow; got ['h"),
    (
        'inpaint',
        {'cond': images(2), 'kind': 3},
        "kind names a kind of condition, such as 'inp",
    ),
    ('inpaint', {'cond': [None, 3]}, 'or pictures: PIL images, paths or uint8 arrays; got [None'),
    ('inpaint', {'cond': [*images(1), *images(1, 16)]}, 'cond has rows of different shapes; give'),
    ('class', {'label': [[0], [1, 2]]}, 'label has rows of different shapes; give them one shape'),
    ('class', {'label': 1, 'label_valid': [2, 0]}, 'label_valid is bool, True for what counts; go'),
    ('class', {'label': 1, 'label_valid': ['a', 'b']}, 'label_valid is bool, True for what coun'),
    ('class', {'label': 1, 'label_valid': [[1], [0]]}, 'label_valid is one flag for each image; '),
    (
        'inpaint',
        {'cond': images(2), 'cond_grid': np.full((2, 2), 17)},
        'cond_grid is int [2, 2], rows and columns of patches, at most [16, 16]; got array([[17',
    ),
    ('inpaint', {'cond': images(2), 'cond_grid': np.ones((2, 3), int)}, 'cond_grid is int [2, 2]'),
    ('references', {'references': PHOTO}, 'references is a list of images, as many as the run'),
    ('references', {'references': 'a.png'}, "as many as the run learned; got 'a.png'"),
    ('text', {'text': 7}, 'text is a caption or several; got 7'),
    (
        'none',
        {'keep_known': True},
        'no pixel is known under config.condition.kind=none',
    ),
    (
        'edges',
        {'cond': PHOTO, 'keep_known': True},
        'but under inpaint, outpaint, half, patches, s',
    ),
    ('inpaint', {'keep_known': True}, 'keep_known needs a picture with a hole; give cond or from_'),
    (
        'inpaint',
        {'cond': PHOTO, 'keep_known': True},
        'keep_known: no patch of the condition is m',
    ),
    (
        'inpaint|edges',
        {'from_image': PHOTO, 'kind': 'edges', 'keep_known': True},
        'no pixel is known under config.condition.kind=edges',
    ),
    (
        'inpaint|super_resolution',
        {'cond': images(2), 'cond_valid': np.zeros((2, 256), bool), 'keep_known': True},
        'this run learned inpaint, super_resolution; say which the condition is with kind=inpaint',
    ),
    (
        'inpaint|super_resolution',
        {'cond': images(2, 16), 'kind': 'inpaint', 'keep_known': True},
        'keep_known needs condition images of the size of a result, 32×32',
    ),
    (
        'inpaint',
        {'cond': images(2), 'cond_grid': np.full((2, 2), 8), 'keep_known': True},
        'keep_known needs condition images of the size of a result, 32×32',
    ),
    (
        'grayscale+inpaint',
        {'cond': images(2, 16), 'references': [images(2)], 'keep_known': True},
        'no pixel is known under config.condition.kind=grayscale+inpaint',
    ),
    ('none', {'guidance': 2.0}, 'guidance: this run learned no condition'),
    ('inpaint', {'guidance': 2.0}, 'guidance needs a condition; give cond, label or text'),
    ('class', {'text': 'seven'}, 'text: this run learned no captions'),
    ('text', {'text': ['seven']}, 'text has 1 captions for 2 images'),
    ('text', {'text': [7, 8]}, 'text is captions; got 7'),
    ('text', {'text': '七' * 6}, 'is 18 bytes, and this run learned at most 16; shorten it'),
    ('class', {'cond_tokens': np.zeros((2, 3, 6))}, 'cond_tokens: this run learned no text'),
    ('text', {'cond_tokens': np.zeros((2, 17), int)}, 'is bytes [2, n], n at most 16; got int64'),
    ('text', {'cond_tokens': np.zeros((2, 3))}, 'is bytes [2, n], n at most 16; got float64'),
    ('text', {'cond_tokens': np.full((2, 3), 256)}, 'cond_tokens is bytes, 0 to 255'),
    ('text', {'cond_tokens_valid': np.ones((2, 3), bool)}, 'cond_tokens_valid says what of'),
    ('class', {'references': [images(2, 16)]}, 'references: this run learned no references'),
    (
        'edges+grayscale',
        {'references': [images(2)]},
        'of shapes [2, 16, 16, 3]; got float32 [2, 32',
    ),
    (
        'edges+grayscale',
        {'references': [images(1, 16)]},
        'of shapes [2, 16, 16, 3]; got float32 [1',
    ),
    ('class', {'references_valid': np.ones((2, 9), bool)}, 'references_valid says what of'),
    ('class|text', {'label': [0, 1], 'text': 'a'}, 'label and a text: this run learned either'),
    (
        'none',
        {'cond': images(2)},
        'this run learned no condition images (config.condition.kind=none)',
    ),
    ('class', {'cond': images(2)}, 'this run learned no condition images'),
    ('none', {'label': [0, 1]}, 'this run learned no classes (config.condition.kind=none)'),
    ('inpaint', {'label': [0, 1]}, 'this run learned no classes'),
    ('class', {'label': [0]}, 'label has 1 rows for 2 images; give one row an image'),
    ('class', {'label': 6}, 'label: 6 is no class of this run; it has 5'),
    ('none', {'label': 3}, 'this run learned no classes'),
    ('class', {'label': [0.5, 1.0]}, 'label is whole numbers, one for each image; got float64'),
    ('class', {'label': [[0], [1]]}, 'label is whole numbers, one for each image'),
    ('class', {'label': [0, 6]}, 'label: 6 is no class of this run; it has 5, numbered from 0'),
    ('class', {'label': [0, -1]}, 'label: -1 is no class'),
    ('class', {'label_valid': [True, True]}, 'label_valid says what of label counts'),
    ('inpaint', {'cond_valid': np.ones((2, 256), bool)}, 'cond_valid says what of cond counts'),
    ('inpaint', {'cond': images(3)}, 'cond has 3 rows for 2 images'),
    ('inpaint', {'cond': images(2, dtype=np.int32)}, 'cond is float32 in [-1, 1]; got int32'),
    ('inpaint', {'cond': images(3, dtype=np.uint8)}, 'cond has 3 rows for 2 images'),
    ('inpaint', {'cond': 'nowhere.png'}, 'cond: There is no file nowhere.png'),
    ('inpaint', {'cond': PHOTO, 'fit': 'error'}, 'cond is 60×40 pixels, and this run learned 32'),
    ('inpaint', {'cond': PHOTO, 'fit': 'squash'}, 'fit is one of crop, resize, error; got'),
    ('none', {'cond': PHOTO}, 'this run learned no condition images'),
    ('none', {'from_image': PHOTO}, 'to begin from the picture instead of noise, add from_t=0.4'),
    ('none', {'from_t': 0.4}, 'from_t needs a picture to begin from; give from_image'),
    ('none', {'from_image': PHOTO, 'from_t': 1.0}, 'from_t is a time from 0 (noise) to below 1'),
    ('none', {'from_image': PHOTO, 'from_t': 'late'}, 'from_t is a time from 0 (noise) to below'),
    ('none', {'from_image': images(2), 'from_t': 0.4}, 'from_image is a picture or several'),
    ('inpaint', {'from_image': [PHOTO] * 3}, 'from_image has 3 rows for 2 images'),
    ('inpaint', {'from_image': PHOTO, 'kind': 'edges'}, 'kind=edges: this run learned inpaint'),
    ('inpaint', {'kind': 'inpaint'}, 'kind says what from_image, cond or references are'),
    ('inpaint', {'cond': images(2)[..., :1]}, 'cond is [2, Hc, Wc, 3]; got [2, 32, 32, 1]'),
    ('inpaint', {'cond': images(2, 16)}, 'cond is 16×16 pixels, and this run learned 32×32'),
    ('inpaint', {'cond': images(2, 31)}, 'cond is 31×31 pixels, and this run learned 32×32'),
    ('super_resolution', {'cond': images(2)}, 'is 32×32 pixels, and this run learned 16×16'),
    ('inpaint|super_resolution', {'cond': images(2, 8)}, 'this run learned 16×16 or 32×32'),
    (
        'inpaint',
        {'cond': images(2), 'cond_valid': np.ones((2, 255), bool)},
        'cond_valid is [2, 256], one flag a patch; got [2, 255]',
    ),
    (
        'super_resolution|class',
        {'cond': images(2, 16), 'label': [0, 1]},
        'this run learned either, one at a time',
    ),
    (
        'inpaint+class',
        {'cond': images(2), 'label': [0, 1]},
        '256 patches and 4 class tokens do not fit in 256 slots',
    ),
]


@pytest.mark.parametrize('kind, given, sentence', REFUSED, ids=lambda x: str(x)[:30])
def test_what_is_refused_before_anything_is_drawn(
    model, params, kind, given, sentence, monkeypatch
):
    monkeypatch.setattr(trained, 'draw', None)
    monkeypatch.setattr(trained, 'generate', None)
    given = {'num': 2} | given
    with pytest.raises(UserError) as error:
        jit_jax.sample(model(kind), params, KEY, **given)
    text = str(error.value)
    assert sentence in text and text.endswith('.') and '\n' not in text


def test_guidance_that_was_never_learned(model, params):
    with pytest.raises(UserError, match='never learned to go without its condition'):
        jit_jax.sample(model('class', drop=0.0), params, KEY, 1, label=[1], guidance=2.0)


def test_what_the_run_learned_is_accepted(model, params):
    """Each row says what a run was trained with, and what may be asked of it."""
    both = {'cond': images(2, 16), 'label': [0, 5]}
    table = np.random.default_rng(0).standard_normal((256, 6), np.float32)
    params = params | {'token_embed': params['token_embed'] | {'table': table}}
    for kind, given in (
        ('class', {'label': [0, 5], 'guidance': 2.0}),
        ('inpaint', {'cond': images(2), 'cond_valid': np.ones((2, 256), bool)}),
        ('inpaint|super_resolution', {'cond': images(2, 16)}),
        ('super_resolution+class', both),
        ('super_resolution|class', both | {'label_valid': [True, False]}),
        ('edges+grayscale', {'cond': images(2, 16), 'references': [images(2, 16)]}),
        ('super_resolution+text|text', {'cond': images(2, 16), 'text': ['seven', '']}),
    ):
        assert len(jit_jax.sample(model(kind), params, KEY, 2, **given)) == 2
    by_text = jit_jax.sample(model('text'), params, KEY, 2, text='七')
    tokens = np.array([list('七'.encode())] * 2)
    by_bytes = jit_jax.sample(model('text'), params, KEY, 2, cond_tokens=tokens)
    assert np.abs(by_text.astype(int) - by_bytes).max() <= 1
    assert np.abs(by_text.astype(int) - jit_jax.sample(model('text'), params, KEY, 2)).max() > 2


@pytest.mark.parametrize('name', ['cond', 'references'])
def test_numbers_of_another_range_are_not_taken_for_images(model, params, name):
    kind, side = {'cond': ('edges', 32), 'references': ('references', 16)}[name]
    image = np.random.default_rng(0).random((2, side, side, 3), np.float32)

    def sampled(image):
        given = {'cond': image} if name == 'cond' else {'references': [image]}
        return jit_jax.sample(model(kind), params, KEY, 2, **given)

    for wrong, found in ((image * 255, 'from 0.* to 25.*'), (image * np.nan, 'from nan to nan')):
        with pytest.raises(UserError, match=rf'{name} is float32 in \[-1, 1\]; got values {found}'):
            sampled(wrong)
    with pytest.warns(UserWarning, match=f'{name} has values from .* multiply by 2 and subtract 1'):
        sampled(image)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        sampled(2 * image - 1)  # what is meant


def test_pictures_in_and_out(model, params):
    """A PIL image, the same as uint8 and as float32 condition alike; images come out as PIL's."""
    small = np.asarray(center_crop(PHOTO, 32))
    numbers = np.stack([small] * 2) / np.float32(127.5) - 1
    drawn = [
        jit_jax.sample(model('edges'), params, KEY, 2, cond=cond)
        for cond in (numbers, PHOTO, np.asarray(PHOTO), [PHOTO, PHOTO], np.stack([small] * 2))
    ]
    for images in drawn[1:]:
        np.testing.assert_array_equal(images, drawn[0])
    numbers = photographs.reference_rows(config_of('references'), [[PHOTO]], 2)
    drawn_by = [
        jit_jax.sample(model('references'), params, KEY, 2, references=references)
        for references in (numbers, [PHOTO], [[PHOTO, PHOTO]])
    ]
    for images in drawn_by[1:]:
        np.testing.assert_array_equal(images, drawn_by[0])
    pictures = jit_jax.to_pil(drawn[0])
    assert [one.size for one in pictures] == [(32, 32)] * 2 and pictures[0].mode == 'RGB'
    np.testing.assert_array_equal(pictures[1], drawn[0][1])
    assert jit_jax.to_pil(drawn[0][..., :1])[0].mode == 'L'


def test_a_condition_made_from_a_picture(model, params):
    made = photographs.made_from(config_of('inpaint'), [PHOTO], range(4, 6), KEY)
    expected = jit_jax.sample(model('inpaint'), params, KEY, 2, start=4, **made.conditioning)
    found = jit_jax.sample(model('inpaint'), params, KEY, 2, start=4, from_image=PHOTO)
    np.testing.assert_array_equal(found, expected)


def with_hole() -> Image.Image:
    """PHOTO at 32×32 with a hole of 8×8 pixels, at 12, 4."""
    image = center_crop(PHOTO, 32).convert('RGBA')
    image.paste((0, 0, 0, 0), (4, 12, 12, 20))
    return image


def test_known_pixels_are_kept_bit_for_bit(model, params):
    """Those around the hole of a picture, in every row; what is in it is what the model drew."""
    small = np.asarray(center_crop(PHOTO, 32))
    inside = np.zeros((32, 32), bool)
    inside[12:20, 4:12] = True
    for kind, more in (('inpaint', {}), ('inpaint|edges', {'kind': 'inpaint'})):
        given = {'cond': with_hole(), 'batch_size': 8} | more
        drawn = jit_jax.sample(model(kind), params, KEY, 9, **given)
        kept = jit_jax.sample(model(kind), params, KEY, 9, **given, keep_known=True)
        np.testing.assert_array_equal(kept[:, ~inside], np.stack([small[~inside]] * 9))
        np.testing.assert_array_equal(kept[:, inside], drawn[:, inside])
        assert (drawn[:, ~inside] != kept[:, ~inside]).any()  # off by default
    for kind in ('outpaint', 'half', 'patches', 'strokes'):
        made = photographs.made_from(config_of(kind), [PHOTO], range(9), KEY).conditioning
        live = made['cond_valid'].reshape(9, 16, 16).repeat(2, 1).repeat(2, 2)
        given = {'from_image': PHOTO, 'batch_size': 8}
        kept = jit_jax.sample(model(kind), params, KEY, 9, **given, keep_known=True)
        np.testing.assert_array_equal(kept[live], np.stack([small] * 9)[live])


def test_beginning_from_a_picture(model, params):
    """At 0 from noise, bit for bit; late, the picture all but comes back; with a condition too."""
    small = np.asarray(center_crop(PHOTO, 32)).astype(int)
    plain = jit_jax.sample(model('none'), params, KEY, 2)
    begun = jit_jax.sample(model('none'), params, KEY, 2, from_image=PHOTO, from_t=0.0)
    np.testing.assert_array_equal(begun, plain)
    begun = jit_jax.sample(model('none'), params, KEY, 2, from_image=PHOTO, from_t=0.999)
    assert np.abs(begun - small).max() <= 8 and np.abs(plain - small).max() > 50
    for kind in ('edges', 'class'):
        late = {'from_image': PHOTO, 'from_t': 0.999}
        begun = jit_jax.sample(model(kind), params, KEY, 2, **late)
        assert np.abs(begun - small).max() <= 8
    path = trained.trajectory(
        model('none'), params, KEY, steps=3, begin=(0.4, small[None] / np.float32(127.5) - 1)
    )
    assert [t for t, _, _ in path] == pytest.approx([0.4, 0.6, 0.8, 1])


def test_guidance_is_off_outside_the_interval_that_was_asked_for(model, params):
    def drawn(**how):
        given = {'label': [0, 3], 'steps': 2}  # at t = 0 and t = 1/2
        return jit_jax.sample(model('class'), params, KEY, 2, **given, **how).astype(int)

    unguided = drawn()
    outside = drawn(guidance=6.0, interval=(0.6, 1.0))
    assert np.abs(outside - unguided).max() <= 1
    inside = drawn(guidance=6.0, interval=(0.4, 1.0))
    assert np.abs(inside - unguided).max() > 5


def test_a_trajectory_ends_in_the_sample(holes):
    model, params, _, test = holes
    conditioning, _ = held_out.examples(model.config, 1, 0, test)
    for sampler in ('euler', 'heun'):
        path = trained.trajectory(
            model, params, jax.random.key(0), steps=3, sampler=sampler, **conditioning
        )
        assert [t for t, _, _ in path] == pytest.approx([0, 1 / 3, 2 / 3, 1])
        image = trained.sample(
            model, params, jax.random.key(0), 1, steps=3, sampler=sampler, **conditioning
        )
        assert np.abs(to_uint8(path[-1][1]).astype(int) - image[0]).max() <= 1
        z, x = path[2][1:]  # the last step is Euler's
        np.testing.assert_allclose(path[3][1], x, atol=1e-3 * np.abs(z).max())


def test_images_in_a_folder(finished, call, tmp_path):
    cwd, _ = finished
    words = ('sample', f'--workdir={cwd}/runs/uncond', '--steps=2', '--num=3', '--batch=2')
    call(*words, f'--out={tmp_path}/images/')
    call(*words, f'--out={tmp_path}/all.npz')
    files = sorted((tmp_path / 'images').iterdir())
    assert [file.name for file in files] == ['000000.png', '000001.png', '000002.png']
    images = [np.asarray(Image.open(file)) for file in files]
    np.testing.assert_array_equal(images, np.load(tmp_path / 'all.npz')['arr_0'])
