"""One training step: a batch of uint8 images → loss → a new state. Pure, and everything in one program."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jit_jax.diffusion import conditions, objective
from jit_jax.diffusion.objective import Diffusion
from jit_jax.model.jit import JiT
from jit_jax.training.state import TrainState, apply_gradients


def draw(batch, key, *, model: JiT, d: Diffusion, condition: Callable, drop: float) -> dict:
    """All that is random about a batch, and what the model will see of it.

    batch: {'image': uint8 [B, H, W, C], 'label': int32 [B], …}. condition(x, batch, key) → what the model is told
    (`conditions.py`), lost by each row with probability `drop`. Returns {'x', 'z', 't', 'told'}, rows first.
    """
    t_key, noise_key, condition_key, drop_key = jax.random.split(key, 4)
    x = conditions.from_uint8(batch['image'])
    t = objective.sample_t(t_key, len(x), d)
    z = objective.add_noise(x, d.noise_scale * jax.random.normal(noise_key, x.shape), t)
    conditioning = condition(x, batch, condition_key)
    if conditioning and drop:
        conditioning = conditions.drop(
            conditioning, drop_key, drop, p=model.patch, null_class=model.num_classes
        )
    return {'x': x, 'z': z, 't': t, 'conditioning': conditioning}


def batch_loss(params, drawn: dict, dropout_key, *, model: JiT, d: Diffusion) -> jax.Array:
    """Mean v-loss over what `draw` returned."""
    x, z, t = drawn['x'], drawn['z'], drawn['t']
    x_hat = model.apply(
        {'params': params}, z, t, **drawn['conditioning'], train=True, rngs={'dropout': dropout_key}
    )
    return jnp.mean(objective.v_loss(x_hat, x, z, t, d))


def loss_and_gradients(
    params, drawn: dict, key, loss: Callable, accumulate: int
) -> tuple[jax.Array, dict]:
    """The mean loss of a batch and its gradient, in `accumulate` parts one after the other: equal to the whole at once."""
    value_and_grad = jax.value_and_grad(loss)
    if accumulate == 1:
        return value_and_grad(params, drawn, key)
    # Row b goes to part b mod A, so that every device keeps its own rows.
    part = lambda rows: jnp.moveaxis(rows.reshape(-1, accumulate, *rows.shape[1:]), 1, 0)

    def add(total, one):
        return jax.tree.map(
            lambda a, b: a + b / accumulate, total, value_and_grad(params, *one)
        ), None

    zero = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
    return jax.lax.scan(add, zero, (jax.tree.map(part, drawn), jax.random.split(key, accumulate)))[
        0
    ]


def train_step(
    state: TrainState,
    batch,
    key,
    *,
    draw,
    loss,
    accumulate,
    optimizer,
    rate: optax.Schedule,
    average,
    log_every,
) -> tuple[TrainState, dict]:
    """state, batch, the run's key → (state, metrics). Randomness is `fold_in(key, step)`: the same on any mesh."""
    draw_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
    value, grads = loss_and_gradients(
        state.params, draw(batch, draw_key), dropout_key, loss, accumulate
    )
    metrics = {'learning_rate': rate(state.step), 'grad_norm': optax.global_norm(grads)}
    state = apply_gradients(state, grads, value, optimizer, average, log_every)
    return state, {'loss': state.loss_mean, **metrics}
