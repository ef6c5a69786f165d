"""A trained run as a library uses it: its weights, images drawn from them, and one image on its
way.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from jit_jax.diffusion.conditions import from_uint8
from jit_jax.diffusion.generate import (
    Settings,
    begin_arguments,
    compiled_sampler,
    generate,
    guidance_arguments,
    noise,
)
from jit_jax.diffusion.objective import Diffusion, clean_image
from jit_jax.errors import UserError, shown
from jit_jax.model.jit import JiT
from jit_jax.model.sharding import make_mesh, replicated, spread, whole_rows
from jit_jax.output.images import to_uint8
from jit_jax.recipe import arguments, build, few_steps, inputs, known, photographs
from jit_jax.recipe.kinds import import_own
from jit_jax.training.weights import read_weights

Pictures = object  # a picture or several, as `jit_jax.recipe.photographs` says
BESIDE = {'class': 'label', 'text': 'cond_tokens'}  # what is not made from pictures, by its kind
ROWS = 2**31  # numbers of images, int32 in a program
Begin = tuple[float, np.ndarray]  # a time, and images to begin from under noise at that time


@dataclass(frozen=True)
class Model:
    """A trained network and what its run says about it."""

    net: JiT
    diffusion: Diffusion
    settings: Settings  # the run's own way to sample
    config: dict  # the run's config.json
    step: int

    def apply(self, params, z, t, **conditioning) -> jax.Array:
        """x̂ for noisy images z at times t; keywords as in `JiT.__call__`."""
        output = self.net.apply({'params': params}, z, t, **conditioning)
        return clean_image(output, z, t, self.diffusion)

    def sampling(self, **changes) -> Settings:
        """The run's own way to sample, but for what is not None among the changes."""
        asked = {name: value for name, value in changes.items() if value is not None}
        for name in ('skip_blocks', 'skip_interval'):  # any sequence; a program is found by them
            if name in asked:
                asked[name] = tuple(asked[name])
        return replace(self.settings, **asked)


def load(path: str, ema: str | None = None) -> tuple[Model, dict]:
    """As `jit_jax.load`."""
    arguments.check_path('path', path)
    if ema is not None and not isinstance(ema, str):
        raise UserError(f"ema names weights, such as 'ema1' or 'params'; got {shown(ema)}.")
    config, params, step = read_weights(path, ema)
    import_own(config)
    net, diffusion = build.network(config), build.diffusion(config)
    return Model(net, diffusion, build.settings(config), config, step), params


def check_model(model) -> None:
    """Raises UserError for what is given in a model's place."""
    if isinstance(model, Model):
        return
    path = model if isinstance(model, str) else 'runs/uncond'
    raise UserError(
        f'model is the first of what jit_jax.load returns: model, params = jit_jax.load({path!r}); '
        f'got {shown(model)}.'
    )


def sample(
    model: Model,
    params: dict,
    key: jax.Array | int | None = None,
    num: int = 16,
    *,
    cond: np.ndarray | Pictures | None = None,
    cond_valid: np.ndarray | None = None,
    cond_grid: np.ndarray | None = None,
    label: np.ndarray | None = None,
    label_valid: np.ndarray | None = None,
    from_image: Pictures | None = None,
    from_t: float | None = None,
    kind: str = '',
    fit: str = 'crop',
    text: str | Sequence[str] | None = None,
    cond_tokens: np.ndarray | None = None,
    cond_tokens_valid: np.ndarray | None = None,
    references: Sequence[np.ndarray | Pictures] | None = None,
    references_valid: np.ndarray | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    guidance: float | None = None,
    interval: tuple[float, float] | None = None,
    t_eps: float | None = None,
    skip_blocks: Sequence[int] | None = None,
    skip_scale: float | None = None,
    skip_interval: tuple[float, float] | None = None,
    start: int = 0,
    batch_size: int = 64,
    keep_known: bool = False,
) -> np.ndarray:
    """As `jit_jax.sample`."""
    check_model(model)
    inputs.check_count('num', num, 1)
    inputs.check_count('start', start, 0)
    inputs.check_count('batch_size', batch_size, 1)
    if start + num > ROWS:
        raise UserError(f'start + num is at most {ROWS}; got {start + num}.')
    key = arguments.random_key(key)
    condition = {'cond': cond, 'cond_valid': cond_valid, 'cond_grid': cond_grid}
    condition |= {'references': references, 'references_valid': references_valid}
    classes = {'label': label, 'label_valid': label_valid}
    tokens = {'cond_tokens': cond_tokens, 'cond_tokens_valid': cond_tokens_valid}
    if text is not None:
        tokens = inputs.caption_tokens(model.config, num, text)
    changes = {'steps': steps, 'sampler': sampler, 'guidance': guidance, 'interval': interval}
    changes |= {'t_eps': t_eps, 'skip_blocks': skip_blocks}
    changes |= {'skip_scale': skip_scale, 'skip_interval': skip_interval}
    how = {'kind': kind, 'fit': fit}
    rows = range(start, start + num)
    given, begin = with_pictures(
        model, key, rows, condition | classes | tokens, from_image, from_t, how
    )
    given, settings = checked(model, num, given, changes)
    if keep_known:
        known.check_known(model.config, given, kind)
    arguments.check_params(model.net, params)
    batches = draw(
        model, params, key, num, given, settings, start=start, batch_size=batch_size, begin=begin
    )
    if keep_known:
        batches = known.keeping_known(batches, given)
    return np.concatenate(list(batches))


