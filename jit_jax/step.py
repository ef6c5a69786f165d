"""One training step: a batch of uint8 images → loss → a new state. Pure, and everything in one program."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jit_jax import conditions, diffusion
from jit_jax.diffusion import Diffusion
from jit_jax.model import JiT
from jit_jax.state import TrainState, apply_gradients


def batch_loss(params, batch, key, *, model: JiT, d: Diffusion, condition: Callable, drop: float):
    """Mean v-loss over the batch: noise it, tell the model the condition, compare velocities.

    batch: {'image': uint8 [B, H, W, C], 'label': int32 [B], …}. condition(x, batch, key) → what the model is told
    (`conditions.py`), lost by each row with probability `drop`.
    """
    t_key, noise_key, condition_key, drop_key, dropout_key = jax.random.split(key, 5)
    x = conditions.from_uint8(batch['image'])
    t = diffusion.sample_t(t_key, len(x), d)
    z = diffusion.add_noise(x, d.noise_scale * jax.random.normal(noise_key, x.shape), t)
    told = condition(x, batch, condition_key)
    if told and drop:
        told = conditions.drop(told, drop_key, drop, p=model.patch, null_class=model.num_classes)
    x_hat = model.apply({'params': params}, z, t, **told, train=True, rngs={'dropout': dropout_key})
    return jnp.mean(diffusion.v_loss(x_hat, x, z, t, d))


def train_step(state: TrainState, batch, key, *, loss, optimizer, rate: optax.Schedule, ema, ema_warmup, log_every):
    """state, batch, the run's key → (state, metrics). Randomness is `fold_in(key, step)`: the same on any mesh."""
    key = jax.random.fold_in(key, state.step)
    value, grads = jax.value_and_grad(loss)(state.params, batch, key)
    metrics = {'learning_rate': rate(state.step), 'grad_norm': optax.global_norm(grads)}
    state = apply_gradients(state, grads, value, optimizer, ema, ema_warmup, log_every)
    return state, {'loss': state.loss_mean, **metrics}
