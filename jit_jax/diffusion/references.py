"""Several condition images a row: the first is `cond`, the others are `references`.

`references` is a tuple of images [B, Hr, Wr, C] of any grids, and `references_valid` bool [B, r]
says which of their patches are live, image after image.
"""

import math

import jax
import jax.numpy as jnp

from jit_jax.model.sequence import condition_grid, patch_size


def together(made: list[dict], *, factor: int, side: int) -> dict:
    """What several conditions give a row at once, as one conditioning.

    References, and of several images all, are made `factor` times smaller, antialiased, where they
    are as large as the target (side pixels) and have no holes: so they fit in the slots beside each
    other and beside other tokens.
    """
    merged = {}
    for one in made:
        merged |= {name: rows for name, rows in one.items() if not _is_of_images(name)}
    images = []  # (image, its flags or None, whether it may be `cond`)
    for one in made:
        if 'cond' in one:
            images.append((one['cond'], one.get('cond_valid'), True))
        images += [(image, None, False) for image in one.get('references', ())]
    for i, (image, live, may) in enumerate(images):
        if len(images) > 1 or not may:
            images[i] = (_smaller(image, live, factor, side), live, may)
    if images and images[0][2]:
        merged |= _named('cond', *images.pop(0)[:2])
    return merged | _references(images, side)


def _is_of_images(name: str) -> bool:
    return name in ('cond', 'cond_valid', 'references')


def _smaller(image, live, factor: int, side: int):
    B, height, width, C = image.shape
    if live is not None or (height, width) != (side, side):
        return image
    return jax.image.resize(image, (B, side // factor, side // factor, C), 'cubic', antialias=True)


def _named(name: str, image, live) -> dict:
    return {name: image} if live is None else {name: image, f'{name}_valid': live}


def _references(images: list[tuple], side: int) -> dict:
    """Images and their flags as `references` and, where one has flags, `references_valid`."""
    if not images:
        return {}
    found = {'references': tuple(image for image, _, _ in images)}
    if any(live is not None for _, live, _ in images):
        found['references_valid'] = jnp.concatenate(
            [all_live(image, side) if live is None else live for image, live, _ in images], 1
        )
    return found


def all_live(image, side: int) -> jax.Array:
    """bool [B, n]: every patch of a condition image of a target of `side` pixels."""
    patches = math.prod(condition_grid(image.shape, patch_size(side)))
    return jnp.ones((len(image), patches), bool)


def flags(conditioning: dict, side: int) -> jax.Array:
    """Which patches of the references are live: bool [B, r]."""
    if 'references_valid' in conditioning:
        return conditioning['references_valid']
    return jnp.concatenate([all_live(image, side) for image in conditioning['references']], 1)


def either(made: list[dict], choice, side: int) -> dict:
    """Row by row the references of the option that `choice` [B] names; all have the same sizes."""
    having = [i for i, one in enumerate(made) if 'references' in one]
    live, images = [], []
    for one in made:
        like = one if 'references' in one else made[having[0]]
        images.append(like['references'])
        flag = flags(like, side)
        live.append(flag if 'references' in one else jnp.zeros_like(flag))
    rows = jnp.arange(len(choice))
    chosen = tuple(jnp.stack(each)[choice, rows] for each in zip(*images, strict=True))
    return {'references': chosen, 'references_valid': jnp.stack(live)[choice, rows]}
