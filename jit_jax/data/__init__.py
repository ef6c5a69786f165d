"""Images in: sources with random access, and batches that are a pure function of the step number.

Hosts ship uint8 numpy arrays; nothing here touches a device.
"""

from jit_jax.data.arrays import InMemory, from_arrays, in_memory
from jit_jax.data.captions import (
    VOCABULARY,
    decode_caption,
    encode_caption,
    padded,
    to_tokens,
)
from jit_jax.data.embeddings import Embeddings, read_encoder
from jit_jax.data.folders import count_classes
from jit_jax.data.hugging_face import captions_of
from jit_jax.data.listing import HOLDOUTS
from jit_jax.data.pairs import condition_names
from jit_jax.data.palette import PALETTES
from jit_jax.data.pipeline import eval_batches, train_batches
from jit_jax.data.preprocess import center_crop, condition_image, decode
from jit_jax.data.remarks import remarks
from jit_jax.data.sources import KINDS, Source, absolute, open_source

__all__ = [
    'HOLDOUTS',
    'VOCABULARY',
    'KINDS',
    'PALETTES',
    'Embeddings',
    'InMemory',
    'Source',
    'absolute',
    'captions_of',
    'center_crop',
    'condition_image',
    'condition_names',
    'count_classes',
    'decode',
    'decode_caption',
    'encode_caption',
    'eval_batches',
    'from_arrays',
    'in_memory',
    'open_source',
    'padded',
    'read_encoder',
    'remarks',
    'to_tokens',
    'train_batches',
]
