"""Everything a user can get wrong in a config, found before any compute is spent.

`check` raises UserError: one sentence that names the key and the fix.
"""

import difflib
import importlib.util
import math
from collections.abc import Callable, Iterator

from etils import epath
from ml_collections import ConfigDict

from jit_jax import data
from jit_jax.configs import uncond
from jit_jax.diffusion import conditions, objective
from jit_jax.diffusion.samplers import SAMPLERS
from jit_jax.errors import UserError, nearest_first
from jit_jax.model import attention, sequence, sharding
from jit_jax.model.block import REMAT
from jit_jax.model.sizes import size
from jit_jax.recipe import few_steps, inputs, kinds, likeness

CHOICES = {  # one of these
    'model.tables': ('sincos', 'zero'),
    'model.null': ('mask', 'token'),
    'model.reference_place': ('aligned', 'free'),
    'compute.dead_slots': ('skip', 'keep'),
    'compute.scan': ('auto', True, False),
    'compute.attention': attention.BACKENDS,
    'compute.remat': tuple(REMAT),
    'compute.dtype': ('auto', 'float32', 'bfloat16'),
    'compute.deterministic': (True, False),
    'condition.degradations': (1, 2),
    'data.kind': data.KINDS,
    'data.holdout': data.HOLDOUTS,
    'data.palette': data.PALETTES,
    'data.flip': (True, False),
    'data.moved': (True, False),
    'model.freeze_tables': (True, False),
    'diffusion.predict': objective.QUANTITIES,
    'diffusion.loss': objective.QUANTITIES,
    'diffusion.objective': objective.OBJECTIVES,
    'model.end_time': (True, False),
    'model.guidance': (True, False),
    'optimizer.schedule': ('constant', 'cosine'),
    'optimizer.mu_dtype': ('float32', 'bfloat16'),
    'ema.memory': tuple(sharding.MEMORY),
    'ema.warmup': (True, False),
    'checkpoint.keep_best': (True, False),
    'sample.sampler': tuple(SAMPLERS),
}
COUNTS = {  # whole numbers, at least; the batch size first, as others are derived from it
    'batch_size': 1,
    'steps': 1,
    'accumulate': 1,
    'seed': 0,
    'log_every': 1,
    'model.image_size': sequence.GRID,
    'model.channels': 1,
    'model.num_classes': 0,
    'model.reference_images': 0,
    'model.token_width': 0,
    'model.vocabulary': 0,
    'diffusion.mean_every': 1,
    'perceptual.side': 0,
    'data.threads': 0,
    'data.prefetch': 0,
    'condition.factor': 1,
    'condition.paired': 1,
    'condition.reference_factor': 1,
    'condition.tokens': 1,
    'optimizer.warmup': 0,
    'checkpoint.every': 1,
    'checkpoint.keep_last': 1,
    'checkpoint.keep_every': 0,
    'sample.every': 1,
    'sample.num': 1,
    'sample.steps': 1,
    'evaluate.every': 0,
    'evaluate.num': 2,
    'evaluate.batch': 1,
    'evaluate.denoise_every': 0,
    'evaluate.denoise_num': 1,
}
RANGES = {  # finite numbers, from low to below high
    'condition.drop': (0, 1),
    'diffusion.noise_scale': (0, math.inf),
    'diffusion.t_mean': (-math.inf, math.inf),
    'diffusion.t_std': (0, math.inf),
    'diffusion.t_eps': (0, 1),
    'diffusion.uniform': (0, 1),
    'diffusion.adaptive': (0, math.inf),
    'perceptual.weight': (0, math.inf),
    'perceptual.after': (0, 1),
    'optimizer.base_lr': (0, math.inf),
    'optimizer.b1': (0, 1),
    'optimizer.b2': (0, 1),
    'optimizer.weight_decay': (0, math.inf),
    'optimizer.muon_rms': (0, math.inf),
    'sample.guidance': (-math.inf, math.inf),
    'sample.t_eps': (0, 1),
    'sample.skip_scale': (-math.inf, math.inf),
    'data.max_broken': (0, 1),
}
REFERENCES = 16  # the most of them
PAIRED = (
    'pairs',
    'memory',
    'omniglot',
    'handwriting',
)  # kinds of data whose images may come with condition images
TEXTS = (
    'init_from',
    'init_ema',
    'model.variant',
    'compute.cache',
    'data.path',
    'data.name',
    'data.train',
    'data.test',
    'condition.embeddings',
    'condition.kind',
    'condition.module',
    'perceptual.lpips',
    'evaluate.inception',
    'evaluate.reference',
    'wandb.project',
)


def check(config) -> None:
    """Raises UserError, one sentence that names the key and the fix, for what no run can have."""
    _check_keys(config)
    for key, allowed in CHOICES.items():
        _check_choice(key, lookup(config, key), allowed)
    for key, low in COUNTS.items():
        _check_count(key, lookup(config, key), low)
    for key, (low, high) in RANGES.items():
        _check_number(key, lookup(config, key), low, high)
    for key in TEXTS:
        value = lookup(config, key)
        if not isinstance(value, str):
            raise UserError(f'config.{key} must be text; got {value!r}.')
    kinds.import_own(config)
    _check_tuples(config)
    _check_what_is_here(config)
    _check_condition(config)
    few_steps.check(config)
    likeness.check(config)


