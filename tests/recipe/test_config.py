import math
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import cond, uncond
from jit_jax.errors import UserError
from jit_jax.model import sharding
from jit_jax.recipe import build, checks
from jit_jax.training import optimizer

SIZES = [
    f'imagenet{size}_{variant}{patch}'
    for size, patch in ((256, 16), (512, 32))
    for variant in 'blhg'
]
UNCOND = ['digits', 'digits_meanflow', 'folder', 'folder_cpu', *SIZES]
COND = [
    'digits',
    'digits_meanflow',
    'folder',
    'folder_cpu',
    'pairs',
    'pairs_cpu',
    *SIZES,
    *(f'{name}_class' for name in SIZES),
]
PRESETS = [(uncond, name) for name in UNCOND] + [(cond, name) for name in COND]
GUIDANCE = {
    'imagenet256_b16': 3.0,
    'imagenet256_l16': 2.4,
    'imagenet256_h16': 2.2,
    'imagenet512_b32': 3.0,
    'imagenet512_l32': 2.5,
    'imagenet512_h32': 2.3,
}
IMAGES = 1_281_167


def leaves(config, prefix=''):
    for name in config:
        if hasattr(config[name], 'keys'):
            yield from leaves(config[name], f'{prefix}{name}.')
        else:
            yield prefix + name, config[name]


def put(config, key, value):
    *parts, last = key.split('.')
    for part in parts:
        config = config[part]
    config[last] = value


@pytest.mark.parametrize('regime, name', PRESETS, ids=lambda x: getattr(x, '__name__', x))
def test_every_preset_is_a_run_that_could_start(regime, name):
    config = regime.get_config(name)
    checks.check(config)
    model, d = build.network(config), build.diffusion(config)
    assert (
        model.image_size == config.model.image_size
        and d.noise_scale == config.diffusion.noise_scale
    )
    sharding.check_batch(
        config.batch_size, sharding.make_mesh(config.mesh, jax.devices()), config.accumulate
    )
    assert build.settings(config).steps == config.sample.steps
    image = jax.ShapeDtypeStruct(
        (2, model.image_size, model.image_size, model.channels), jnp.float32
    )
    batch = {'image': image, 'label': jax.ShapeDtypeStruct((2,), jnp.int32), 'cond': image}
    conditioning = jax.eval_shape(
        build.condition(config), image, batch, jax.eval_shape(lambda: jax.random.key(0))
    )
    assert (conditioning == {}) == (regime is uncond)


@pytest.mark.parametrize('name', ['digits', 'digits_meanflow', *SIZES])
def test_regimes_share_their_architecture(name):
    models = [regime.get_config(n).model.to_dict() for regime, n in ((uncond, name), (cond, name))]
    models += [cond.get_config(f'{name}_class').model.to_dict()] if name in SIZES else []
    assert all(model == models[0] for model in models)


@pytest.mark.parametrize('name', SIZES)
@pytest.mark.parametrize('regime', [uncond, cond], ids=['uncond', 'cond'])
def test_published_recipe(regime, name):
    config = regime.get_config(name)
    o, epoch = config.optimizer, IMAGES / 1024
    assert (config.model.image_size, config.model.variant) == (int(name[8:11]), name[12].upper())
    assert build.network(config).patch == int(name[13:])
    assert config.batch_size == 1024
    assert config.steps == pytest.approx(600 * epoch, rel=1e-3) and o.warmup == pytest.approx(
        5 * epoch, rel=1e-3
    )
    assert config.diffusion.to_dict() == dict(
        noise_scale=config.model.image_size / 256,
        t_mean=-0.8,
        t_std=0.8,
        t_eps=0.05,
        predict='x',
        loss='v',
        objective='flow',
        mean_every=2,
        uniform=0.5,
        guidance=(1.0, 1.0),
        adaptive=0.0,
    )
    rate = optimizer.learning_rate(o.base_lr, config.batch_size, config.steps, o.warmup, o.schedule)
    assert [float(rate(s)) for s in (0, o.warmup, config.steps)] == pytest.approx([0, 2e-4, 2e-4])
    assert (o.b1, o.b2, o.weight_decay, o.muon_rms) == (0.9, 0.95, 0, 0)
    assert tuple(config.ema.decays) == (0.9999, 0.9996) and not config.ema.warmup
    assert config.condition.drop == 0.1 and config.model.num_classes == 1000
    assert (config.model.tables, config.model.freeze_tables, config.model.null) == (
        'sincos',
        True,
        'mask',
    )
    assert (config.sample.sampler, config.sample.steps, tuple(config.sample.interval)) == (
        'heun',
        50,
        (0.1, 1.0),
    )
    assert config.sample.t_eps == config.diffusion.t_eps


