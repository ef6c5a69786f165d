"""From a config to objects: the only place that reads one. Everything a user can get wrong is found here."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from jit_jax import conditions, data, sequence, sharding, state
from jit_jax.diffusion import Diffusion
from jit_jax.generate import Settings
from jit_jax.model import REMAT, JiT, size
from jit_jax.sampling import SAMPLERS
from jit_jax.step import batch_loss, draw, train_step

CHOICES = {
    'model.tables': ('sincos', 'zero'),
    'model.null': ('mask', 'token'),
    'compute.dead_slots': ('skip', 'keep'),
    'compute.remat': tuple(REMAT),
    'compute.dtype': ('auto', 'float32', 'bfloat16'),
    'optimizer.schedule': ('constant', 'cosine'),
    'sample.sampler': tuple(SAMPLERS),
}
AT_LEAST = {
    'steps': 1,
    'batch_size': 1,
    'accumulate': 1,
    'seed': 0,
    'log_every': 1,
    'model.channels': 1,
    'model.num_classes': 0,
    'diffusion.noise_scale': 0,
    'diffusion.t_eps': 0,
    'optimizer.base_lr': 0,
    'optimizer.warmup': 0,
    'optimizer.muon_rms': 0,
    'checkpoint.every': 1,
    'checkpoint.keep_last': 1,
    'sample.every': 1,
    'sample.num': 1,
    'sample.steps': 1,
}


def check(config: ConfigDict):
    """Raises ValueError, one sentence that names the key and the fix, for values no run can have."""
    for key, allowed in CHOICES.items():
        value = lookup(config, key)
        if value not in allowed:
            near = difflib.get_close_matches(str(value), allowed, 1)
            raise ValueError(f'config.{key} must be one of {", ".join(allowed)}; got {value!r}' + (f', did you mean {near[0]}?' if near else '.'))
    for key, low in AT_LEAST.items():
        value = lookup(config, key)
        if isinstance(value, bool) or not value >= low:
            raise ValueError(f'config.{key} must be at least {low}; got {value!r}.')
    for key in ('condition.drop', 'optimizer.b1', 'optimizer.b2', *(f'ema.decays[{i}]' for i in range(len(config.ema.decays)))):
        value = config.ema.decays[int(key[11:-1])] if key.startswith('ema') else lookup(config, key)
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise ValueError(f'config.{key} must be in [0, 1); got {value!r}.')
    if not config.ema.decays:
        raise ValueError('config.ema.decays needs at least one decay; samples are drawn from the first average.')
    if config.init_from and not epath.Path(config.init_from).exists():
        raise ValueError(f'config.init_from: there is no {config.init_from}; name a run folder, a step or an export.')
    size(config.model.variant)
    p = sequence.patch_size(config.model.image_size)
    kinds = {name for option in conditions.parse(config.condition.kind) for name in option}
    if 'class' in kinds and not config.model.num_classes:
        raise ValueError('config.condition.kind with class needs classes; set config.model.num_classes.')
    if 'pairs' in kinds and config.data.kind != 'pairs':
        raise ValueError('config.condition.kind=pairs needs config.data.kind=pairs, a folder with target/ and cond/.')
    if 'super_resolution' in kinds:
        small, left = divmod(config.model.image_size, config.condition.factor)
        if left or small % p:
            raise ValueError(f'config.condition.factor must divide {sequence.GRID} patches; got {config.condition.factor}.')
    low, high = config.condition.hole
    if not 1 <= low <= high <= sequence.GRID:
        raise ValueError(f'config.condition.hole is (smallest, largest) side in patches, 1 to {sequence.GRID}; got {(low, high)}.')


def lookup(config, key: str):
    for part in key.split('.'):
        config = config[part]
    return config


def network(config) -> JiT:
    """The network of a config or of a run's config.json."""
    c, m = config['compute'], config['model']
    dtype = ('float32' if jax.default_backend() == 'cpu' else 'bfloat16') if c['dtype'] == 'auto' else c['dtype']
    architecture = {name: m[name] for name in m if name != 'variant'}
    return JiT(**size(m['variant']), **architecture, dead_slots=c['dead_slots'], scan=c['scan'], remat=c['remat'], dtype=jnp.dtype(dtype))


def diffusion(config) -> Diffusion:
    return Diffusion(**config['diffusion'])


def settings(config) -> Settings:
    s = config['sample']
    return Settings(s['sampler'], s['steps'], s['guidance'], tuple(s['interval']))


def condition(config) -> Callable:
    """(x, batch, key) → what the model is told about x, as config.condition says."""
    c = config['condition']
    return conditions.make(c['kind'], factor=c['factor'], hole=tuple(c['hole']))


def source(config, split: str):
    """The images of 'train' or 'test'."""
    d, m = config['data'], config['model']
    return data.open_source(
        d['kind'], split=d[split], path=d['path'] or None, name=d['name'] or None, max_broken=d['max_broken'],
        image_size=m['image_size'], channels=m['channels'],
    )  # fmt: skip


@dataclass
class Run:
    """All that a training loop needs; nothing here has touched a device's memory yet."""

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
    train: data.Source
    test: data.Source

    @property
    def record(self) -> dict:
        """What config.json and every checkpoint say about the run."""
        return self.config.to_dict() | {'classes': list(self.train.classes)}


def run(config: ConfigDict) -> Run:
    """Checks a config and builds its run. Raises ValueError in one sentence before any compute is spent."""
    check(config)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(config.batch_size, mesh, config.accumulate)
    model, d, told = network(config), diffusion(config), condition(config)
    o, decays = config.optimizer, tuple(config.ema.decays)
    rate = state.learning_rate(o.base_lr, config.batch_size, config.steps, o.warmup, o.schedule)
    optimizer = state.optimizer(rate, o.b1, o.b2, o.weight_decay, o.muon_rms)

    init = partial(state.init_state, model, optimizer=optimizer, ema=decays)
    shapes = jax.eval_shape(init, jax.random.key(0))
    places = sharding.shardings(shapes, mesh)
    everywhere = sharding.replicated(mesh)
    step = partial(
        train_step,
        draw=partial(draw, model=model, d=d, condition=told, drop=config.condition.drop),
        loss=partial(batch_loss, model=model, d=d), accumulate=config.accumulate, optimizer=optimizer, rate=rate,
        ema=decays, ema_warmup=config.ema.warmup, log_every=config.log_every,
    )  # fmt: skip
    return Run(
        config=config, model=model, diffusion=d, settings=settings(config), condition=told, mesh=mesh,
        init=jax.jit(init, out_shardings=places),
        start=jax.jit(partial(state.start_state, optimizer=optimizer, ema=decays), out_shardings=places),
        step=jax.jit(
            step,
            in_shardings=(places, sharding.batch_sharding(mesh), everywhere),
            out_shardings=(places, everywhere),
            donate_argnums=0,
        ),
        like=jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, places),
        train=source(config, 'train'), test=source(config, 'test'),
    )  # fmt: skip
