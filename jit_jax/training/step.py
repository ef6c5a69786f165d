"""One training step: a batch of uint8 images → loss → a new state, in one pure program."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from jit_jax.diffusion import conditions, meanflow, objective, perceptual
from jit_jax.diffusion.objective import Diffusion
from jit_jax.diffusion.perceptual import Perceptual
from jit_jax.model import attention
from jit_jax.model.jit import JiT
from jit_jax.training import ema
from jit_jax.training.ema import EMA
from jit_jax.training.state import TrainState


@dataclass(frozen=True)
class Recipe:
    """All that decides a training step beside the state, the batch and the key."""

    model: JiT
    diffusion: Diffusion
    condition: Callable  # (x, batch, key) → keywords of `JiT.__call__`, as `conditions.make` gives
    drop: float  # the probability of a row to lose its condition
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule  # of a step; the optimizer holds it too, here it is for the log
    ema: EMA
    accumulate: int  # parts of a batch, one after the other
    log_every: int  # steps that the logged mean of the loss is over
    perceptual: Perceptual = Perceptual()  # what is added to the loss; by default nothing


def train_step(
    state: TrainState, batch: dict, key, recipe: Recipe, frozen: dict | None = None
) -> tuple[TrainState, dict]:
    """One step of a run.

    batch: {'image': uint8 [B, H, W, C], 'label': int32 [B], …}. key: the run's; a step's own
    randomness is fold_in(key, step), the same on any mesh and after any restart. frozen: the
    weights of LPIPS, where recipe.perceptual has a weight. Returns the next state, and float32
    scalars to log: the mean loss since the last line of metrics, the learning rate, the gradient's
    norm, and what `batch_loss` has to log.
    """
    draw_key, dropout_key = keys_at(key, state.step)
    drawn = draw(batch, draw_key, recipe)
    (loss, logged), gradients = loss_and_gradients(state.params, drawn, dropout_key, recipe, frozen)
    rate, norm = recipe.learning_rate(state.step), optax.tree.norm(gradients)
    state = apply_gradients(state, gradients, loss, recipe)
    return state, {'loss': state.loss_mean, 'learning_rate': rate, 'grad_norm': norm} | logged


def keys_at(key, step) -> tuple[jax.Array, jax.Array]:
    """Of a run's key those of one step, for `draw` and for dropout."""
    draw_key, dropout_key = jax.random.split(jax.random.fold_in(key, step))
    return draw_key, dropout_key


def keys_of_draw(key) -> jax.Array:
    """Of the key that `draw` gets those for t, the noise, the condition, and its loss."""
    return jax.random.split(key, 4)


def draw(batch: dict, key, recipe: Recipe) -> dict:
    """All that is random about a batch, and what the model is conditioned on.

    Returns {'x': clean images [B, H, W, C] in [−1, 1], 'z': noisy ones, 't': times [B],
    'conditioning': keywords of `JiT.__call__`}, all with rows first. Every row loses its condition
    with probability `recipe.drop`. With MeanFlow, `end` is among the keywords, as
    `meanflow.draw` has it.
    """
    t_key, noise_key, condition_key, drop_key = keys_of_draw(key)
    d, model = recipe.diffusion, recipe.model
    x = conditions.from_uint8(batch['image'])
    if d.objective == 'meanflow':
        t, told = meanflow.draw(t_key, len(x), d)
    else:
        t, told = objective.sample_t(t_key, len(x), d), {}
    z = objective.add_noise(x, d.noise_scale * jax.random.normal(noise_key, x.shape), t)
    conditioning = recipe.condition(x, batch, condition_key)
    if conditioning and recipe.drop:
        conditioning = conditions.drop(
            conditioning, drop_key, recipe.drop, p=model.patch, null_class=model.num_classes
        )
    return {'x': x, 'z': z, 't': t, 'conditioning': conditioning | told}


