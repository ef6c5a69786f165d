"""Data sets of Hugging Face's `datasets`, known by what they have: that package is not imported.

Their other way, a folder of images with a metadata.jsonl, is read by `folders`.
"""

from jit_jax.errors import UserError


class Column:
    """The images of a data set by number, each decoded when it is asked for."""

    def __init__(self, data_set, name: str):
        self._data_set, self._name = data_set, name

    def __len__(self):
        return len(self._data_set)

    def __getitem__(self, index):
        return self._data_set[int(index)][self._name]


def is_data_set(images) -> bool:
    """Whether this is one split of a data set, which has typed columns."""
    return hasattr(images, 'features') and hasattr(images, 'column_names')


def columns_of(data_set) -> tuple[Column, list[int] | None, tuple[str, ...]]:
    """Its images, and its labels with the names of their classes: None and () without.

    Raises UserError for a data set that is read as a stream, and where not one column is of images.
    """
    if not hasattr(data_set, '__len__'):
        raise UserError(
            'images is a data set that is read as a stream, which has no numbered images: load it '
            'without streaming=True.'
        )
    image = _only(data_set, 'Image', 'image')
    if image is None:
        raise UserError(
            'images is a data set without one column of images; its columns are '
            f'{", ".join(data_set.column_names)}: give that of the images, as in '
            "images=data['photo']."
        )
    label = _only(data_set, 'ClassLabel', 'label')
    if label is None:
        return Column(data_set, image), None, ()
    plain = data_set.select_columns(label).with_format(None)
    return Column(data_set, image), plain[:][label], tuple(data_set.features[label].names)


def captions_of(data_set) -> list | None:
    """Its column called text, caption or captions: one of each image, or several; None without, and
    where this is no data set.
    """
    if not is_data_set(data_set):
        return None
    for name in ('text', 'caption', 'captions'):
        if name in data_set.column_names:
            return data_set.select_columns(name).with_format(None)[:][name]
    return None


def _only(data_set, kind: str, name: str) -> str | None:
    """The column of a kind: the one called `name`, else the only one; None."""
    features = data_set.features or {}
    found = [key for key, feature in features.items() if type(feature).__name__ == kind]
    if name in found:
        return name
    return found[0] if len(found) == 1 else None
