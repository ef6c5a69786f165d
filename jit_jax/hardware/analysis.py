"""What the text of a compiled program says about how it will run, in numbers for a table or JSON.

found = analysis.analyse(compiled.as_text(), cards.cards()['h100'])
found.bytes, found.kernels, found.roofline_ms
"""

from collections import Counter
from dataclasses import asdict, dataclass

from jit_jax.hardware import hlo, roofline
from jit_jax.hardware.cards import Card
from jit_jax.hardware.kernels import Kernel, collectives, kernels

LARGEST = 5  # kernels that are listed one by one


@dataclass
class Kind:
    """Kernels that do the same sort of work."""

    bytes: float = 0.0
    kernels: int = 0
    ms: float | None = None  # by the roofline


@dataclass
class Sum:
    """Products in one dtype."""

    operations: float = 0.0
    kernels: int = 0


@dataclass
class Sent:
    """Collectives of one kind."""

    count: int
    bytes: int  # of their results


@dataclass
class Large:
    """One of the kernels that move the most."""

    name: str
    kind: str
    bytes: float  # of all its runs
    times: int
    source: str  # the line of our code that it comes from, or where JAX traced it


@dataclass
class Analysis:
    """Of one run of a program on one device, loops counted."""

    bytes: float  # that kernels move in the device's main memory
    kernels: int
    operations: float  # in matrix products
    kinds: dict[str, Kind]  # a name of kernels.KINDS, or what a custom call calls
    products: dict[str, Sum]  # by dtype
    collectives: dict[str, Sent]
    attention: dict[str, int]  # kernel of fused attention → how often it runs; {}: there is none
    largest: list[Large]
    roofline_ms: float | None  # None where there is no description of the device
    share_of_products: float | None  # of roofline_ms, in kernels with matrix products

    def as_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


def analyse(text: str, card: Card | None) -> Analysis:
    """The text of `compiled.as_text()` for a card; None: for a device that no file describes."""
    program = hlo.parse(text)
    found = kernels(program)
    by_dtype = _products(found)
    return Analysis(
        bytes=sum(kernel.moved for kernel in found),
        kernels=sum(kernel.times for kernel in found),
        operations=sum(total.operations for total in by_dtype.values()),
        kinds=_kinds(found, card),
        products=by_dtype,
        collectives={name: Sent(*sent) for name, sent in collectives(program).items()},
        attention=_attention(found),
        largest=_largest(found),
        roofline_ms=1e3 * roofline.total(found, card) if card else None,
        share_of_products=roofline.share_of_products(found, card) if card else None,
    )


def _kinds(found: list[Kernel], card: Card | None) -> dict[str, Kind]:
    """What moves the most first."""
    kinds: dict[str, Kind] = {}
    for kernel in found:
        kind = kinds.setdefault(kernel.kind, Kind(ms=0.0 if card else None))
        kind.bytes += kernel.moved
        kind.kernels += kernel.times
        if card:
            kind.ms += 1e3 * roofline.seconds(kernel, card)
    return dict(sorted(kinds.items(), key=lambda item: -item[1].bytes))


def _products(found: list[Kernel]) -> dict[str, Sum]:
    by_dtype: dict[str, Sum] = {}
    for kernel in found:
        for product in kernel.products:
            total = by_dtype.setdefault(product.dtype, Sum())
            total.operations += product.operations * kernel.times
            total.kernels += kernel.times
    return dict(sorted(by_dtype.items(), key=lambda item: -item[1].operations))


def _attention(found: list[Kernel]) -> dict[str, int]:
    counted: Counter[str] = Counter()
    for kernel in found:
        if kernel.kind == 'attention':
            counted[kernel.call] += kernel.times
    return dict(counted)


def _largest(found: list[Kernel]) -> list[Large]:
    ordered = sorted(found, key=lambda kernel: -kernel.moved)[:LARGEST]
    return [Large(k.name, k.kind, k.moved, k.times, k.source or k.path) for k in ordered]