def lookup(config, key: str) -> object:
    """The value of 'model.image_size' and the like. Raises UserError where there is no such key."""
    value = config
    for part in key.split('.'):
        if not hasattr(value, 'keys') or part not in value:
            raise UserError(f'config.{key} is missing; give it a value, as configs/uncond.py does.')
        value = value[part]
    return value


def condition_slots(config) -> tuple[int, int, bool]:
    """The condition patches and tokens of the programs of a config, and whether class tokens
    enter.
    """
    options = kinds.options(config).values()
    patches = [_patches(config, option) for option in options]
    tokens = [_tokens(option) for option in options]
    labelled = any('label' in option for option in options)
    return max(patches, default=0), max(tokens, default=0), labelled


def _tokens(option: dict) -> int:
    """Condition tokens, class tokens aside, of conditions that are given together."""
    return option['cond_tokens'].shape[1] if 'cond_tokens' in option else 0


def _patches(config, option: dict) -> int:
    """Condition patches of conditions that are given together, by the shapes that they make."""
    patch = sequence.patch_size(config['model']['image_size'])
    images = [*option.get('references', ())]
    if 'cond' in option:
        images.append(option['cond'])
    return sum(math.prod(sequence.condition_grid(image.shape, patch)) for image in images)


def _check_keys(config):
    """A key that no config has is a misspelt one. A condition of one's own brings its own keys."""
    known = set(keys_of(uncond.get_config()))
    for key in keys_of(config):
        if key in known:
            continue
        section, _, name = key.rpartition('.')
        siblings = [one.rpartition('.')[2] for one in known if one.rpartition('.')[0] == section]
        near = difflib.get_close_matches(name, siblings, 1, cutoff=0.75)
        if near or section != 'condition':
            hint = 'docs/configuration.md has those there are.'
            if near:
                hint = f'did you mean config.{key.removesuffix(name)}{near[0]}?'
            raise UserError(f'There is no config.{key}; {hint}')


def keys_of(config, prefix: str = '') -> Iterator[str]:
    """The names of all values, as 'model.image_size'."""
    if isinstance(config, ConfigDict):
        # A reference is not resolved: a value that it depends on may be one that no run can have.
        items = config.items(preserve_field_references=True)
    else:
        items = config.items()
    for name, value in items:
        if hasattr(value, 'keys'):
            yield from keys_of(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}'


def _check_choice(key: str, value, allowed: tuple):
    if any(type(value) is type(one) and value == one for one in allowed):
        return
    names = [str(one) for one in allowed]
    there = f'it must be one of {", ".join(names)}'
    raise UserError(nearest_first(f'config.{key} is {value!r}', str(value), names, there))


def _check_count(key: str, value, low: int):
    if not _is_whole(value) or value < low:
        raise UserError(f'config.{key} must be a whole number, at least {low}; got {value!r}.')


def _check_number(key: str, value, low: float, high: float):
    if not _is_number(value) or not low <= value < high:
        if math.isfinite(high):
            wanted = f'a number from {low} to below {high}'
        elif math.isfinite(low):
            wanted = f'a number, {low} or more'
        else:
            wanted = 'a finite number'
        raise UserError(f'config.{key} must be {wanted}; got {value!r}.')


def _check_tuples(config):
    """The values that are several numbers."""
    _check_rows(config, 'mesh', 3, _is_whole, 'whole numbers')
    _check_rows(config, 'sample.interval', 2, _is_number, 'numbers')
    _check_rows(config, 'condition.hole', 2, _is_whole, 'whole numbers')
    _check_rows(config, 'diffusion.guidance', 2, _is_number, 'numbers')
    _check_rows(config, 'sample.skip_interval', 2, _is_number, 'numbers')
    for key in ('interval', 'skip_interval'):
        low, high = config['sample'][key]
        if not low < high:
            raise UserError(
                f'config.sample.{key} is (low, high) with low < high; got {(low, high)}.'
            )
    depth = size(config['model']['variant'])['depth']
    blocks = lookup(config, 'sample.skip_blocks')
    inputs.check_blocks('config.sample.skip_blocks', blocks, depth)
    _check_rows(config, 'condition.strength', 2, _is_number, 'numbers')
    low, high = config['condition']['strength']
    if not 0 <= low <= high:
        raise UserError(
            f'config.condition.strength is (low, high) with 0 ≤ low ≤ high; got {(low, high)}.'
        )
    low, high = config['condition']['hole']
    if not 1 <= low <= high <= sequence.GRID:
        raise UserError(
            'config.condition.hole is (smallest, largest) side in patches, '
            f'1 to {sequence.GRID}; got {(low, high)}.'
        )
    decays = lookup(config, 'ema.decays')
    if not isinstance(decays, tuple | list) or not decays:
        raise UserError(
            'config.ema.decays needs at least one decay, as samples are drawn from the first '
            f'average; got {decays!r}.'
        )
    for decay in decays:
        _check_number('ema.decays', decay, 0, 1)


