"""The mesh and where everything lies on it.

Three axes: `data` splits the batch; `fsdp` splits the batch and the parameters; `tensor` splits heads and hidden
widths. Parameters follow one table from path to `PartitionSpec`; the optimiser's moments and the EMAs repeat the
parameters' paths, so the same table places them. The model itself knows no mesh.
"""

import re
from collections.abc import Callable
from functools import wraps

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ('data', 'fsdp', 'tensor')
BATCH = P(('data', 'fsdp'))
MEMORY = {'device': None, 'host': 'pinned_host'}

# Path (a regular expression over the end of it) → the axes of the last dimensions. The leading layer axis of
# `blocks` and `modulation` is never split.
RULES = (
    (r'blocks/qkv/kernel', P(None, 'fsdp', None, 'tensor', None)),  # [L, D, 3, H, K]
    (r'blocks/qkv/bias', P(None, None, 'tensor', None)),
    (r'blocks/proj/kernel', P(None, 'tensor', 'fsdp')),  # [L, H·K, D]
    (r'blocks/w12/kernel', P(None, 'fsdp', None, 'tensor')),  # [L, D, 2, F]
    (r'blocks/w12/bias', P(None, None, 'tensor')),
    (r'blocks/w3/kernel', P(None, 'tensor', 'fsdp')),  # [L, F, D]
    (r'blocks/(proj|w3)/bias', P()),
    (r'blocks/(norm1|norm2|q_norm|k_norm)/weight', P()),
    (r'modulation_kernel', P(None, 'fsdp', None, 'tensor')),  # [L, D, 6, D]
    (r'modulation_bias', P()),
    (r'(target|cond)_embed/pixels/kernel', P('fsdp', None)),
    (r'(target|cond)_embed/out/kernel', P(None, 'fsdp')),
    (r'(target|cond)_embed/(out/bias|rows|cols)', P()),
    (r'(time_in|time_out)/kernel', P('fsdp', None)),
    (r'(time_in|time_out)/bias', P()),
    (r'final_modulation/kernel', P('fsdp', None, 'tensor')),
    (r'final_modulation/bias', P()),
    (r'final/kernel', P('fsdp', None)),
    (r'final/bias', P()),
    (r'final_norm/weight', P()),
    (r'classes', P(None, 'fsdp')),
    (r'(class_positions|no_condition)', P()),
    (r'ns_coeffs', P()),  # Muon's constants
)


def make_mesh(shape: tuple[int, int, int], devices=None) -> Mesh:
    """A mesh (data, fsdp, tensor) over all devices; one entry may be −1 and takes what is left.

    Raises ValueError, naming the nearest mesh that works, when the product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count, shape = len(devices), tuple(int(n) for n in shape)
    known = int(np.prod([n for n in shape if n != -1]))
    free = shape.count(-1)
    if len(shape) != 3 or free > 1 or any(n < 1 and n != -1 for n in shape):
        raise ValueError(
            f'config.mesh is (data, fsdp, tensor), positive with at most one -1; got {shape}.'
        )
    if count % known or (not free and known != count):
        fsdp, tensor = (n if n != -1 and count % n == 0 else 1 for n in shape[1:])
        tensor = tensor if count % (fsdp * tensor) == 0 else 1
        raise ValueError(
            f'config.mesh {shape} does not fit {count} device{"s" * (count > 1)}; try {(count // (fsdp * tensor), fsdp, tensor)}.'
        )
    shape = tuple(count // known if n == -1 else n for n in shape)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def check_batch(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raises ValueError, naming the nearest batch sizes, unless the batch splits over the mesh."""
    unit = mesh.shape['data'] * mesh.shape['fsdp'] * accumulate
    if batch_size < 1 or batch_size % unit:
        low = max(batch_size // unit, 1) * unit
        raise ValueError(
            f'config.batch_size {batch_size} must be a multiple of {unit} (data × fsdp × accumulate); try {low} or {low + unit}.'
        )


def whole_rows(count: int, mesh: Mesh) -> int:
    """The least number of rows, at least `count`, that all devices share evenly."""
    return -(-count // mesh.size) * mesh.size


def path_name(path) -> str:
    return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)


def spec(path: str, shape: tuple[int, ...]) -> P:
    """The PartitionSpec of the parameter at `path`: the one rule that matches the end of the path.

    Scalars (counters) are replicated. Raises ValueError when no rule or several match.
    """
    if not shape:
        return P()
    found = [s for rule, s in RULES if re.search(rf'(^|/){rule}$', path)]
    if len(found) != 1:
        raise ValueError(
            f'{len(found)} rules of sharding.RULES match {path} {shape}; it takes exactly one.'
        )
    return found[0]


def _fit(s: P, shape, mesh: Mesh) -> P:
    """Axes that do not divide their dimension are dropped: a 2730-wide layer on 4 devices stays whole."""
    return P(
        *(axis if axis and shape[i] % mesh.shape[axis] == 0 else None for i, axis in enumerate(s))
    )


def shardings(tree, mesh: Mesh) -> dict:
    """A NamedSharding for every leaf (array or ShapeDtypeStruct) of a state, by its path."""
    place = lambda path, leaf: NamedSharding(
        mesh, _fit(spec(path_name(path), leaf.shape), leaf.shape, mesh)
    )
    return jax.tree_util.tree_map_with_path(place, tree)


def in_memory(places, kind: str) -> dict:
    """The NamedShardings of a tree, in the memory of the 'device' or of its 'host'."""
    return jax.tree.map(lambda place: place.with_memory_kind(MEMORY[kind]), places)


def within(mesh: Mesh, f) -> Callable:
    """`f`, traced with the mesh in context: a kernel that the partitioner cannot split finds its axes there."""

    @wraps(f)
    def traced(*args, **kwargs):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return f(*args, **kwargs)

    return traced


def by_rows(x) -> jax.Array:
    """`x` [B, …], kept split over the batch axes of the mesh in context; x itself without one, or where B does not divide.

    Left alone, the partitioner may prefer to split what follows as the parameters are, and give each device the whole batch.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or len(x) % (mesh.shape['data'] * mesh.shape['fsdp']):
        return x
    return jax.lax.with_sharding_constraint(x, BATCH)


def split_by_tensor() -> bool:
    """Whether heads and hidden widths are split over the mesh in context."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.shape['tensor'] > 1


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def spread(tree, mesh: Mesh) -> dict:
    """Rows that every process has in full (arrays [B, …], any tree) → global arrays split over the batch axes."""
    place = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, place, lambda i: np.asarray(x)[i]), tree
    )


def to_device(batch, mesh: Mesh) -> dict:
    """This process's rows of a batch (numpy, any tree) → global arrays split over the batch axes."""
    place = batch_sharding(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(place, rows), batch)
