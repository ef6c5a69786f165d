"""What training carries from step to step."""

from collections.abc import Sequence

import flax
import jax
import jax.numpy as jnp
import optax

from jit_jax.training import ema


@flax.struct.dataclass
class TrainState:
    step: jax.Array  # int32 scalar, steps taken
    params: dict
    ema: dict  # {'ema1': tree like params, 'ema2': …}
    opt: optax.OptState
    loss_mean: jax.Array  # float32 scalar, mean loss since the last line of metrics


def init_state(model, key, optimizer, decays: Sequence[float]) -> TrainState:
    """A fresh state.

    Pure, so that jit(init_state, out_shardings=…) makes the same parameters on every mesh.
    """
    images = jnp.zeros((1, model.image_size, model.image_size, model.channels))
    model = model.clone(attention='xla')  # which every platform can run
    params = model.init(key, images, jnp.zeros(1))['params']
    return start_state(params, optimizer, decays)


def start_state(params: dict, optimizer, decays: Sequence[float]) -> TrainState:
    """Step 0 from given parameters: a fresh optimizer, every average equal to the parameters."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=ema.start(params, decays),
        opt=optimizer.init(params),
        loss_mean=jnp.zeros(()),
    )
