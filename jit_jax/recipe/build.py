"""From a config to objects: the only place that reads one."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jit_jax import data
from jit_jax.diffusion import conditions, meanflow, perceptual
from jit_jax.diffusion.generate import Settings
from jit_jax.diffusion.objective import Diffusion
from jit_jax.errors import UserError
from jit_jax.model import attention, sharding
from jit_jax.model.block import REMAT
from jit_jax.model.jit import JiT
from jit_jax.model.sizes import forward_multiply_adds, size, slot_counts
from jit_jax.recipe import auto, likeness
from jit_jax.recipe.checks import check, condition_slots
from jit_jax.recipe.kinds import condition, embeddings, text_tokens
from jit_jax.training import optimizer, state
from jit_jax.training.ema import EMA
from jit_jax.training.step import Recipe, train_step

COMPUTE = ('dead_slots', 'remat', 'attention')  # what the network takes as it is in the config


@dataclass
class Programs:
    """What a config computes, whatever the images. Nothing has touched a device's memory yet."""

    config: ConfigDict
    recipe: Recipe  # all that decides a step
    settings: Settings
    mesh: jax.sharding.Mesh
    init: Callable  # key → TrainState, jitted, sharded
    start: Callable  # parameters → TrainState at step 0, jitted, sharded
    step: Callable  # (state, batch, key, *frozen) → (state, metrics), jitted, state donated
    frozen: tuple  # what no step changes: () or LPIPS' weights; shapes, and arrays in a `Run`
    like: state.TrainState  # shapes, dtypes and shardings of the state
    attention: str  # the backends that the step uses
    remarks: str  # what was chosen for these devices and why, in one line
    forward_flops: int  # of one image in a pass of the network, in matrix products

    @property
    def model(self) -> JiT:
        return self.recipe.model

    @property
    def flops(self) -> float:
        """Of one image in a step: a pass, the backward pass of two, what MeanFlow adds, and what
        the perceptual loss does.
        """
        passes = 3 + meanflow.passes(self.diffusion)
        return self.forward_flops * passes + self.perceptual_flops

    @property
    def perceptual_flops(self) -> float:
        """Of one image in a step, in LPIPS' network."""
        return perceptual.flops(self.model.image_size, self.recipe.perceptual)

    @property
    def diffusion(self) -> Diffusion:
        return self.recipe.diffusion

    @property
    def condition(self) -> Callable:
        """(x, batch, key) → what the model is conditioned on, as keywords of `JiT.__call__`."""
        return self.recipe.condition


@dataclass
class Run(Programs):
    """All that a training loop needs."""

    train: data.Source
    test: data.Source
    content: str = ''  # a hash of images in memory

    @property
    def record(self) -> dict:
        """What config.json and every checkpoint say about the run."""
        record = self.config.to_dict() | {'classes': list(self.train.classes)}
        record['data']['path'] = data.absolute(record['data']['path'])  # sampled from elsewhere
        record['data']['moved'] = False  # said about one start, not about the run
        if self.content:
            record['data']['content'] = self.content
        weights = record['perceptual']['lpips']
        record['perceptual']['lpips'] = data.absolute(weights)
        folder = embeddings(self.config)
        if folder:
            record['condition']['embeddings'] = data.absolute(folder)
            record['encoder'] = dataclasses.asdict(data.read_encoder(folder))
        return record


def run(config: ConfigDict, memory: data.InMemory | None = None) -> Run:
    """Checks a config and builds its run, on images in memory where they are given.

    Raises UserError, in one sentence, before any compute is spent.
    """
    check(config)
    frozen = likeness.read(config)
    train = source(config, 'train', memory=memory)
    if train.tokens:  # no more than the longest caption takes
        config = config.copy_and_resolve_references()
        config.condition.tokens = train.tokens
    built = programs(config, mesh(config))
    test = source(config, 'test', memory=memory)
    classes = config.model.num_classes
    if 'class' in config.condition.kind and not 0 < len(train.classes) <= classes:
        raise UserError(
            f'config.model.num_classes is {classes}, and the training images have '
            f'{len(train.classes)} classes.'
        )
    if conditions.kinds(config.condition.kind) & conditions.PAIRED:
        check_paired(config, train)
    content = memory.content if memory else ''
    known = vars(built) | {'frozen': frozen}
    return Run(**known, train=train, test=test, content=content)


def check_paired(config: ConfigDict, train: data.Source) -> None:
    """Raises UserError where the images come with another number of condition images."""
    found = len(train.images) - 1
    if not found:
        raise UserError(
            'config.condition.kind=pairs needs a condition image for each image: give them, as in '
            'jit_jax.train(config, workdir, images=…, cond=…).'
        )
    if found != config.condition.paired:
        raise UserError(
            f'There are {found} condition images for each image; set config.condition.paired='
            f'{found}, or remove folders.'
        )


