"""From a config to objects: the only place that reads one. Everything a user can get wrong is found here."""

import contextlib
import difflib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from jit_jax import data
from jit_jax.diffusion import conditions
from jit_jax.diffusion.generate import Settings
from jit_jax.diffusion.objective import Diffusion
from jit_jax.diffusion.samplers import SAMPLERS
from jit_jax.model import attention, sequence, sharding
from jit_jax.model.jit import REMAT, JiT
from jit_jax.model.sizes import forward_multiply_adds, size, slot_counts
from jit_jax.training import state
from jit_jax.training.step import batch_loss, draw, train_step

CHOICES = {
    'model.tables': ('sincos', 'zero'),
    'model.null': ('mask', 'token'),
    'compute.dead_slots': ('skip', 'keep'),
    'compute.attention': attention.BACKENDS,
    'compute.remat': tuple(REMAT),
    'compute.dtype': ('auto', 'float32', 'bfloat16'),
    'optimizer.schedule': ('constant', 'cosine'),
    'optimizer.mu_dtype': ('float32', 'bfloat16'),
    'ema.memory': tuple(sharding.MEMORY),
    'sample.sampler': tuple(SAMPLERS),
}
COUNTS = {  # whole numbers, at least; the batch size first, as others are derived from it
    'batch_size': 1,
    'steps': 1,
    'accumulate': 1,
    'seed': 0,
    'log_every': 1,
    'model.channels': 1,
    'model.num_classes': 0,
    'data.threads': 0,
    'data.prefetch': 0,
    'condition.factor': 1,
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
RANGES = {  # numbers, from low to below high
    'condition.drop': (0, 1),
    'diffusion.noise_scale': (0, math.inf),
    'diffusion.t_mean': (-math.inf, math.inf),
    'diffusion.t_std': (0, math.inf),
    'diffusion.t_eps': (0, 1),
    'optimizer.base_lr': (0, math.inf),
    'optimizer.b1': (0, 1),
    'optimizer.b2': (0, 1),
    'optimizer.weight_decay': (0, math.inf),
    'optimizer.muon_rms': (0, math.inf),
    'sample.guidance': (-math.inf, math.inf),
    'data.max_broken': (0, 1),
}


def check(config: ConfigDict) -> None:
    """Raises ValueError, one sentence that names the key and the fix, for values no run can have."""
    for key, allowed in CHOICES.items():
        value = lookup(config, key)
        if value not in allowed:
            near = difflib.get_close_matches(str(value), allowed, 1)
            hint = f', did you mean {near[0]}?' if near else '.'
            raise ValueError(
                f'config.{key} must be one of {", ".join(allowed)}; got {value!r}{hint}'
            )
    for key, low in COUNTS.items():
        value = lookup(config, key)
        if not _whole(value) or value < low:
            raise ValueError(f'config.{key} must be a whole number, at least {low}; got {value!r}.')
    for key, (low, high) in RANGES.items():
        _check_number(key, lookup(config, key), low, high)
    if not config.ema.decays:
        raise ValueError(
            'config.ema.decays needs at least one decay; samples are drawn from the first average.'
        )
    for decay in config.ema.decays:
        _check_number('ema.decays', decay, 0, 1)
    _check_rows(config, 'mesh', 3, _whole)
    _check_rows(config, 'sample.interval', 2, _number)
    _check_rows(config, 'condition.hole', 2, _whole)
    if not config.sample.interval[0] < config.sample.interval[1]:
        raise ValueError(
            f'config.sample.interval is (low, high) with low < high; got {tuple(config.sample.interval)}.'
        )
    low, high = config.condition.hole
    if not 1 <= low <= high <= sequence.GRID:
        raise ValueError(
            f'config.condition.hole is (smallest, largest) side in patches, 1 to {sequence.GRID}; got {(low, high)}.'
        )
    if config.init_from and not epath.Path(config.init_from).exists():
        raise ValueError(
            f'config.init_from: there is no {config.init_from}; name a run folder, a step or an export.'
        )
    if config.wandb.project and importlib.util.find_spec('wandb') is None:
        raise ValueError(
            'config.wandb.project needs Weights & Biases: pip install wandb, or leave it empty.'
        )
    _check_condition(config)


def _check_condition(config: ConfigDict):
    """What a condition needs of the model and of the data."""
    kinds = conditions.kinds(config.condition.kind)
    tokens = size(config.model.variant)['class_tokens']
    p, factor = sequence.patch_size(config.model.image_size), config.condition.factor
    if 'class' in kinds and not config.model.num_classes:
        raise ValueError(
            'config.condition.kind with class needs classes; set config.model.num_classes.'
        )
    if 'pairs' in kinds and config.data.kind != 'pairs':
        raise ValueError(
            'config.condition.kind=pairs needs config.data.kind=pairs, a folder with target/ and cond/.'
        )
    if 'super_resolution' in kinds and config.model.image_size % (factor * p):
        raise ValueError(
            f'config.condition.factor must divide {sequence.GRID} patches; got {factor}.'
        )
    n, _ = program(config)
    if 'class' in kinds and n + tokens > sequence.COND.stop:
        raise ValueError(
            f'config.condition.kind: {n} patches and {tokens} class tokens do not fit in {sequence.COND.stop} slots.'
        )


def program(config) -> tuple[int, bool]:
    """The condition patches of the programs of a config, and whether class tokens enter."""
    c = config['condition']
    kinds = conditions.kinds(c['kind'])
    few = lambda kind: (
        (sequence.GRID // c['factor']) ** 2 if kind == 'super_resolution' else sequence.GRID**2
    )
    return max(map(few, kinds - {'class'}), default=0), 'class' in kinds


def _whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value) -> bool:
    return _whole(value) or isinstance(value, float)


def _check_number(key: str, value, low: float, high: float):
    if not _number(value) or not low <= value < high:
        raise ValueError(
            f'config.{key} must be a number from {low} to below {high}; got {value!r}.'
        )


def _check_rows(config, key: str, length: int, fits: Callable):
    value = tuple(lookup(config, key))
    if len(value) != length or not all(map(fits, value)):
        raise ValueError(
            f'config.{key} must be {length} {"whole " if fits is _whole else ""}numbers; got {value}.'
        )


def lookup(config, key: str) -> object:
    for part in key.split('.'):
        config = config[part]
    return config


def network(config, platform: str = '') -> JiT:
    """The network of a config or of a run's config.json, for a platform; '': the one JAX runs on."""
    c, m = config['compute'], config['model']
    auto = 'float32' if (platform or jax.default_backend()) == 'cpu' else 'bfloat16'
    dtype = auto if c['dtype'] == 'auto' else c['dtype']
    architecture = {name: m[name] for name in m if name != 'variant'}
    compute = {name: c[name] for name in c if name != 'dtype'}
    return JiT(**size(m['variant']), **architecture, **compute, dtype=jnp.dtype(dtype))


def diffusion(config) -> Diffusion:
    return Diffusion(**config['diffusion'])


def settings(config) -> Settings:
    s = config['sample']
    return Settings(s['sampler'], s['steps'], s['guidance'], tuple(s['interval']))


def condition(config) -> Callable:
    """(x, batch, key) → what the model is told about x, as config.condition says."""
    c = config['condition']
    return conditions.make(c['kind'], factor=c['factor'], hole=tuple(c['hole']))


def source(config, split: str) -> data.Source:
    """The images of 'train' or 'test'."""
    d, m = config['data'], config['model']
    return data.open_source(
        d['kind'],
        split=d[split],
        path=d['path'] or None,
        name=d['name'] or None,
        max_broken=d['max_broken'],
        image_size=m['image_size'],
        channels=m['channels'],
    )


@dataclass
class Programs:
    """What a config computes, whatever the images; nothing here has touched a device's memory yet."""

    config: ConfigDict
    model: JiT
    diffusion: Diffusion
    settings: Settings
    condition: Callable
    mesh: jax.sharding.Mesh
    init: Callable  # key → TrainState, jitted, sharded
    start: Callable  # parameters → TrainState at step 0, jitted, sharded
    step: Callable  # (state, batch, key) → (state, metrics), jitted, state donated
    like: state.TrainState  # shapes, dtypes and shardings of the state
    attention: str  # the backends that the step uses
    flops: int  # of one image in a step, in matrix products


@dataclass
class Run(Programs):
    """All that a training loop needs."""

    train: data.Source
    test: data.Source

    @property
    def record(self) -> dict:
        """What config.json and every checkpoint say about the run."""
        return self.config.to_dict() | {'classes': list(self.train.classes)}


def run(config: ConfigDict) -> Run:
    """Checks a config and builds its run. Raises ValueError in one sentence before any compute is spent."""
    check(config)
    built = programs(config, sharding.make_mesh(config.mesh))
    train, test = source(config, 'train'), source(config, 'test')
    if 'class' in config.condition.kind and not 0 < len(train.classes) <= config.model.num_classes:
        raise ValueError(
            f'config.model.num_classes is {config.model.num_classes}, and the training images have {len(train.classes)} classes.'
        )
    return Run(**vars(built), train=train, test=test)


def programs(config: ConfigDict, mesh: jax.sharding.Mesh) -> Programs:
    """The programs of a checked config for a mesh, whose devices need not be here."""
    sharding.check_batch(config.batch_size, mesh, config.accumulate)
    model, d, conditioning = (
        network(config, mesh.devices.flat[0].platform),
        diffusion(config),
        condition(config),
    )
    o, decays = config.optimizer, tuple(config.ema.decays)
    rate = state.learning_rate(o.base_lr, config.batch_size, config.steps, o.warmup, o.schedule)
    optimizer = state.optimizer(rate, o.b1, o.b2, o.weight_decay, o.muon_rms, o.mu_dtype)
    n, labelled = program(config)

    init = partial(state.init_state, model, optimizer=optimizer, ema=decays)
    shapes = jax.eval_shape(init, jax.random.key(0))
    places = sharding.shardings(shapes, mesh)
    places = places.replace(ema=sharding.in_memory(places.ema, config.ema.memory))
    everywhere = sharding.replicated(mesh)
    step = partial(
        train_step,
        draw=partial(draw, model=model, d=d, condition=conditioning, drop=config.condition.drop),
        loss=partial(batch_loss, model=model, d=d),
        accumulate=config.accumulate,
        optimizer=optimizer,
        rate=rate,
        average=partial(
            state.update_ema, decays=decays, warmup=config.ema.warmup, memory=config.ema.memory
        ),
        log_every=config.log_every,
    )
    return Programs(
        config=config,
        model=model,
        diffusion=d,
        settings=settings(config),
        condition=conditioning,
        mesh=mesh,
        init=jax.jit(init, out_shardings=places),
        start=jax.jit(
            partial(state.start_state, optimizer=optimizer, ema=decays), out_shardings=places
        ),
        step=jax.jit(
            sharding.within(mesh, step),
            in_shardings=(places, sharding.batch_sharding(mesh), everywhere),
            out_shardings=(places, everywhere),
            donate_argnums=0,
        ),
        like=jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, places
        ),
        attention=backends(config, model, mesh),
        flops=6 * forward_multiply_adds(model, n, labelled),
    )


def less_memory(config, mesh) -> dict[str, object]:
    """What else computes the same training in less memory, as keys and values of the config, in the order to try."""
    more = list(REMAT)[list(REMAT).index(config.compute.remat) + 1 :]
    tries = {'compute.remat': more[0]} if more else {}
    for accumulate in range(2 * config.accumulate, config.batch_size + 1):
        with contextlib.suppress(ValueError):
            sharding.check_batch(config.batch_size, mesh, accumulate)
            return tries | {'accumulate': accumulate}
    return tries


def backends(config, model: JiT, mesh) -> str:
    """The attention backends of the step. Raises ValueError where the one that config.compute names cannot run."""
    rows, head_width = config.batch_size // config.accumulate, model.width // model.heads
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        choices = [
            attention.choose(model.attention, model.dtype, (rows, model.heads, S, head_width))
            for S in slot_counts(model, *program(config))
        ]
    return ', '.join(dict.fromkeys(choices))
