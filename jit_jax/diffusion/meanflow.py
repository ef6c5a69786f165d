"""MeanFlow on x-prediction: the average velocity between two times, for samples in a few passes.

Sources: MeanFlow (arXiv 2505.13447), improved MeanFlow (2512.02012), pixel MeanFlow (2601.22158).
They count time from the image to the noise; here it runs from the noise, t = 0, to the image,
t = 1, and a step goes from t to a later `end` r ≥ t.

The average velocity over a step is u(z, t, r) = 1/(r − t) · ∫ v(z_τ, τ) dτ from t to r, along the
flow dz/dτ = v. So (r − t)·u is where the flow ends less where it begins, and the derivative in t
along the flow, r fixed, is MeanFlow's identity in this direction of time:

    −u + (r − t)·du/dt = −v,   u = v + (r − t)·du/dt,   du/dt = v·∂u/∂z + ∂u/∂t.

Pixel MeanFlow lets the network say x̂(z, t, r) = z + (1 − t)·u. At r = t that is the x̂ of a flow,
and at r = 1 the image where the flow ends. With u in terms of x̂, and ρ = (r − t)/(1 − t) in [0, 1],
the identity is free of divisions by 1 − t:

    x̂(z, t, r) = x̂(z, t, t) + [(r − t)·dx̂/dt] + ρ·(x̂(z, t, r) − x̂(z, t, t)),

where the bracket is one derivative of x̂(·, ·, r), in the direction (ρ·(x̂(z, t, t) − z), r − t).

Improved MeanFlow regresses u − (r − t)·stop_gradient(du/dt) on x − e, and takes the direction from
the network's own v. That is the regression of x̂(z, t, r) on the right side above, held fixed, with
the image x in place of x̂(z, t, t): `truth`. Under a loss of v it is the published one, clamp
included, and at r = t it is the loss of a flow.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jit_jax.diffusion import conditions, objective
from jit_jax.diffusion.objective import Diffusion, expand

# The most rows of a group: with more, a batch can go through in more parts; with fewer, each device
# of more has whole groups, and exchanges no rows.
GROUP = 32
SMOOTH = 0.01  # keeps the weight of a row that is right from growing without bounds
Network = Callable[..., jax.Array]  # (z, t, **keywords of `JiT.__call__`) → x̂ float32


def group(batch: int, every: int) -> int:
    """How many neighbouring rows of a batch have a step, or none, together: a power of two.

    They are so many that a batch may go through in 2, 4 … parts, row b in part b mod parts, and one
    of `every` rows of each part has a step, the same rows whatever the parts.
    """
    return math.gcd(batch // every, GROUP)


def draw(key, batch: int, d: Diffusion) -> tuple[jax.Array, dict]:
    """Times t float32 [B], and what a network is told beside them: `end`, and `guidance` where d
    has a range of it, float32 [B].

    The last of every d.mean_every `group`s has a step from t to end: two times in order, drawn as
    `sample_t` does, or uniformly in a share d.uniform of rows. The others are of a flow: end = t.
    Guidance is drawn uniformly between the logarithms of d.guidance.
    """
    keys = jax.random.split(key, 4)
    uniform = jax.random.uniform(keys[3], (batch,)) < d.uniform
    first, second = _times(keys[0], uniform, d), _times(keys[1], uniform, d)
    place = jnp.arange(batch) // group(batch, d.mean_every) % d.mean_every
    mean = place == d.mean_every - 1
    t = jnp.where(mean, jnp.minimum(first, second), first)
    told = {'end': jnp.where(mean, jnp.maximum(first, second), first)}
    low, high = d.guidance
    if low != high:
        share = jax.random.uniform(keys[2], (batch,))
        told['guidance'] = low * (high / low) ** share
    return t, told


def _times(key, uniform, d: Diffusion) -> jax.Array:
    """float32 [B]; uniform: bool [B]."""
    keys = jax.random.split(key)
    anywhere = jax.random.uniform(keys[0], uniform.shape)
    return jnp.where(uniform, anywhere, objective.sample_t(keys[1], len(uniform), d))


def truth(
    network: Network,
    derived: Network,
    rows: dict,
    d: Diffusion,
    together: int,
    null_class: int = 0,
) -> jax.Array:
    """What x̂(z, t, end) is to be regressed on in place of x, float32 [B, H, W, C].

    No gradient is to go through it. derived: the same function as network, by operations that have
    derivatives in forward mode. rows: x, z, t, and told, all that the network is told beside z and
    t, with what `draw` gives among it. together: the rows of a `group`, in this part of a batch.
    Rows where end = t keep x, or what guidance makes of it.
    """
    rows, x = dict(rows), rows['x']
    if 'guidance' in rows['told']:
        rows['here'] = at_once(network, rows)
        x = rows['x'] = guided(network, rows, null_class)

    def groups(rows):
        return rows.reshape(-1, d.mean_every, together, *rows.shape[1:])

    def last(rows):
        return groups(rows)[:, -1].reshape(-1, *rows.shape[1:])

    stepping = mean(network, derived, jax.tree.map(last, rows))
    stepping = stepping.reshape(-1, together, *x.shape[1:])
    return groups(x).at[:, -1].set(stepping).reshape(x.shape)


def at_once(network: Network, rows: dict) -> jax.Array:
    """x̂(z, t, t), of the velocity at t."""
    return network(rows['z'], rows['t'], **rows['told'] | {'end': rows['t']})


def mean(network: Network, derived: Network, rows: dict) -> jax.Array:
    """The right side of the identity, with x in place of x̂(z, t, t).

    rows: x, z, t and told as `truth` takes them, and `here` where x̂(z, t, t) is known.
    """
    x, z, t, told = (rows[name] for name in ('x', 'z', 't', 'told'))
    here = rows['here'] if 'here' in rows else at_once(network, rows)
    step = told['end'] - t
    share = expand(step / jnp.maximum(1 - t, jnp.finfo(jnp.float32).tiny), z)

    def ahead(z, t):
        return derived(z, t, **told)

    x_hat, change = jax.jvp(ahead, (z, t), (share * (here - z), step))
    return x + change + share * (x_hat - here)


def guided(network: Network, rows: dict, null_class: int) -> jax.Array:
    """x as guidance w wants it: x + (1 − 1/w)·(x̂ − x̂ of the same rows without their condition).

    As improved MeanFlow has it, in x: a network x̂ that is told w then comes to be x_null +
    w·(x_cond − x_null), as if two networks were mixed. Rows without a condition keep x.
    """
    x, z, t, told = (rows[name] for name in ('x', 'z', 't', 'told'))
    conditioning = {name: told[name] for name in told if name not in ('end', 'guidance')}
    null = conditions.null(conditioning, null_class)
    without = network(z, t, **null, end=t, guidance=told['guidance'])
    return x + expand(1 - 1 / told['guidance'], x) * (rows['here'] - without)


def weighted(loss, pixels: int, d: Diffusion) -> jax.Array:
    """The loss of rows [B], whose gradients weigh 1/(its sum over `pixels` + 0.01)^d.adaptive.

    That is MeanFlow's weight, with the constant of the improved one. It is no part of the value,
    which would be close to 1 whatever the network says.
    """
    weight = (jax.lax.stop_gradient(loss) * pixels + SMOOTH) ** -d.adaptive
    return weight * loss + jax.lax.stop_gradient((1 - weight) * loss)


def passes(d: Diffusion) -> float:
    """What the targets of one image cost in a step, in forward passes: `mean`, whose derivative is
    a pass beside that of its value, and two more with guidance.
    """
    if d.objective == 'flow':
        return 0
    low, high = d.guidance
    return 2 + 2 / d.mean_every if low != high else 3 / d.mean_every