def with_pictures(
    model: Model,
    key: jax.Array,
    rows: range,
    given: dict,
    from_image: Pictures | None,
    from_t: float | None,
    how: dict[str, str],
) -> tuple[dict, Begin | None]:
    """What is given, with pictures as arrays, and where to begin from: None for noise.

    how: kind and fit, as `jit_jax.sample` takes them. Raises UserError for what does not fit the
    run or each other.
    """
    photographs.check_from(from_image, from_t, how['kind'], given['cond'], given['references'])
    found = dict(given)
    if given['references'] is not None:
        images = given['references']
        if not isinstance(images, (list, tuple, np.ndarray)):
            raise UserError(
                f'references is a list of images, as many as the run learned; got {shown(images)}.'
            )
        pictures = [photographs.one_or_each('references', one, len(rows)) for one in images]
        if pictures and None not in pictures:
            found['references'] = photographs.reference_rows(
                model.config, pictures, len(rows), **how
            )
        else:
            for image in images:
                inputs.check_levels('references', _array('references', image))
    if given['cond'] is not None:
        pictures = photographs.one_or_each('cond', given['cond'], len(rows))
        if pictures is None:
            array = _array('cond', given['cond'])
            if array.dtype.kind in 'OSU':
                raise UserError(
                    'cond is float32 [num, Hc, Wc, C] in [-1, 1], or pictures: PIL images, paths '
                    f'or uint8 arrays; got {shown(given["cond"])}.'
                )
            inputs.check_levels('cond', array)
        else:
            made, _ = photographs.condition_rows(model.config, pictures, len(rows), **how)
            found |= made if given['cond_valid'] is None else {'cond': made['cond']}
    if from_image is None:
        return found, None
    pictures = photographs.one_or_each('from_image', from_image, len(rows))
    if pictures is None:
        raise UserError('from_image is a picture or several: PIL images, paths or uint8 arrays.')
    beside = [kind for kind, name in BESIDE.items() if given[name] is not None]
    made = photographs.made_from(
        model.config,
        pictures,
        rows,
        key,
        beside=beside,
        has_condition=given['cond'] is not None,
        begins=from_t is not None,
        **how,
    )
    begin = None if from_t is None else (from_t, from_uint8(made.images))
    return found | made.conditioning, begin


def checked(
    model: Model, num: int, conditioning: dict, changes: dict
) -> tuple[dict[str, np.ndarray], Settings]:
    """The conditioning that is given, as arrays, and the settings with the changes that are.

    Raises UserError for what the run has not learned or cannot do.
    """
    inputs.check_settings(**changes, depth=model.net.depth)
    given = arrays_given(**conditioning)
    if 'label' in given and given['label'].ndim == 0:
        given['label'] = np.full(num, given['label'])
    inputs.check_conditioning(model.config, model.net, num, given)
    inputs.check_guidance(model.config, changes['guidance'], given)
    few_steps.check_asked(model.config, changes['sampler'], changes['guidance'])
    return given, model.sampling(**changes)


def arrays_given(**rows) -> dict[str, np.ndarray]:
    """Those that are not None, as arrays."""
    given = {name: value for name, value in rows.items() if value is not None}
    images = given.pop('references', None)
    arrays = {name: _array(name, value) for name, value in given.items()}
    if images is not None:  # several, of any sizes
        arrays['references'] = tuple(_array('references', image) for image in images)
    return arrays


