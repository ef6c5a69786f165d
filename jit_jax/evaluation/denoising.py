"""How well held-out images are denoised: cheap enough for every thousand steps of a run."""

from functools import partial
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np

from jit_jax import data, trained
from jit_jax.diffusion import conditions, objective
from jit_jax.errors import UserError
from jit_jax.model.sharding import to_device, whole_rows, within
from jit_jax.recipe import build
from jit_jax.training.processes import every_process, in_every_process

TIMES = (0.2, 0.5, 0.8)  # of x̂
BUCKETS = 4  # of t, for the validation loss


def batch_sums(params, batch, key, *, model, d, condition) -> dict:
    """What is measured, summed over the rows of a batch whose 'weight' is 1.

    Returns {'weight': [], 'mse': [3], 'psnr': [3], 'v_loss': [BUCKETS]}: MSE (of images in [−1, 1])
    and PSNR of x̂ at each of TIMES, and the v-loss at a random t in each of equal parts of [0, 1].
    """
    # From the host's memory, where a run may keep its averages.
    params = jax.device_put(params, jax.memory.Space.Device)
    condition_key, noise_key, t_key = jax.random.split(key, 3)
    x = conditions.from_uint8(batch['image'])
    conditioning = condition(x, batch, condition_key)
    e = d.noise_scale * jax.random.normal(noise_key, x.shape)
    # Rows first: those that fill a batch for the devices do not change the others' numbers.
    uniform = jax.random.uniform(t_key, (len(x), BUCKETS)).T
    random = (jnp.arange(BUCKETS)[:, None] + uniform) / BUCKETS
    fixed = jnp.broadcast_to(jnp.asarray(TIMES)[:, None], (len(TIMES), len(x)))

    def at(t):
        z = objective.add_noise(x, e, t)
        output = model.apply({'params': params}, z, t, **conditioning)
        x_hat = objective.clean_image(output, z, t, d)
        mse = jnp.mean((jnp.clip(x_hat, -1, 1) - x) ** 2, (1, 2, 3))
        return jnp.stack([mse, 10 * jnp.log10(4 / mse), objective.v_loss(x_hat, x, z, t, d)])

    # [times, 3, B]: rows stay on their devices until they are summed.
    found = jax.lax.map(at, jnp.concatenate([fixed, random]))
    weight = batch['weight']
    # Whatever a row of weight 0 holds, such as an infinite PSNR, it counts for nothing.
    mse, psnr, v_loss = jnp.where(weight > 0, found * weight, 0).sum(-1).T
    n = len(TIMES)
    return {'weight': weight.sum(), 'mse': mse[:n], 'psnr': psnr[:n], 'v_loss': v_loss[n:]}


def means(sums: list[dict]) -> dict[str, float]:
    """`batch_sums` of several batches → means by name, such as psnr_t0.5 and v_loss_t0.25_0.5."""
    total = {name: np.sum([np.float64(part[name]) for part in sums], 0) for name in sums[0]}
    edges = [k / BUCKETS for k in range(BUCKETS + 1)]
    names = {
        'mse': [f'mse_t{t}' for t in TIMES],
        'psnr': [f'psnr_t{t}' for t in TIMES],
        'v_loss': [f'v_loss_t{low}_{high}' for low, high in zip(edges, edges[1:])],
    }
    found = {}
    for kind, members in names.items():
        values = total[kind] / total['weight']
        found |= dict(zip(members, values.tolist(), strict=True))
    return found


class DenoisingScore:
    """`batch_sums` over the first `num` held-out images, `batch` at a time, read once.

    Broken ones among them count for nothing. test: a `data.Source`. Raises UserError where none can
    be read.
    """

    def __init__(self, model: trained.Model, mesh, test, *, num: int, batch: int, seed: int):
        self._key = jax.random.key(seed)
        size = whole_rows(min(batch, num, len(test)), mesh)
        batches = every_process(partial(_first, test, num, size))
        if in_every_process(not any(rows['weight'].any() for rows in batches)):
            raise UserError(
                f'None of the first {num} held-out images can be read; repair them, or leave '
                'denoising out.'
            )
        self._batches = [to_device(rows, mesh) for rows in batches]
        condition = build.condition(model.config)
        run = partial(batch_sums, model=model.net, d=model.diffusion, condition=condition)
        self._run = jax.jit(within(mesh, run))

    def __call__(self, params) -> dict[str, float]:
        """Means by name. params: on the mesh, or in the memory of its hosts."""
        sums = []
        for i, batch in enumerate(self._batches):
            key = jax.random.fold_in(self._key, i)
            sums.append(jax.device_get(self._run(params, batch, key)))
        return means(sums)


def _first(source, num: int, size: int) -> list[dict]:
    """This process's rows of batches of `size`; rows from number `num` on weigh nothing."""
    process, count = jax.process_index(), jax.process_count()
    batches = data.eval_batches(source, batch_size=size, process_index=process, process_count=count)
    found = []
    for i, rows in enumerate(islice(batches, -(-num // size))):
        own = len(rows['weight'])
        index = i * size + process * own + np.arange(own)
        weight = np.where(index < num, rows['weight'], 0).astype(np.float32)
        found.append({**rows, 'weight': weight})
    return found
