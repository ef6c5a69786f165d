"""What the perceptual loss needs of a config, and its frozen network."""

import jax

from jit_jax.diffusion.perceptual import Perceptual
from jit_jax.errors import UserError
from jit_jax.model import lpips, sharding

CHANNELS = (1, 3)  # of images that can be seen as RGB


def settings(config) -> Perceptual:
    """The numbers of the loss."""
    p = config['perceptual']
    return Perceptual(p['weight'], p['after'], p['side'])


def check(config) -> None:
    """Raises UserError for a perceptual loss that cannot be computed."""
    p, m = config['perceptual'], config['model']
    if not p['weight']:
        return
    if not p['lpips']:
        raise UserError(
            'config.perceptual.weight needs the weights of LPIPS; name their file with '
            'config.perceptual.lpips (docs/recipes.md says how it is made).'
        )
    if max(p['side'], m['image_size']) < lpips.SMALLEST:
        raise UserError(
            f'config.perceptual.side must be at least {lpips.SMALLEST} for images of '
            f'{m["image_size"]} pixels; got {p["side"]}.'
        )
    if m['channels'] not in CHANNELS:
        raise UserError(
            'config.perceptual.weight is for gray and RGB images, and config.model.channels is '
            f'{m["channels"]}; leave it at 0.'
        )


def shapes(config, mesh: jax.sharding.Mesh) -> tuple:
    """What the step takes beside state, batch and key, as shapes: LPIPS' weights, whole on every
    device (10 MB), or nothing.
    """
    if not config['perceptual']['weight']:
        return ()
    place = sharding.replicated(mesh)

    def placed(shape):
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)

    return (jax.tree.map(placed, lpips.shapes()),)


def read(config) -> tuple:
    """The same as arrays of this process. Raises UserError for a file that is not LPIPS'."""
    if not config['perceptual']['weight']:
        return ()
    return (lpips.load_weights(config['perceptual']['lpips']),)