def on_memory(config: ConfigDict) -> ConfigDict:
    """The same config for images in memory."""
    config = config.copy_and_resolve_references()
    config.data.kind, config.data.path, config.data.name = 'memory', '', ''
    config.data.train, config.data.test = 'train', 'test'
    return config


def mesh(config: ConfigDict, devices=None) -> jax.sharding.Mesh:
    """The mesh that config.mesh asks for, of `devices` or all there are. Raises UserError."""
    devices = jax.devices() if devices is None else devices
    shapes = state_shapes(step_recipe(config, devices[0]))
    return sharding.make_mesh(config.mesh, devices, like=shapes.params)


def programs(config: ConfigDict, mesh: jax.sharding.Mesh) -> Programs:
    """The programs of a checked config for a mesh, whose devices need not be here.

    Raises UserError where the mesh does not suit the batch or the size, or a backend cannot run.
    """
    sharding.check_batch(config.batch_size, mesh, config.accumulate)
    recipe = step_recipe(config, mesh.devices.flat[0])
    shapes = state_shapes(recipe)
    sharding.check_mesh(mesh, shapes.params)
    places = state_places(config, shapes, mesh)
    backends = attention_backends(config, recipe.model, mesh)
    patches, tokens, labelled = condition_slots(config)
    return Programs(
        config=config,
        recipe=recipe,
        settings=settings(config),
        mesh=mesh,
        init=jax.jit(initial(recipe), out_shardings=places),
        start=jit_start(recipe, places),
        step=jit_step(recipe, mesh, places),
        frozen=likeness.shapes(config, mesh),
        like=jax.tree.map(placed, shapes, places),
        attention=backends,
        remarks=remarks(config, recipe.model, mesh, backends, shapes),
        forward_flops=2 * forward_multiply_adds(recipe.model, patches, tokens, labelled=labelled),
    )


def step_recipe(config: ConfigDict, device) -> Recipe:
    """All that decides a training step, for devices like `device`."""
    o, e = config.optimizer, config.ema
    rate = optimizer.learning_rate(o.base_lr, config.batch_size, config.steps, o.warmup, o.schedule)
    return Recipe(
        model=network(config, device),
        diffusion=diffusion(config),
        condition=condition(config),
        drop=config.condition.drop,
        optimizer=optimizer.optimizer(rate, o.b1, o.b2, o.weight_decay, o.muon_rms, o.mu_dtype),
        learning_rate=rate,
        ema=EMA(tuple(e.decays), warmup=e.warmup, memory=e.memory),
        accumulate=config.accumulate,
        log_every=config.log_every,
        perceptual=likeness.settings(config),
    )


def network(config, device=None) -> JiT:
    """The network of a config or a run's config.json, for `device`; None: the first of JAX's."""
    device = jax.devices()[0] if device is None else device
    m, c = config['model'], config['compute']
    sizes = size(m['variant'])
    scan, _ = auto.scan(c['scan'], device.platform, depth=sizes['depth'], width=sizes['width'])
    architecture = {name: m[name] for name in m if name != 'variant'}
    compute = {name: c[name] for name in COMPUTE if name in c}  # converted runs name some only
    return JiT(**sizes, **architecture, **compute, scan=scan, dtype=auto.dtype(c['dtype'], device))


def diffusion(config) -> Diffusion:
    """The numbers of the objective."""
    section = config['diffusion']
    numbers = {name: section[name] for name in section}
    if 'guidance' in numbers:
        numbers['guidance'] = tuple(numbers['guidance'])  # JSON has lists
    return Diffusion(**numbers)


def settings(config) -> Settings:
    """How a run's samples are drawn."""
    s = config['sample']
    return Settings(
        s['sampler'],
        s['steps'],
        s['guidance'],
        tuple(s['interval']),
        s['t_eps'],
        tuple(s['skip_blocks']),
        s['skip_scale'],
        tuple(s['skip_interval']),
    )


def source(
    config, which: str = '', *, split: str = '', memory: data.InMemory | None = None
) -> data.Source:
    """Images of a run's data: its 'train' or 'test' images, or any split of the data by its name.

    split: a literal one, such as 'validation[:100]', instead of `which`. memory: the images, where
    they are not in files.
    """
    d, m = config['data'], config['model']
    split = split or d[which]
    holdout = d['holdout']
    pixels = {
        'image_size': m['image_size'],
        'channels': m['channels'],
        'max_broken': d['max_broken'],
        'palette': palette(config),
        'tokens': text_tokens(config),
        'embeddings': embeddings(config),
    }
    if memory is not None:
        return memory.source(split, holdout, **pixels)
    path, name = d['path'] or None, d['name'] or None
    return data.open_source(d['kind'], split=split, path=path, name=name, holdout=holdout, **pixels)


