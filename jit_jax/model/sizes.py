"""Sizes of the network by name, and how many operations and slots they take."""

from jit_jax.model.sequence import COND, GRID, SLOTS

# Sizes by name. `digits` is for 32×32 images on a laptop; the others are the published ones, and S beside them.
VARIANTS = {
    'digits': dict(
        depth=8, width=64, heads=1, bottleneck=32, class_tokens=8, class_start=2, dropout=0.0
    ),
    'S': dict(
        depth=12, width=384, heads=6, bottleneck=64, class_tokens=32, class_start=4, dropout=0.0
    ),
    'B': dict(
        depth=12, width=768, heads=12, bottleneck=128, class_tokens=32, class_start=4, dropout=0.0
    ),
    'L': dict(
        depth=24, width=1024, heads=16, bottleneck=128, class_tokens=32, class_start=8, dropout=0.0
    ),
    'H': dict(
        depth=32, width=1280, heads=16, bottleneck=256, class_tokens=32, class_start=10, dropout=0.2
    ),
    'G': dict(
        depth=40, width=1664, heads=16, bottleneck=256, class_tokens=32, class_start=10, dropout=0.2
    ),
}


def size(variant: str) -> dict:
    """The sizes a variant stands for: a row of VARIANTS by name, or one spelled out in full.

    `size('depth=2,width=32,heads=2,bottleneck=8,class_tokens=4,class_start=1,dropout=0.0')` is a size of its own.
    Raises ValueError, with one sentence, for anything else.
    """
    if variant in VARIANTS:
        return dict(VARIANTS[variant])
    like = VARIANTS['digits']
    try:
        pairs = dict(pair.split('=') for pair in variant.split(','))
        sizes = {name: type(like[name])(value) for name, value in pairs.items()}
    except (ValueError, KeyError):
        sizes = {}
    if sizes.keys() != like.keys():
        spelled = ','.join(f'{name}={value}' for name, value in like.items())
        raise ValueError(
            f'model.variant must be one of {", ".join(VARIANTS)} or spell out a size like {spelled}; got {variant!r}.'
        )
    at_least = dict(
        depth=1, width=1, heads=1, bottleneck=1, class_tokens=0, class_start=0, dropout=0
    )
    if (
        any(sizes[name] < low for name, low in at_least.items())
        or sizes['dropout'] >= 1
        or sizes['class_tokens'] > COND.stop
    ):
        raise ValueError(f'model.variant has a number that no size can have; got {variant!r}.')
    if sizes['class_start'] >= sizes['depth']:
        raise ValueError(
            f'Class tokens must enter before the last block ends: class_start below depth; got {variant!r}.'
        )
    if sizes['width'] % (4 * sizes['heads']):
        raise ValueError(
            f'The width of a head must be a multiple of 4, for its rotation; got {variant!r}.'
        )
    return sizes


def hidden_width(width: int) -> int:
    """The SwiGLU's hidden width, rounded as the official code does: int(int(4·D)·2/3)."""
    return int(int(4 * width) * 2 / 3)


def slot_counts(model, cond_slots: int, labelled: bool) -> tuple[int, int]:
    """Slots that run before and after the class tokens enter, in a program of `cond_slots` condition patches."""
    if (
        model.dead_slots == 'keep' or model.null == 'token'
    ):  # the token may fill all condition slots
        return SLOTS, SLOTS
    before = GRID * GRID + cond_slots
    return before, before + model.class_tokens * labelled


def forward_multiply_adds(model, cond_slots: int = 0, labelled: bool = True) -> int:
    """Multiply-adds of one image's forward pass, in matrix products: what the paper's table calls Gflops.

    cond_slots: condition patches of the program. labelled: class tokens enter at `class_start`.
    """
    D, L, N, F, P = (
        model.width,
        model.depth,
        GRID * GRID,
        hidden_width(model.width),
        model.patch**2 * model.channels,
    )
    before, after = slot_counts(model, cond_slots, labelled)
    block = lambda S: (
        S * (4 * D * D + 3 * D * F) + 2 * S * S * D
    )  # projections, SwiGLU, logits and their use
    start = model.class_start
    embed = (N + cond_slots) * model.bottleneck * (P + D) + N * D * P
    conditioning = (256 + D) * D + (6 * L + 2) * D * D
    return start * block(before) + (L - start) * block(after) + embed + conditioning