def batch_loss(
    params: dict, drawn: dict, dropout_key, recipe: Recipe, frozen: dict | None = None
) -> tuple[jax.Array, dict]:
    """The mean loss over what `draw` returned, a float32 scalar, and its parts that are logged:
    'perceptual', the mean of what `perceptual.distance` gives, where recipe.perceptual has a
    weight. drawn may have a 'truth' beside x, which the network's x̂ is regressed on in its place.
    frozen: as `train_step` takes it.
    """
    x, z, t = drawn['truth' if 'truth' in drawn else 'x'], drawn['z'], drawn['t']
    rngs = {'dropout': dropout_key}
    output = recipe.model.apply(
        {'params': params}, z, t, **drawn['conditioning'], train=True, rngs=rngs
    )
    rows = objective.loss(output, x, z, t, recipe.diffusion)
    if recipe.diffusion.adaptive:
        rows = meanflow.weighted(rows, math.prod(x.shape[1:]), recipe.diffusion)
    if not recipe.perceptual.weight:
        return jnp.mean(rows), {}
    added = perceptual_rows(output, drawn, recipe, frozen)
    part = jnp.mean(added)
    if recipe.diffusion.adaptive:  # of each row by its own size, as published
        added = meanflow.weighted(added, 1, recipe.diffusion)
    return jnp.mean(rows + recipe.perceptual.weight * added), {'perceptual': part}


def perceptual_rows(output, drawn: dict, recipe: Recipe, frozen: dict) -> jax.Array:
    """LPIPS of what the network's output says x is, float32 [B]: with MeanFlow, too, against the
    clean image itself.
    """
    x, z, t = drawn['x'], drawn['z'], drawn['t']
    x_hat = objective.clean_image(output.astype(jnp.float32), z, t, recipe.diffusion)
    return perceptual.distance(frozen, x_hat, x, t, recipe.perceptual)


def mean_truth(params: dict, drawn: dict, recipe: Recipe) -> jax.Array:
    """What MeanFlow regresses x̂ on in place of x, by the network itself, without dropout.

    Its derivatives along the flow are `jax.jvp`'s, and those passes take the backend of attention
    that has them, whatever config.compute.attention is. All others keep theirs.
    """
    d = recipe.diffusion

    def by(model):
        def network(z, t, **told):
            return objective.clean_image(model.apply({'params': params}, z, t, **told), z, t, d)

        return network

    model = recipe.model.clone(remat='none')
    networks = by(model), by(model.clone(attention=attention.FORWARD_MODE))
    rows = {name: drawn[name] for name in ('x', 'z', 't')} | {'told': drawn['conditioning']}
    parts = recipe.accumulate
    together = meanflow.group(len(rows['x']) * parts, d.mean_every) // parts
    return meanflow.truth(*networks, rows, d, together, model.num_classes)


def loss_and_gradients(
    params: dict, drawn: dict, dropout_key, recipe: Recipe, frozen: dict | None = None
) -> tuple[tuple[jax.Array, dict], dict]:
    """What `batch_loss` gives for a batch and the gradient of the loss, all float32.

    With `recipe.accumulate` parts the batch goes through one part after the other, and the parts'
    float32 means are added up: equal to the whole at once, in less memory.
    """
    parts = recipe.accumulate

    def value_and_grad(params, drawn, dropout_key, recipe, frozen):
        if recipe.diffusion.objective == 'meanflow':
            drawn = drawn | {'truth': mean_truth(params, drawn, recipe)}
        found = jax.value_and_grad(batch_loss, has_aux=True)
        return found(params, drawn, dropout_key, recipe, frozen)

    if parts == 1:
        return value_and_grad(params, drawn, dropout_key, recipe, frozen)

    def part_first(rows):  # row b goes to part b mod parts, so that every device keeps its own rows
        return jnp.moveaxis(rows.reshape(-1, parts, *rows.shape[1:]), 1, 0)

    def add_part(total, part):
        drawn, key = part
        one = value_and_grad(params, drawn, key, recipe, frozen)
        return jax.tree.map(lambda sum_, new: sum_ + new / parts, total, one), None

    logged = ('perceptual',) if recipe.perceptual.weight else ()
    losses = (jnp.zeros(()), dict.fromkeys(logged, jnp.zeros(())))
    zero = jax.tree.map(jnp.zeros_like, (losses, params))
    keys = jax.random.split(dropout_key, parts)
    total, _ = jax.lax.scan(add_part, zero, (jax.tree.map(part_first, drawn), keys))
    return total


def apply_gradients(state: TrainState, gradients: dict, loss, recipe: Recipe) -> TrainState:
    """One step of the optimizer, and then one of every average."""
    updates, opt = recipe.optimizer.update(gradients, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(
        step=state.step + 1,
        params=params,
        ema=ema.update(state.ema, params, state.step, recipe.ema),
        opt=opt,
        loss_mean=running_mean(state.loss_mean, loss, state.step % recipe.log_every),
    )


def running_mean(mean, new, count) -> jax.Array:
    """The mean of `count` numbers, `mean`, joined by one more; at count 0 the new number alone."""
    return jnp.where(count == 0, new, mean + (new - mean) / (count + 1))
