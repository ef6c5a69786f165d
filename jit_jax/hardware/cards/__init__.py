"""GPUs and TPU chips that programs are compiled for, described in the data files beside this one.

A file's name is what `--topology` calls the card: `h100.toml` is `--topology=h100:8`. A new card
is a new file.
"""

import tomllib
from dataclasses import dataclass, field
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class Card:
    """One GPU, or one chip of a TPU pod, by its maker's figures."""

    name: str  # h100
    kind: str  # NVIDIA H100 80GB HBM3: what JAX calls the device
    memory: int  # bytes
    bandwidth: float  # of its memory, bytes a second
    links: float  # to other cards, both directions together, bytes a second
    peak: dict[str, float]  # dtype → operations a second of matrix products
    capability: tuple[int, int] | None = None  # CUDA's compute capability; None for a TPU
    compiler: dict = field(default_factory=dict)  # what XLA asks of a GPU beside the above

    @property
    def platform(self) -> str:
        """What JAX calls the platform: gpu or tpu."""
        return 'tpu' if self.capability is None else 'gpu'


@cache
def cards() -> dict[str, Card]:
    """All cards by name."""
    found = {}
    for file in sorted(resources.files(__name__).iterdir(), key=lambda file: file.name):
        if file.name.endswith('.toml'):
            name = file.name.removesuffix('.toml')
            found[name] = _card(name, tomllib.loads(file.read_text()))
    return found


def _card(name: str, described: dict) -> Card:
    capability = described.pop('capability', None)
    return Card(name, **described, capability=capability and tuple(capability))


def of_kind(kind: str) -> Card | None:
    """The card that JAX calls `kind`, or None where there is no description of it."""
    return next((card for card in cards().values() if card.kind == kind), None)


def capability(kind: str) -> tuple[int, int] | None:
    """CUDA's compute capability of the devices that JAX calls `kind`, here or not: (major, minor).

    None where nothing is known of them: a CPU, a TPU, a GPU that is neither described nor here.
    """
    card = of_kind(kind)
    if card is not None:
        return card.capability
    import jax  # the table above is read without it

    for device in jax.devices():
        if device.device_kind == kind and hasattr(device, 'compute_capability'):
            major, minor = str(device.compute_capability).split('.')
            return int(major), int(minor)
    return None
