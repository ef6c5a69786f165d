"""How long a card takes at least for a compiled program: a roofline, kernel by kernel.

A kernel takes the longer of two times: its bytes at the bandwidth of the card's memory, and its
matrix products at 80 % of the card's peak. What that leaves out: the time between kernels, tiles
that are read again, waiting for other devices, and whatever runs slower than that. It says what a
better program could gain, not what a stopwatch will show.
"""

from jit_jax.hardware.cards import Card
from jit_jax.hardware.kernels import Kernel
from jit_jax.hardware.matrix_products import Product

REACHED = 0.8  # of the peak: what large products reach at best
ASSUMES = (
    'each kernel takes its bytes at the full bandwidth or its products at 80 % of the peak, '
    'whichever is longer; launches, tiles read again, waiting for other devices and anything '
    'slower are not in it'
)


def seconds(kernel: Kernel, card: Card) -> float:
    """Of all runs of a kernel."""
    return kernel.times * max(kernel.bytes / card.bandwidth, product_seconds(kernel, card))


def product_seconds(kernel: Kernel, card: Card) -> float:
    """Of the matrix products of one run."""
    return sum(_seconds(product, card) for product in kernel.products)


def total(kernels: list[Kernel], card: Card) -> float:
    """Seconds of a program."""
    return sum(seconds(kernel, card) for kernel in kernels)


def share_of_products(kernels: list[Kernel], card: Card) -> float:
    """Of `total`, the part that kernels with products take, from 0 to 1."""
    multiplying = [kernel for kernel in kernels if kernel.products]
    return total(multiplying, card) / max(total(kernels, card), 1e-30)


def _seconds(product: Product, card: Card) -> float:
    """A dtype without a rate of its own runs at that of float32."""
    peak = card.peak[product.dtype if product.dtype in card.peak else 'float32']
    return product.operations / (REACHED * peak)
