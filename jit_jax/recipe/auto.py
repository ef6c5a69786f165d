"""What 'auto' means in config.compute: the arithmetic's dtype and how blocks run, by device.

Attention's backend is chosen where its shapes are known, by `attention.choose`.
"""

import jax.numpy as jnp

from jit_jax.hardware import cards

BFLOAT16 = (8, 0)  # the compute capability from which NVIDIA's cards have units for it
SCAN_FROM_DEPTH = 48  # on a GPU, where each block compiles for a second or two
SCAN_FROM_WIDTH = 256  # on a CPU, as measured: docs/performance.md


def dtype(wanted: str, device) -> jnp.dtype:
    """Of the arithmetic. 'auto': bfloat16 where `device` has units for it, float32 elsewhere."""
    if wanted != 'auto':
        return jnp.dtype(wanted)
    if device.platform == 'gpu':  # a T4 (7.5) only emulates it, and not in every operation
        capability = cards.capability(device.device_kind)
        fast = capability is not None and capability >= BFLOAT16
    else:
        fast = device.platform != 'cpu'
    return jnp.dtype('bfloat16' if fast else 'float32')


def scan(wanted, platform: str, *, depth: int, width: int) -> tuple[bool, str]:
    """Whether the blocks run as one scanned body, and why, in a few words."""
    if wanted != 'auto':
        return wanted, 'as config.compute.scan says'
    if platform == 'tpu':
        return True, 'less memory and a short compilation on a TPU'
    if platform == 'gpu':
        if depth >= SCAN_FROM_DEPTH:
            return True, f'a short compilation of {depth} blocks'
        return False, 'half the bytes to move on a GPU'
    if width >= SCAN_FROM_WIDTH:
        return True, 'faster on a CPU for wide blocks'
    return False, 'faster on a CPU for narrow blocks'