def palette(config) -> str:
    """The colours of the numbers in condition images; '' where those are pictures."""
    return config['data']['palette'] if 'data' in config else ''  # a converted run has no data


def initial(recipe: Recipe) -> Callable:
    """key → a fresh state."""

    def init(key):
        return state.init_state(recipe.model, key, recipe.optimizer, recipe.ema.decays)

    return init


def state_shapes(recipe: Recipe) -> state.TrainState:
    """Shapes and dtypes of the state."""
    return jax.eval_shape(initial(recipe), jax.random.key(0))


@functools.lru_cache(16)  # a Linen module hashes by what it holds
def parameter_shapes(net: JiT) -> dict:
    """Shapes and dtypes of a network's tree of parameters."""
    image = jax.ShapeDtypeStruct((1, net.image_size, net.image_size, net.channels), jnp.float32)
    key = jax.eval_shape(functools.partial(jax.random.key, 0))
    return jax.eval_shape(net.init, key, image, jax.ShapeDtypeStruct((1,), jnp.float32))['params']


def state_places(config: ConfigDict, shapes: state.TrainState, mesh) -> state.TrainState:
    """The sharding of every array of a state, averages in the memory that config.ema names."""
    places = sharding.shardings(shapes, mesh)
    return places.replace(ema=sharding.in_memory(places.ema, config.ema.memory))


def placed(shape, place) -> jax.ShapeDtypeStruct:
    """A shape with its sharding."""
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)


def jit_start(recipe: Recipe, places) -> Callable:
    """parameters → the state at step 0."""

    def start(params):
        return state.start_state(params, recipe.optimizer, recipe.ema.decays)

    return jax.jit(start, out_shardings=places)


def jit_step(recipe: Recipe, mesh, places) -> Callable:
    """(state, batch, key, *frozen) → (state, metrics). The state that goes in is given away.

    frozen: LPIPS' weights where the recipe has a perceptual loss. An argument, as a constant would
    lie in the program; nothing, where there is none.
    """

    def step(live, batch, key, *frozen):
        return train_step(live, batch, key, recipe, *frozen)

    everywhere = sharding.replicated(mesh)
    frozen = (everywhere,) if recipe.perceptual.weight else ()
    return jax.jit(
        sharding.within(mesh, step),
        in_shardings=(places, sharding.batch_sharding(mesh), everywhere, *frozen),
        out_shardings=(places, everywhere),
        donate_argnums=0,
    )


def attention_backends(config: ConfigDict, model: JiT, mesh) -> str:
    """The attention backends of the step. Raises UserError where the one asked for cannot run."""
    rows, head_width = config.batch_size // config.accumulate, model.width // model.heads
    patches, tokens, labelled = condition_slots(config)
    chosen = []
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        for slots in slot_counts(model, patches + tokens, labelled=labelled):
            shape = (rows, slots, model.heads, head_width)
            chosen.append(attention.choose(model.attention, model.dtype, shape))
    return ', '.join(dict.fromkeys(chosen))


def remarks(config: ConfigDict, model: JiT, mesh, backends: str, shapes) -> str:
    """What was chosen for these devices and why, in one line."""
    platform = mesh.devices.flat[0].platform
    scan, why = auto.scan(config.compute.scan, platform, depth=model.depth, width=model.width)
    blocks = 'scanned' if scan else 'one by one'
    if config.diffusion.objective == 'meanflow' and backends != attention.FORWARD_MODE:
        backends += f', and {attention.FORWARD_MODE} where MeanFlow takes derivatives'
    line = f'{model.dtype.name}, attention {backends}, blocks {blocks} ({why})'
    whole = sharding.kept_whole(shapes, mesh)
    return f'{line}. {whole}' if whole else line


def less_memory(config: ConfigDict, mesh) -> dict[str, object]:
    """What else computes the same training in less memory: {key of the config: value}.

    In the order in which to try them.
    """
    more = list(REMAT)[list(REMAT).index(config.compute.remat) + 1 :]
    tries = {'compute.remat': more[0]} if more else {}
    for accumulate in range(2 * config.accumulate, config.batch_size + 1):
        with contextlib.suppress(UserError):
            sharding.check_batch(config.batch_size, mesh, accumulate)
            return tries | {'accumulate': accumulate}
    return tries
