"""Pictures of any size at the size that a model takes."""

from PIL import Image, ImageOps

from jit_jax.data.preprocess import center_crop, check_shape

FITS = ('crop', 'resize', 'error')


def fitted(
    image: Image.Image, width: int, height: int, how: str, *, nearest: bool = False
) -> Image.Image:
    """An image at width × height pixels; one that has that size as it is.

    how: 'crop' takes the centre in that shape, as training does, and loses what lies beside it;
    'resize' squeezes all of it. nearest: no pixel is mixed of others.

    Raises ValueError for a picture of which that shows nothing.
    """
    if image.size == (width, height):
        return image
    method = Image.Resampling.NEAREST if nearest else Image.Resampling.BICUBIC
    if how == 'resize':
        return image.resize((width, height), method)
    check_shape(image, max(width, height))
    if width == height:
        return center_crop(image, width, nearest=nearest)
    return ImageOps.fit(image, (width, height), method)