@pytest.mark.parametrize('name', SIZES)
def test_published_guidance_with_labels(name):
    config = cond.get_config(f'{name}_class')
    assert config.condition.kind == 'class' and config.sample.guidance == GUIDANCE.get(name, 1.0)


def test_conditions_of_the_presets():
    assert (
        uncond.get_config().condition.kind == 'none'
        and cond.get_config().condition.kind == 'inpaint'
    )
    config = cond.get_config('imagenet256_b16')
    assert (config.condition.kind, config.condition.factor) == ('super_resolution', 2)


@pytest.mark.parametrize('regime, name', PRESETS, ids=lambda x: getattr(x, '__name__', x))
def test_steps_batch_size_and_seed_are_what_they_say(regime, name):
    config = regime.get_config(name)
    config.steps, config.batch_size, config.seed = 7, 24, 3
    assert (config.steps, config.batch_size, config.seed) == (7, 24, 3)
    config = regime.get_config(name)
    config.batch_size, config.steps = 24, 7
    assert (config.steps, config.batch_size) == (7, 24)


@pytest.mark.parametrize('regime, name', PRESETS, ids=lambda x: getattr(x, '__name__', x))
@pytest.mark.parametrize('steps', [1, 10, 333, 5000])
def test_a_short_run_warms_up_and_shows_something_in_time(regime, name, steps):
    """Whatever the preset: a line, a grid and a checkpoint at a quarter of the steps."""
    config = regime.get_config(name)
    config.steps = steps
    checks.check(config)
    quarter = -(-steps // 4)
    for key in ('log_every', 'checkpoint.every', 'sample.every', 'evaluate.denoise_every'):
        assert 1 <= checks.lookup(config, key) <= quarter, key
    assert config.evaluate.every <= -(-steps // 2)
    assert config.optimizer.warmup <= -(-steps // 5)


def test_what_is_asked_for_stays():
    config = uncond.get_config('folder')
    config.sample.every, config.steps, config.optimizer.warmup = 3000, 4000, 7
    assert (config.sample.every, config.checkpoint.every, config.optimizer.warmup) == (
        3000,
        1000,
        7,
    )


def test_the_intervals_of_whole_runs():
    """Their defaults, in steps: lines, grids, checkpoints, denoising, evaluation, warm-up."""
    keys = ('log_every', 'sample.every', 'checkpoint.every', 'evaluate.denoise_every')
    keys += ('evaluate.every', 'optimizer.warmup')
    for regime, name, expected in (
        (uncond, 'imagenet256_b16', [100, 10_000, 2500, 1000, 0, 6255]),
        (uncond, 'folder', [100, 2500, 2500, 1000, 0, 1000]),
        (uncond, 'digits', [50, 550, 550, 550, 1100, 100]),
        (cond, 'digits', [50, 125, 125, 125, 250, 100]),
    ):
        config = regime.get_config(name)
        assert [checks.lookup(config, key) for key in keys] == expected


def test_epochs_follow_the_batch_size():
    config = uncond.get_config('imagenet256_b16')
    config.batch_size = 256
    assert config.steps == pytest.approx(600 * IMAGES / 256, rel=1e-3)
    assert config.optimizer.warmup == pytest.approx(5 * IMAGES / 256, rel=1e-3)


@pytest.mark.parametrize(
    'regime, name',
    [
        (uncond, 'digit'),
        (uncond, 'imagenet256_b16_class'),
        (cond, 'imagenet256_b32'),
        (cond, 'x'),
        (cond, ''),
    ],
)
def test_an_unknown_preset_is_refused_with_those_there_are(regime, name):
    with pytest.raises(ValueError, match=f'{name!r}.*digits.*imagenet512_g32') as error:
        regime.get_config(name)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', ['digits_class', 'pairs_class', 'folder_cpu_class'])
def test_cond_has_no_preset_that_is_none(name):
    with pytest.raises(UserError, match=repr(name)):
        cond.get_config(name)


# What a user can get wrong


def refused(config, key):
    """`config` ends in one sentence that names `key`."""
    with pytest.raises(ValueError) as error:
        checks.check(config)
        sharding.make_mesh(config.mesh, jax.devices()[:1])
    text = str(error.value)
    assert key.split('.')[-1] in text and '\n' not in text and text[-1] in '.?', text


DEFAULTS = dict(leaves(uncond.get_config('imagenet256_b16')))
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize('key', [key for key, value in DEFAULTS.items() if type(value) is int])
def test_a_bool_is_no_number(key):
    config = uncond.get_config('imagenet256_b16')
    put(config, key, True)
    refused(config, key)


@pytest.mark.parametrize(
    'key', [key for key, value in DEFAULTS.items() if isinstance(value, tuple)]
)
@pytest.mark.parametrize('wrong', ['a word', None, True])
def test_tuples_hold_numbers(key, wrong):
    config = uncond.get_config('imagenet256_b16')
    put(config, key, (wrong, *DEFAULTS[key][1:]))
    refused(config, key)


@pytest.mark.parametrize('key, value', [('mesh', (1.5, -1, 1)), ('condition.hole', (4.5, 12))])
def test_tuples_of_counts_hold_whole_numbers(key, value):
    config = uncond.get_config('imagenet256_b16')
    put(config, key, value)
    refused(config, key)


@pytest.mark.parametrize(
    'key, values',
    {
        'steps': [0, -1],
        'batch_size': [0],
        'accumulate': [0],
        'seed': [-1],
        'log_every': [0],
        'mesh': [(1, 1), (1, 1, 1, 1), (0, 1, 1), (-1, -1, 1), (2, 1, 1)],
        'model.variant': ['Q', 'depth=2'],
        'model.image_size': [0, 1, 8, 250],
        'model.channels': [0],
        'model.num_classes': [-1],
        'model.tables': ['sin', ''],
        'model.null': ['none'],
        'compute.dead_slots': ['drop'],
        'compute.remat': ['all'],
        'compute.dtype': ['float16'],
        'compute.scan': ['yes', 1, 0, None],
        'condition.kind': ['inpant', 'class+'],
        'condition.drop': [-0.1, 1.0, NAN],
        'condition.hole': [(0, 4), (5, 4), (4, 17), (4,), (4, 5, 6), ()],
        'diffusion.noise_scale': [-1.0, NAN],
        'diffusion.t_eps': [-0.1, NAN],
        'diffusion.t_mean': [NAN, INF, -INF],
        'diffusion.t_std': [-1.0, INF],
        'diffusion.predict': ['e', 'velocity', ''],
        'diffusion.loss': ['noise', None],
        'diffusion.objective': ['mean', 'meanflow'],
        'diffusion.mean_every': [0],
        'diffusion.uniform': [-0.1, 1.0],
        'diffusion.guidance': [(0.0, 2.0), (2.0, 1.0), (1.0, 2.0), (1.0, NAN)],
        'diffusion.adaptive': [-1.0, 1.0],
        'perceptual.weight': [-0.1, NAN, 0.1],  # without its file
        'perceptual.after': [-0.1, 1.0],
        'perceptual.side': [-1],
        'model.end_time': [True],
        'model.guidance': [True],
        'optimizer.base_lr': [-1.0, NAN, INF],
        'optimizer.b1': [1.0, -0.1],
        'optimizer.b2': [1.5, NAN],
        'optimizer.warmup': [-1],
        'optimizer.weight_decay': [-0.1],
        'optimizer.muon_rms': [-1.0],
        'optimizer.schedule': ['linear'],
        'ema.decays': [(1.0,), (0.9, -0.1), (NAN,), ()],
        'checkpoint.every': [0],
        'checkpoint.keep_last': [0],
        'checkpoint.keep_every': [-1],
        'sample.every': [0],
        'sample.num': [0],
        'sample.steps': [0],
        'sample.sampler': ['ddim'],
        'sample.interval': [(0.9, 0.1), (0.1,), (0.1, 0.5, 1.0), (NAN, 1.0), (0.1, INF)],
        'sample.guidance': [NAN, INF, -INF],
        'sample.t_eps': [-0.1, 1.0, NAN],
        'sample.skip_blocks': [(99,), (-1,), (0.5,), ('all',)],
        'sample.skip_scale': [NAN, INF],
        'sample.skip_interval': [(0.9, 0.1), (0.1,), (NAN, 1.0)],
        'data.kind': ['imagenet'],
        'data.threads': [-1],
        'data.prefetch': [-1],
        'data.max_broken': [-0.1],
        'data.holdout': ['head', ''],
        'data.palette': ['ade', None],
        'model.token_width': [-1],
        'model.reference_images': [-1, 17],
        'model.reference_place': ['beside'],
        'condition.reference_factor': [0, 3],
        'condition.paired': [0],
        'model.vocabulary': [-1],
        'condition.tokens': [0],
    }.items(),
)
def test_values_no_run_can_have(key, values):
    for value in values:
        config = uncond.get_config('imagenet256_b16')
        put(config, key, value)
        refused(config, key)


@pytest.mark.parametrize(
    'key, value',
    [
        ('accumulate', 8),  # of 8 rows 4 have a step
        ('diffusion.mean_every', 3),
        ('diffusion.guidance', (1.0, 3.0)),
        ('model.guidance', True),
        ('model.end_time', False),
    ],
)
def test_parts_of_meanflow_that_do_not_fit(key, value):
    config = uncond.get_config('digits_meanflow')
    checks.check(config)
    put(config, key, value)
    refused(config, key)


@pytest.mark.parametrize('factor', [0, -2, 3, 32])
def test_a_factor_that_leaves_no_whole_patches(factor):
    config = cond.get_config('imagenet256_b16')
    config.condition.factor = factor
    refused(config, 'condition.factor')


def test_text_needs_a_model_of_bytes_and_room():
    config = cond.get_config('digits_text')
    assert checks.condition_slots(config) == (0, 128, False)
    config.condition.kind = 'super_resolution+text|class'
    assert checks.condition_slots(config) == (64, 128, True)
    checks.check(config)
    config.condition.tokens = 193
    refused(config, 'condition.tokens')
    config.condition.kind, config.condition.tokens = 'text+class', 250
    refused(config, 'condition.kind')
    for key, value in (('token_width', 0), ('vocabulary', 9)):
        config = cond.get_config('digits_text')
        config.model[key] = value
        refused(config, 'model.token_width')


def test_several_images_need_a_model_that_tells_them_apart_and_room():
    config = cond.get_config('digits')
    config.condition.kind = 'edges+grayscale'
    refused(config, 'model.reference_images=1')
    config.model.reference_images = 1
    checks.check(config)
    assert checks.condition_slots(config) == (128, 0, False)
    config.condition.reference_factor = 1
    refused(config, '512 patches')
    config.condition.kind = 'references'
    refused(config, 'data.kind')
    config.data.kind, config.condition.paired, config.condition.reference_factor = 'pairs', 3, 2
    refused(config, 'model.reference_images=3')
    config.model.reference_images = 3
    checks.check(config)
    assert checks.condition_slots(config) == (192, 0, False)


def test_labels_need_classes():
    config = cond.get_config('imagenet256_b16_class')
    config.model.num_classes = 0
    refused(config, 'model.num_classes')


def test_pairs_need_pairs():
    config = cond.get_config('digits')
    config.condition.kind = 'pairs'
    refused(config, 'data.kind')


def test_a_palette_needs_pairs():
    config = uncond.get_config('folder')
    config.data.palette = 'voc'
    refused(config, 'data.palette')
    config = cond.get_config('pairs_cpu')
    config.data.palette = 'voc'
    checks.check(config)


def test_labels_need_slots_beside_the_patches():
    """Class tokens and a 16×16 condition in one row are more than 256 slots."""
    config = cond.get_config('digits')
    config.condition.kind = 'inpaint+class'
    with pytest.raises(ValueError, match='do not fit in 256 slots'):
        checks.check(config)
    config.condition.kind = 'edges|inpaint+class'
    with pytest.raises(ValueError, match='inpaint.class is 256 patches and 8 class tokens'):
        checks.check(config)


@pytest.mark.parametrize('kind', ['inpaint|class', 'class|edges|super_resolution+class'])
def test_slots_are_counted_row_by_row(kind):
    config = cond.get_config('digits')
    config.condition.kind = kind
    checks.check(config)
    assert checks.condition_slots(config) == (256, 0, True)


def test_weights_to_start_from_must_be_there(tmp_path):
    config = cond.get_config('digits')
    config.init_from = str(tmp_path / 'nowhere')
    refused(config, 'init_from')


def test_weights_and_biases_must_be_installed(monkeypatch):
    config = uncond.get_config()
    config.wandb.project = 'digits'
    monkeypatch.setattr(checks.importlib.util, 'find_spec', lambda name: None)
    refused(config, 'wandb.project')


def test_a_near_miss_is_named():
    config = uncond.get_config('imagenet256_b16')
    config.compute.remat = 'dot'
    with pytest.raises(
        ValueError, match="is 'dot': did you mean dots. It must be one of none, dots"
    ):
        checks.check(config)


@pytest.mark.parametrize(
    'section, name, sentence',
    [
        ('', 'stepz', 'no config.stepz; did you mean config.steps?'),
        ('model', 'depht', 'no config.model.depht; docs/configuration.md has those there are'),
        ('data', 'paht', 'no config.data.paht; did you mean config.data.path?'),
        ('condition', 'dropp', 'no config.condition.dropp; did you mean config.condition.drop?'),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(section, name, sentence):
    config = uncond.get_config()
    (config[section] if section else config)[name] = 4
    with pytest.raises(UserError, match=re.escape(sentence)):
        checks.check(config)


def test_a_condition_of_ones_own_has_keys_of_its_own():
    config = uncond.get_config()
    config.condition.levels = 4
    checks.check(config)


@pytest.mark.parametrize('dtype', ['auto', 'float32'])
def test_a_cpu_computes_in_float32(dtype):
    config = uncond.get_config()
    config.compute.dtype = dtype
    assert build.network(config).dtype == jnp.float32


def test_the_images_that_are_held_out_are_those_that_the_config_says(tmp_path):
    for i in range(40):
        Image.new('L', (8, 8), i).save(tmp_path / f'{i:02}.png')
    config = uncond.get_config('folder')
    config.data.path = str(tmp_path)

    def first_held_out(config):
        return int(build.source(config, 'test')[0]['image'].mean())

    assert first_held_out(config) == 19
    config.data.holdout = 'tail'
    assert first_held_out(config) == 38


def test_a_run_records_where_its_images_are(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = uncond.get_config('folder')
    config.data.path = 'photos'
    run = SimpleNamespace(config=config, train=SimpleNamespace(classes=('a', 'b')), content='')
    record = build.Run.record.fget(run)
    assert record['data']['path'] == str(tmp_path / 'photos') and record['classes'] == ['a', 'b']
    assert config.data.path == 'photos'
    config.data.path = ''  # where TFDS keeps its data sets
    assert build.Run.record.fget(run)['data']['path'] == ''


@pytest.mark.parametrize('key', DEFAULTS)
def test_text_is_no_number_and_a_number_no_text(key):
    """As a config.json that was edited by hand, or a dict of Python, may hold."""
    config = uncond.get_config('imagenet256_b16').to_dict()
    room, _, name = key.rpartition('.')
    section = config[room] if room else config
    old = section[name]
    section[name] = (str(old),) if isinstance(old, tuple) else 3.5 if old == str(old) else str(old)
    with pytest.raises(UserError, match=name) as error:
        checks.check(config)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('key', DEFAULTS)
def test_a_missing_key_is_named(key):
    config = uncond.get_config('imagenet256_b16').to_dict()
    room, _, name = key.rpartition('.')
    del (config[room] if room else config)[name]
    with pytest.raises(UserError, match=f'config.{key} is missing'):
        checks.check(config)


def test_a_split_of_the_data_by_its_name(monkeypatch):
    opened = []
    monkeypatch.setattr(
        build.data, 'open_source', lambda kind, *, split, **rest: opened.append(split)
    )
    config = uncond.get_config('imagenet256_b16')
    for how in (('train',), ('test',)):
        build.source(config, *how)
    build.source(config, split='validation[:100]')
    build.source(config.to_dict(), split='test')
    assert opened == ['train', 'validation', 'validation[:100]', 'test']


def test_a_run_of_either_a_hole_or_a_label_has_a_step():
    """The whole step, traced: what the checks let through, the model takes."""
    config = cond.get_config('digits')
    config.condition.kind, config.mesh = 'inpaint|class', (8, 1, 1)
    checks.check(config)
    run = build.programs(config, build.mesh(config))
    batch = {'image': np.zeros((8, 32, 32, 3), np.uint8), 'label': np.zeros(8, np.int32)}
    state, metrics = jax.eval_shape(run.step, run.like, batch, jax.random.key(0))
    assert metrics['loss'].shape == () and run.flops > 0
