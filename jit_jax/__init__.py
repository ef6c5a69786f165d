"""JiT, image generation in pixel space with a plain transformer, in JAX: one sequence for every
condition.

model, params = jit_jax.load('runs/uncond')
images = jit_jax.sample(model, params, key=0, num=16)
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `import jit_jax` is quick, and starts nothing
    import jax
    import numpy as np
    from ml_collections import ConfigDict
    from PIL import Image

    from jit_jax.trained import Model, Pictures

__version__ = '0.1.0'
__all__ = ['load', 'sample', 'to_pil', 'train']


def __dir__() -> list[str]:
    """What a prompt completes: the verbs, not what they import."""
    return [*__all__, '__version__']


def load(path: str, ema: str | None = None) -> tuple[Model, dict]:
    """Reads the weights of a trained run.

    Args:
      path: a run folder, a step folder, an export or a converted checkpoint.
      ema: which weights: 'ema1', 'ema2' … are averages, 'params' the live ones; None is 'ema1', or
        the only ones there.

    Returns:
      The model (`net`, `diffusion`, `settings`, `config`, `step`) and its parameters, a tree of
      float32 arrays.

    Raises:
      jit_jax.errors.UserError: one sentence, where there is no such run or it is damaged.
    """
    from jit_jax import trained

    return trained.load(path, ema)


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
    """Draws images number start … start + num − 1 of a key.

    Image i depends on the key, on i and on its own condition alone, in any batching.

    Args:
      model, params: as `load` returns them.
      key: a random key, jax.random.key(0), or its seed alone, 0, as `jit-jax sample --seed=0`.
      cond: float32 [num, Hc, Wc, C] in [−1, 1], condition images of a size that the run learned; or
        pictures of any size, one for all images or one for each: PIL images, paths, arrays uint8
        [H, W, C]. Where the run cuts holes, patches with transparent pixels are missing. Numbers
        far beyond [−1, 1] are refused, and a warning says so where none is below 0.
      cond_valid: bool [num, n], which of their patches count, rows first; all by default.
      cond_grid: int [num, 2], each row's own grid of patches, where a run mixes sizes.
      label: int [num], or one for all: classes from 0; num_classes is the null class.
      label_valid: bool [num], which images have a label, in a run that mixes conditions.
      from_image: pictures, as for cond, from which the condition is made as training makes it.
      from_t: begins from `from_image` under noise at this time, z_t = t·x + (1 − t)·noise, instead
        of from noise at 0; near 1 little of the picture changes. All steps are taken after it.
      kind: which of the run's kinds of condition to make, or which `cond` is, where it has several.
      fit: what becomes of pictures of another size: 'crop' (the centre, as in training), 'resize'
        (squeezed), or 'error'.
      text: a caption for all images or num of them, in a run that learned captions.
      cond_tokens: the same as bytes, int [num, n], or embeddings [num, n, E] of a run's encoder.
      cond_tokens_valid: bool [num, n], which of the tokens count; all by default.
      references: more condition images, as many as the run learned: each float32 [num, Hr, Wr, C]
        of its sizes, or pictures as for cond, which are made smaller as in training.
      references_valid: bool [num, r], which of their patches count, image after image.
      steps, sampler: 'heun', 'euler' or 'multistep', or 'meanflow' of a run that learned it; None
        is the run's own, as below.
      guidance: the scale of classifier-free guidance, 1 for none.
      interval: (low, high) of t in [0, 1], between which guidance is on.
      t_eps: the least 1 − t that the sampler divides by, 0 to below 1. 0 ends on x̂; 0.05, as
        published, stops short of it in steps shorter than that and leaves noise.
      skip_blocks, skip_scale, skip_interval: guidance away from the same network without these
        blocks, from 0, by a scale (1: none) for low < t < high; needs no condition.
      batch_size: how many images at a time, over all devices.
      keep_known: puts the patches that are not missing from the condition image back where they
        were, bit for bit. The model draws them anew otherwise, as it does all of the image. For
        inpaint, outpaint, half, patches and strokes.

    Returns:
      uint8 [num, H, W, C]; `to_pil` makes PIL images of them.

    Raises:
      jit_jax.errors.UserError: one sentence, for what the run has not learned or cannot do, before
      anything is drawn.
    """
    from jit_jax import trained

    condition = {'cond': cond, 'cond_valid': cond_valid, 'cond_grid': cond_grid}
    condition |= {'references': references, 'references_valid': references_valid}
    classes = {'label': label, 'label_valid': label_valid}
    tokens = {'cond_tokens': cond_tokens, 'cond_tokens_valid': cond_tokens_valid, 'text': text}
    pictures = {'from_image': from_image, 'from_t': from_t, 'kind': kind, 'fit': fit}
    how = {'steps': steps, 'sampler': sampler, 'guidance': guidance, 'interval': interval}
    how |= {'skip_blocks': skip_blocks, 'skip_scale': skip_scale, 'skip_interval': skip_interval}
    how |= {'t_eps': t_eps, 'start': start, 'batch_size': batch_size, 'keep_known': keep_known}
    given = condition | classes | tokens | pictures
    return trained.sample(model, params, key, num, **given, **how)


def to_pil(images: np.ndarray) -> list[Image.Image]:
    """uint8 [N, H, W, C], as `sample` returns them, as N PIL images, RGB or grey.

    Raises jit_jax.errors.UserError for what is no such array.
    """
    import numpy as np
    from PIL import Image

    from jit_jax.errors import UserError, shown

    is_array = hasattr(images, 'dtype') and hasattr(images, 'shape')
    if not is_array or images.dtype != np.uint8 or images.shape[3:] not in ((1,), (3,)):
        got = f'{images.dtype} {list(images.shape)}' if is_array else shown(images)
        raise UserError(
            f'images are uint8 [N, H, W, 1 or 3], as jit_jax.sample returns; got {got}.'
        )
    images = np.asarray(images)
    return [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in images]


def train(
    config: ConfigDict,
    workdir: str,
    *,
    images: Sequence | None = None,
    labels: Sequence[int] | None = None,
    cond: Sequence | None = None,
    captions: Sequence[str | Sequence[str]] | None = None,
    yes: bool = False,
    follow: Callable[[int], None] | None = None,
) -> None:
    """Trains a config in a folder, as `jit-jax train` does: starts, or goes on where the folder
    left off.

    Ctrl-C saves the step, and then raises KeyboardInterrupt.

    Args:
      config: what `get_config` of a config file returns, with any of its values changed.
      workdir: the run folder, made when it is not there.
      images: what to train on instead of config.data: N images, uint8 [N, H, W, C], a list of PIL
        images, or one split of a Hugging Face data set, whose class labels and captions are taken
        too. Every 20th is held out, as of a folder. To go on with the run, give the same ones.
      labels: int [N], the classes of `images` from 0.
      cond: N condition images, as `images`, for config.condition.kind='pairs'.
      captions: for each of `images` a caption or several, for config.condition.kind='text'.
      yes: start even what would take a CPU days.
      follow: called with the step after each line of metrics.

    Raises:
      jit_jax.errors.UserError: one sentence, for a config or a folder that cannot be, before
      anything is written.
    """
    from ml_collections import ConfigDict

    from jit_jax import data, loop
    from jit_jax.diffusion import conditions
    from jit_jax.errors import UserError, shown
    from jit_jax.recipe import arguments, build

    if not isinstance(config, ConfigDict):
        raise UserError(
            'config is what get_config of a config file returns, for example '
            f'jit_jax.configs.uncond.get_config(); got {shown(config)}.'
        )
    arguments.check_path('workdir', workdir)
    if follow is not None and not callable(follow):
        raise UserError(f'follow is a function that is called with a step; got {shown(follow)}.')
    if images is None and any(one is not None for one in (labels, cond, captions)):
        raise UserError('labels, cond and captions belong to images: give those as well.')

    memory = None
    if images is not None:
        if captions is None and 'text' in conditions.kinds(config.condition.kind):
            captions = data.captions_of(images)
        memory = data.in_memory(images, labels, cond, captions=captions)
        config = build.on_memory(config)
    stopped_by = loop.train(build.run(config, memory), workdir, yes=yes, follow=follow)
    if stopped_by == signal.SIGINT.name:
        raise KeyboardInterrupt
