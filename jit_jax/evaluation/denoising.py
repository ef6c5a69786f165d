"""How well held-out images are denoised, at fixed times."""

import jax
import jax.numpy as jnp
import numpy as np

from jit_jax.diffusion import conditions, objective

TIMES = (0.2, 0.5, 0.8)  # of x̂ in the denoising evaluation
BUCKETS = 4  # of t, for the validation loss


def denoising(params, batch, key, *, model, d, condition) -> dict:
    """How well held-out images are denoised, summed over the rows of a batch whose 'weight' is 1.

    Returns {'weight': [], 'mse': [3], 'psnr': [3], 'v_loss': [BUCKETS]}: MSE (of images in [−1, 1]) and PSNR of x̂ at
    each of TIMES, and the v-loss at a random t in each of equal parts of [0, 1].
    """
    params = jax.device_put(
        params, jax.memory.Space.Device
    )  # from the host, where it keeps the averages
    condition_key, noise_key, t_key = jax.random.split(key, 3)
    x = conditions.from_uint8(batch['image'])
    conditioning = condition(x, batch, condition_key)
    e = d.noise_scale * jax.random.normal(noise_key, x.shape)
    random = (jnp.arange(BUCKETS)[:, None] + jax.random.uniform(t_key, (BUCKETS, len(x)))) / BUCKETS
    fixed = jnp.broadcast_to(jnp.asarray(TIMES)[:, None], (len(TIMES), len(x)))

    def at(t):
        z = objective.add_noise(x, e, t)
        x_hat = model.apply({'params': params}, z, t, **conditioning)
        mse = jnp.mean((jnp.clip(x_hat, -1, 1) - x) ** 2, (1, 2, 3))
        return jnp.stack([mse, 10 * jnp.log10(4 / mse), objective.v_loss(x_hat, x, z, t, d)])

    found = jax.lax.map(
        at, jnp.concatenate([fixed, random])
    )  # [times, 3, B]: rows stay where they are until the end
    mse, psnr, v_loss = (found * batch['weight']).sum(-1).T
    n = len(TIMES)
    return {'weight': batch['weight'].sum(), 'mse': mse[:n], 'psnr': psnr[:n], 'v_loss': v_loss[n:]}


def denoised(sums: list[dict]) -> dict:
    """What `denoising` returned for several batches → their means by name, such as psnr_t0.5 and v_loss_t0.25_0.5."""
    total = jax.tree.map(
        lambda *parts: np.sum([np.asarray(part, np.float64) for part in parts], 0), *sums
    )
    edges = [k / BUCKETS for k in range(BUCKETS + 1)]
    names = {name: [f'{name}_t{t}' for t in TIMES] for name in ('mse', 'psnr')}
    names['v_loss'] = [f'v_loss_t{low}_{high}' for low, high in zip(edges, edges[1:])]
    return {
        name: value
        for kind in names
        for name, value in zip(names[kind], total[kind] / total['weight'], strict=True)
    }