def _check_rows(config, key: str, length: int, fits: Callable, kind: str):
    value = lookup(config, key)
    if not isinstance(value, tuple | list) or len(value) != length or not all(map(fits, value)):
        raise UserError(f'config.{key} must be {length} {kind}; got {value!r}.')


def _check_what_is_here(config):
    """Files and packages that a run needs at its start."""
    if config['init_from'] and not epath.Path(config['init_from']).exists():
        raise UserError(
            f'config.init_from: there is no {config["init_from"]}; '
            'name a run folder, a step or an export.'
        )
    if config['wandb']['project'] and importlib.util.find_spec('wandb') is None:
        raise UserError(
            'config.wandb.project needs Weights & Biases: pip install wandb, or leave it empty.'
        )
    if config['condition']['embeddings']:
        _check_embeddings(config)


def _check_embeddings(config):
    """A folder of embeddings goes with a text, and with a model that takes them."""
    folder, m = config['condition']['embeddings'], config['model']
    if not kinds.embeddings(config):
        raise UserError(
            'config.condition.embeddings are of captions; set config.condition.kind=text, or leave '
            'them out.'
        )
    encoder = data.read_encoder(folder)
    if (m['token_width'], m['vocabulary']) != (encoder.width, 0):
        raise UserError(
            f'config.condition.embeddings: those of {encoder.name} need config.model.token_width='
            f'{encoder.width} and config.model.vocabulary=0.'
        )


def _check_condition(config):
    """What a condition needs of the model and of the data."""
    c, m = config['condition'], config['model']
    patch, tokens = sequence.patch_size(m['image_size']), size(m['variant'])['class_tokens']
    named = conditions.kinds(c['kind'])
    if 'class' in named and not m['num_classes']:
        raise UserError(
            f'config.condition.kind with class needs classes{kinds.classes_there(config["data"])}.'
        )
    if named & conditions.PAIRED and config['data']['kind'] not in PAIRED:
        raise UserError(
            'config.condition.kind=pairs needs config.data.kind=pairs, '
            'a folder with target/ and cond/.'
        )
    if config['data']['palette'] and 'pairs' not in named:
        raise UserError(
            'config.data.palette colours the condition images of pairs; leave it out, or set '
            'config.condition.kind=pairs.'
        )
    if 'super_resolution' in named and m['image_size'] % (c['factor'] * patch):
        raise UserError(
            f'config.condition.factor must divide {sequence.GRID} patches; got {c["factor"]}.'
        )
    if sequence.GRID % c['reference_factor']:
        raise UserError(
            f'config.condition.reference_factor must divide {sequence.GRID} patches; got '
            f'{c["reference_factor"]}.'
        )
    if m['reference_images'] > REFERENCES:
        raise UserError(
            f'config.model.reference_images is at most {REFERENCES}; got {m["reference_images"]}.'
        )
    for name, option in kinds.options(config).items():
        if 'cond_tokens' in option:
            _check_width(name, option['cond_tokens'], config)
        _check_references(name, option, config)
        patches = _patches(config, option) + _tokens(option)
        if 'label' in option and patches + tokens > sequence.COND.stop:
            raise UserError(
                f'config.condition.kind: {name} is {patches} patches and {tokens} '
                f'class tokens, which do not fit in {sequence.COND.stop} slots; join them by | '
                '(either) or make the condition smaller.'
            )
    _check_room(config)


def _check_references(name: str, option: dict, config):
    """Several images a row need a model that tells them apart."""
    count = len(option.get('references', ()))
    if count > config['model']['reference_images']:
        raise UserError(
            f'config.condition.kind: {name} has several images in a row; set '
            f'config.model.reference_images={count}.'
        )


def _check_width(name: str, tokens, config):
    """What tokens need of the model. tokens: their shape, bytes [1, m] or embeddings [1, m, E]."""
    m = config['model']
    are_bytes = tokens.ndim == 2
    width = tokens.shape[-1]
    if are_bytes:  # any width will do; that of the network costs little
        width = m['token_width'] or size(m['variant'])['width']
    vocabulary = data.VOCABULARY if are_bytes else 0
    if (m['token_width'], m['vocabulary']) != (width, vocabulary):
        raise UserError(
            f'config.condition.kind: the tokens of {name} need config.model.token_width={width} '
            f'and config.model.vocabulary={vocabulary}.'
        )


def _check_room(config):
    """All options share one program, which has room for the most patches and the most tokens."""
    patches, tokens, _ = condition_slots(config)
    if patches + tokens > sequence.COND.stop:
        raise UserError(
            f'config.condition.kind: {patches} patches and {tokens} tokens (of a text: '
            f'config.condition.tokens) do not fit in {sequence.COND.stop} slots; have fewer, or '
            'make the condition image smaller.'
        )


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and math.isfinite(value)