def _array(name: str, values) -> np.ndarray:
    """Flags may be 0 and 1 as well. Raises UserError for rows of different shapes."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise UserError(f'{name} has rows of different shapes; give them one shape.') from error
    if name.endswith('_valid') and array.dtype.kind in 'iuf' and np.isin(array, (0, 1)).all():
        return array.astype(bool)
    return array


def draw(
    model: Model,
    params: dict,
    key: jax.Array,
    num: int,
    conditioning: dict[str, np.ndarray],
    settings: Settings,
    *,
    start: int = 0,
    batch_size: int = 64,
    begin: Begin | None = None,
) -> Iterator[np.ndarray]:
    """Images number start … start + num − 1 of a key, batch by batch: uint8 [at most batch_size, H,
    W, C].

    begin: (t, float32 [num, H, W, C]) to begin from images under noise at time t; None: from noise.
    Everything has been checked. All devices of all processes draw, and every process gets every
    image.
    """
    mesh = make_mesh((-1, 1, 1))
    run = compiled_sampler(
        model.net,
        model.diffusion,
        settings.sampler,
        settings.steps,
        settings.t_eps,
        mesh,
        settings.skip,
    )
    params = jax.device_put(params, replicated(mesh))
    size = whole_rows(min(batch_size, num), mesh)
    for first in range(0, num, size):
        # The last batch is filled up with images from the start: one program serves all.
        rows = np.arange(first, first + size) % num
        batch = jax.tree.map(lambda values, rows=rows: values[rows], conditioning)
        z, batch = spread((noise(key, start + first, size, model.net), batch), mesh)
        images = begin and (begin[0], spread(begin[1][rows], mesh))
        images = run(params, z, batch, settings.guidance, settings.interval, images)
        yield to_uint8(process_allgather(images, tiled=True))[: num - first]


def trajectory(
    model: Model,
    params: dict,
    key: jax.Array,
    *,
    cond: np.ndarray | None = None,
    cond_valid: np.ndarray | None = None,
    cond_grid: np.ndarray | None = None,
    label: np.ndarray | None = None,
    label_valid: np.ndarray | None = None,
    text: str | None = None,
    cond_tokens: np.ndarray | None = None,
    cond_tokens_valid: np.ndarray | None = None,
    references: Sequence[np.ndarray] | None = None,
    references_valid: np.ndarray | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    guidance: float | None = None,
    interval: tuple[float, float] | None = None,
    t_eps: float | None = None,
    skip_blocks: Sequence[int] | None = None,
    skip_scale: float | None = None,
    skip_interval: tuple[float, float] | None = None,
    begin: Begin | None = None,
) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """Image 0 of a key on its way from noise: (t, z_t, x̂) at every step of the sampler.

    Arguments and errors as in `jit_jax.sample`, with one row each, numbers alone; begin as in
    `draw`. z_t and x̂ are float32 [H, W, C] in about [−1, 1].
    """
    condition = {'cond': cond, 'cond_valid': cond_valid, 'cond_grid': cond_grid}
    condition |= {'references': references, 'references_valid': references_valid}
    classes = {'label': label, 'label_valid': label_valid}
    tokens = {'cond_tokens': cond_tokens, 'cond_tokens_valid': cond_tokens_valid}
    if text is not None:
        tokens = inputs.caption_tokens(model.config, 1, text)
    changes = {'steps': steps, 'sampler': sampler, 'guidance': guidance, 'interval': interval}
    changes |= {'t_eps': t_eps, 'skip_blocks': skip_blocks}
    changes |= {'skip_scale': skip_scale, 'skip_interval': skip_interval}
    given, settings = checked(model, 1, condition | classes | tokens, changes)
    passes = {}  # by t: what a sampler tries ahead of a step is followed by the step itself

    def watch(t, z, x_hat):
        passes[float(t)] = (np.asarray(z[0]), np.asarray(x_hat[0]))

    run = partial(
        generate,
        model=model.net,
        d=model.diffusion,
        sampler=settings.sampler,
        steps=settings.steps,
        t_eps=settings.t_eps,
        skip=settings.skip,
        watch=watch,
    )
    scale_and_interval = guidance_arguments(settings.guidance, settings.interval)
    z = noise(key, 0, 1, model.net)
    z = jax.jit(run)(params, z, given, *scale_and_interval, **begin_arguments(begin))
    jax.effects_barrier()
    passes[1.0] = (np.asarray(z[0]), np.asarray(z[0]))
    return [(t, *passes[t]) for t in sorted(passes)]
