"""Devices to compile for that need not be here: TPU pods by libtpu, GPUs by JAX's CUDA plugin.

`v5e:16x16` is a pod of 256 chips, `h100:8` eight cards, `h100` one. No TPU or GPU is needed.
"""

import importlib.util
import os
from dataclasses import dataclass, field

from jit_jax.errors import UserError
from jit_jax.hardware.cards import Card, cards, of_kind

PODS = ('v4:4x4x4', 'v5e:4x4', 'v5e:16x16', 'v5p:4x4x4', 'v6e:16x16')  # of the table of --all

# The plugins must not look for devices, nor libtpu mind other compilations beside this one.
ENVIRONMENT = {
    'JAX_PLATFORMS': 'cpu',
    'JAX_SKIP_CUDA_CONSTRAINTS_CHECK': '1',
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}

# No kernel can be timed without a card: cuBLASLt multiplies, by its own first choice of a kernel.
# Triton's products, with choices that were not timed, fail to compile for some shapes.
WITHOUT_A_GPU = {'xla_gpu_autotune_level': 0, 'xla_gpu_enable_triton_gemm': False}

# What XLA asks of every NVIDIA card beside its description, and the versions of the libraries.
_LIMITS = {
    'threads_per_block_limit': 1024,
    'threads_per_warp': 32,
    'shared_memory_per_block': 49152,
    'block_dim_limit_x': 2147483647,
    'block_dim_limit_y': 65535,
    'block_dim_limit_z': 65535,
    'registers_per_core_limit': 65536,
    'registers_per_block_limit': 65536,
}
_LIBRARIES = {
    'platform_name': 'CUDA',
    'dnn_version_info': {'major': 9, 'minor': 8},
    'runtime_version': {'major': 12, 'minor': 9},
}


@dataclass(frozen=True)
class Target:
    """Devices to compile for, and how."""

    name: str  # as --topology has it, '' for the devices of this machine
    devices: list
    card: Card | None  # None where there is no description of the device
    options: dict = field(default_factory=dict)  # for `lowered.compile(compiler_options=…)`


def set_environment() -> None:
    """Makes JAX compile for absent devices, and look for none. Call before JAX is used."""
    os.environ.update(ENVIRONMENT)


def target(topology: str | None) -> Target:
    """The devices of a topology, of this machine for None or ''.

    Raises UserError for a topology that is not known, or whose compiler is not installed.
    """
    import jax

    name, _, shape = (topology or '').partition(':')
    known = cards()
    if name in known:
        card = known[name]
        if card.platform == 'tpu':
            return Target(topology, _pod(topology), card)
        return Target(topology, _gpus(card, topology, shape), card, dict(WITHOUT_A_GPU))
    here = f'{jax.default_backend()}:{jax.device_count()}'
    if topology and topology != here:
        raise UserError(
            f'--topology={topology}: this machine has {here}, and only {", ".join(known)} '
            'compile without one.'
        )
    return Target('', jax.devices(), of_kind(jax.devices()[0].device_kind))


def _pod(topology: str) -> list:
    """The chips of a TPU pod."""
    from jax.experimental import topologies

    if importlib.util.find_spec('libtpu') is None:
        raise UserError("--topology of a TPU needs libtpu: pip install 'jit_jax[tpu]'.")
    # A v4 chip has two cores that work as one device.
    more = {'chip_config_name': 'megacore'} if topology.startswith('v4:') else {}
    try:
        return list(topologies.get_topology_desc(topology, platform='tpu', **more).devices)
    except Exception as problem:
        raise UserError(
            f'--topology={topology} is not a pod that libtpu knows; try one like {", ".join(PODS)}.'
        ) from problem


def _gpus(card: Card, topology: str, count: str) -> list:
    """As many cards of a kind, in one machine."""
    from jax.experimental import topologies

    if not _has_cuda():
        raise UserError(
            f"--topology={topology} needs JAX's CUDA plugin, though no GPU: "
            "pip install 'jax[cuda12]'."
        )
    if count and (not count.isdigit() or not int(count)):
        raise UserError(
            f'--topology={topology} must say how many cards, for example {card.name}:8.'
        )
    described = topologies.get_topology_desc(
        platform='cuda',
        topology_name='',
        topology=f'1x1x{count or 1}',
        target_config=description(card),
    )
    return list(described.devices)


def _has_cuda() -> bool:
    """Whether JAX's CUDA plugin is installed."""
    if importlib.util.find_spec('jax_plugins') is None:
        return False
    names = ('jax_plugins.xla_cuda12', 'jax_plugins.xla_cuda13')
    return any(importlib.util.find_spec(name) is not None for name in names)


def description(card: Card) -> str:
    """A GPU as XLA wants it described: the text form of its GpuTargetConfigProto."""
    major, minor = card.capability
    info = (
        _LIMITS
        | card.compiler
        | {
            'memory_bandwidth': int(card.bandwidth),
            'device_memory_size': card.memory,
            'cuda_compute_capability': {'major': major, 'minor': minor},
        }
    )
    return _proto({'gpu_device_info': info, **_LIBRARIES, 'device_description_str': card.kind})


def _proto(fields: dict) -> str:
    """A protocol buffer's text form."""
    lines = []
    for name, value in fields.items():
        if isinstance(value, dict):
            lines.append(f'{name} {{\n{_proto(value)}}}\n')
        elif isinstance(value, str):
            lines.append(f'{name}: "{value}"\n')
        else:
            lines.append(f'{name}: {value}\n')
    return ''.join(lines)
