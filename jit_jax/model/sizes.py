"""Sizes of the network by name, and how many slots and operations a size takes."""

from jit_jax.errors import UserError
from jit_jax.model.sequence import COND, GRID, SLOTS

# XS is for 32×32 images on a laptop, and `digits` what it was before: with one head. S is for 64×64
# on one GPU. The others are the published ones.
VARIANTS = {
    'XS': {
        'depth': 8,
        'width': 64,
        'heads': 2,
        'bottleneck': 32,
        'class_tokens': 8,
        'class_start': 2,
        'dropout': 0.0,
    },
    'digits': {
        'depth': 8,
        'width': 64,
        'heads': 1,
        'bottleneck': 32,
        'class_tokens': 8,
        'class_start': 2,
        'dropout': 0.0,
    },
    'S': {
        'depth': 12,
        'width': 384,
        'heads': 6,
        'bottleneck': 64,
        'class_tokens': 32,
        'class_start': 4,
        'dropout': 0.0,
    },
    'B': {
        'depth': 12,
        'width': 768,
        'heads': 12,
        'bottleneck': 128,
        'class_tokens': 32,
        'class_start': 4,
        'dropout': 0.0,
    },
    'L': {
        'depth': 24,
        'width': 1024,
        'heads': 16,
        'bottleneck': 128,
        'class_tokens': 32,
        'class_start': 8,
        'dropout': 0.0,
    },
    'H': {
        'depth': 32,
        'width': 1280,
        'heads': 16,
        'bottleneck': 256,
        'class_tokens': 32,
        'class_start': 10,
        'dropout': 0.2,
    },
    'G': {
        'depth': 40,
        'width': 1664,
        'heads': 16,
        'bottleneck': 256,
        'class_tokens': 32,
        'class_start': 10,
        'dropout': 0.2,
    },
}


def size(variant: str) -> dict:
    """The sizes a variant stands for: a row of VARIANTS by name, or one spelled out in full.

    `size('depth=2,width=32,heads=2,bottleneck=8,class_tokens=4,class_start=1,dropout=0.0')` is a
    size of its own. Raises UserError for anything else.
    """
    if variant in VARIANTS:
        return dict(VARIANTS[variant])
    like = VARIANTS['digits']
    try:
        sizes = {}
        for pair in variant.split(','):
            name, value = pair.split('=')
            sizes[name] = type(like[name])(value)
    except (ValueError, KeyError):
        sizes = {}
    if sizes.keys() != like.keys():
        raise UserError(
            f'model.variant must be one of {", ".join(VARIANTS)} or spell out a size like '
            f'{spelled(like)}; got {variant!r}.'
        )
    _check(sizes, variant)
    return sizes


def spelled(sizes: dict) -> str:
    """Sizes as a variant of their own."""
    return ','.join(f'{name}={value}' for name, value in sizes.items())


def _check(sizes: dict, variant: str):
    """Raises UserError for numbers that no network can have."""
    counts = ('depth', 'width', 'heads', 'bottleneck')
    too_small = any(sizes[name] < 1 for name in counts)
    bad_tokens = not 0 <= sizes['class_tokens'] <= COND.stop
    bad_dropout = not 0 <= sizes['dropout'] < 1
    if too_small or bad_tokens or bad_dropout or sizes['class_start'] < 0:
        raise UserError(f'model.variant has a number that no size can have; got {variant!r}.')
    if sizes['class_start'] >= sizes['depth']:
        raise UserError(
            'Class tokens must enter before the last block ends: class_start below depth; '
            f'got {variant!r}.'
        )
    if sizes['width'] % (4 * sizes['heads']):
        raise UserError(
            f'The width of a head must be a multiple of 4, for its rotation; got {variant!r}.'
        )


def hidden_width(width: int) -> int:
    """The SwiGLU's hidden width, rounded as the official code does: int(int(4·D)·2/3)."""
    return int(int(4 * width) * 2 / 3)


def slot_counts(model, cond_slots: int, *, labelled: bool) -> tuple[int, int]:
    """Slots of a program before and after class tokens enter.

    model: a `JiT`. cond_slots: condition patches and tokens of the program. labelled: class tokens
    enter.
    """
    if model.dead_slots == 'keep' or model.null == 'token':  # the token may fill all of them
        return SLOTS, SLOTS
    before = GRID * GRID + cond_slots
    return before, min(before + (model.class_tokens if labelled else 0), SLOTS)


def forward_multiply_adds(
    model, patches: int = 0, tokens: int = 0, *, labelled: bool = True
) -> int:
    """Multiply-adds of one image's forward pass, in products: what the paper's table calls Gflops.

    patches, tokens: of the condition, in the program. labelled: class tokens enter.
    """
    D, N = model.width, GRID * GRID
    F = hidden_width(D)
    P = model.patch**2 * model.channels

    def block(S: int) -> int:
        projections = S * (4 * D * D + 3 * D * F)  # qkv, proj and SwiGLU
        logits_and_their_use = 2 * S * S * D
        return projections + logits_and_their_use

    before, after = slot_counts(model, patches + tokens, labelled=labelled)
    blocks = model.class_start * block(before) + (model.depth - model.class_start) * block(after)
    embedding = (N + patches) * model.bottleneck * (P + D) + tokens * model.token_width * D
    output = N * D * P
    conditioning = (256 + D) * D + (6 * model.depth + 2) * D * D
    return blocks + embedding + output + conditioning
