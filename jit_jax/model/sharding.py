"""The mesh and where everything lies on it.

Three axes: `data` splits the batch; `fsdp` splits the batch and the parameters; `tensor` splits
heads and hidden widths. Parameters follow one table from path to `PartitionSpec`; the optimiser's
moments and the EMAs repeat the parameters' paths, so the same table places them. The model itself
knows no mesh.
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import wraps

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jit_jax.errors import UserError

AXES = ('data', 'fsdp', 'tensor')
BATCH = P(('data', 'fsdp'))
MEMORY = {'device': None, 'host': 'pinned_host'}

# Path (a regular expression over the end of it) → the axes of the last dimensions. The leading
# layer axis of `blocks` and `modulation` is never split.
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
    (r'token_embed/out/kernel', P(None, 'fsdp')),  # [E, D]
    (r'token_embed/(table|positions)', P(None, 'fsdp')),  # [V, E], [256, D]
    (r'token_embed/out/bias', P()),
    (r'(time|end|guidance)_(in|out)/kernel', P('fsdp', None)),
    (r'(time|end|guidance)_(in|out)/bias', P()),
    (r'final_modulation/kernel', P('fsdp', None, 'tensor')),
    (r'final_modulation/bias', P()),
    (r'final/kernel', P('fsdp', None)),
    (r'final/bias', P()),
    (r'final_norm/weight', P()),
    (r'classes', P(None, 'fsdp')),
    (r'(class_positions|no_condition|which_reference)', P()),
    (r'ns_coeffs', P()),  # Muon's constants
)


def make_mesh(shape: tuple[int, int, int], devices=None, like=None) -> Mesh:
    """A mesh (data, fsdp, tensor) over all devices; one entry may be −1 and takes what is left.

    devices: all that JAX has by default. like: a tree of what will lie on the mesh, arrays or
    their shapes. With it, fsdp = −1 takes as many of the devices that are left as let each hold the
    fewest bytes, and the others go to data; without it, fsdp takes them all. Raises UserError,
    naming a mesh that works, when the product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count, shape = len(devices), tuple(int(n) for n in shape)
    if len(shape) != 3 or shape.count(-1) > 1 or any(n < 1 and n != -1 for n in shape):
        raise UserError(
            f'config.mesh is (data, fsdp, tensor), positive with at most one -1; got {shape}.'
        )
    known = math.prod(n for n in shape if n != -1)
    if count % known or (-1 not in shape and known != count):
        raise UserError(
            f'config.mesh {shape} does not fit {count} device{"" if count == 1 else "s"}; '
            f'try {_nearest_mesh(shape, count)}.'
        )
    data, fsdp, tensor = (count // known if n == -1 else n for n in shape)
    if shape[1] == -1 and like is not None:
        most, fsdp = fsdp, best_fsdp(like, fsdp, tensor)
        data *= most // fsdp
    kinds = (AxisType.Auto,) * 3
    return jax.make_mesh((data, fsdp, tensor), AXES, axis_types=kinds, devices=devices)


def _nearest_mesh(shape, count: int) -> tuple[int, int, int]:
    """A mesh of `count` devices that keeps of `shape` what divides them."""
    fsdp, tensor = (n if n != -1 and count % n == 0 else 1 for n in shape[1:])
    if count % (fsdp * tensor):
        tensor = 1
    return count // (fsdp * tensor), fsdp, tensor


def best_fsdp(like, free: int, tensor: int = 1) -> int:
    """The divisor of `free` for which a device holds the fewest bytes of `like`.

    Of several, the least.
    """
    divisors = [n for n in range(1, free + 1) if free % n == 0]
    return min(divisors, key=lambda n: held(like, {'fsdp': n, 'tensor': tensor}))


def check_mesh(mesh: Mesh, like) -> None:
    """Raises UserError, naming the mesh that works, where fsdp splits less than half of `like`."""
    fsdp, whole = mesh.shape['fsdp'], held(like, {'fsdp': 1, 'tensor': mesh.shape['tensor']})
    if held(like, mesh.shape) <= (whole + whole / fsdp) / 2:
        return
    free = mesh.shape['data'] * fsdp
    better = best_fsdp(like, free, mesh.shape['tensor'])
    raise UserError(
        f'config.mesh {tuple(mesh.shape.values())} would leave most parameters whole on every '
        f'device, as their widths do not divide by fsdp={fsdp}; '
        f'try {(free // better, better, mesh.shape["tensor"])}.'
    )


def kept_whole(like, mesh: Mesh) -> str:
    """One sentence: what of `like` the mesh should split and cannot, and what that costs; or ''.

    Arrays of less than a hundredth of what a device holds are not worth a word.
    """
    costs, total = {}, held(like, mesh.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(like):
        rule, wanted = find_rule(path_name(path), leaf.shape)
        got = _fit(wanted, leaf.shape, mesh.shape)
        lost = [axis for axis, kept in zip(wanted, got) if axis and not kept]
        parts = math.prod(mesh.shape[axis] for axis in lost)
        cost = held_of_leaf(leaf, got, mesh.shape) * (parts - 1) // parts
        for axis in lost:
            name = f'{rule} over {axis}={mesh.shape[axis]}'
            costs[name] = costs.get(name, 0) + cost
    costs = {name: cost for name, cost in costs.items() if cost > total / 100}
    if not costs:
        return ''
    return (
        f'Not split, as the size does not divide: {", ".join(costs)}; '
        f'{sum(costs.values()) / 2**30:.2f} of {total / 2**30:.2f} GiB a device.'
    )


def held(like, sizes: Mapping[str, int]) -> int:
    """Bytes of a tree that one device holds, where the axes of the mesh have these sizes."""
    return sum(
        held_of_leaf(leaf, _fit(spec(path_name(path), leaf.shape), leaf.shape, sizes), sizes)
        for path, leaf in jax.tree_util.tree_leaves_with_path(like)
    )


def held_of_leaf(leaf, fitted: P, sizes: Mapping[str, int]) -> int:
    """Bytes of one array that one device holds."""
    parts = math.prod(sizes[axis] for axis in fitted if axis)
    return math.prod(leaf.shape) * leaf.dtype.itemsize // parts


def check_batch(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raises UserError, naming the nearest batch sizes, unless the batch splits over the mesh."""
    unit = mesh.shape['data'] * mesh.shape['fsdp'] * accumulate
    if batch_size < 1 or batch_size % unit:
        low = max(batch_size // unit, 1) * unit
        raise UserError(
            f'config.batch_size {batch_size} must be a multiple of {unit} '
            f'(data × fsdp × accumulate); try {low} or {low + unit}.'
        )


def whole_rows(count: int, mesh: Mesh) -> int:
    """The least number of rows, at least `count`, that all devices share evenly."""
    return -(-count // mesh.size) * mesh.size


def path_name(path) -> str:
    """A path of jax.tree_util as words with slashes: 'params/blocks/qkv/kernel'."""
    return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)


def find_rule(path: str, shape: tuple[int, ...]) -> tuple[str, P]:
    """The name of the parameter at `path`, and the axes of its dimensions.

    Both by the one rule that matches; a rule matches the end of the path. Scalars (counters) are
    replicated. Raises ValueError when no rule or several match.
    """
    if not shape:
        return path, P()
    found = [(re.search(rf'(?:^|/)({rule})$', path), axes) for rule, axes in RULES]
    found = [(match[1], axes) for match, axes in found if match]
    if len(found) != 1:
        raise ValueError(
            f'{len(found)} rules of sharding.RULES match {path} {shape}; it takes exactly one.'
        )
    return found[0]


def spec(path: str, shape: tuple[int, ...]) -> P:
    """The PartitionSpec of the parameter at `path`. Raises ValueError without exactly one rule."""
    return find_rule(path, shape)[1]


def _fit(wanted: P, shape, sizes: Mapping[str, int]) -> P:
    """`wanted` without the axes that do not divide their dimension, as 4 do not divide 2730."""
    fits = [axis and shape[i] % sizes[axis] == 0 for i, axis in enumerate(wanted)]
    return P(*(axis if fit else None for axis, fit in zip(wanted, fits)))


def shardings(tree, mesh: Mesh) -> dict:
    """A NamedSharding for every leaf (array or ShapeDtypeStruct) of a state, by its path."""

    def place(path, leaf):
        axes = _fit(spec(path_name(path), leaf.shape), leaf.shape, mesh.shape)
        return NamedSharding(mesh, axes)

    return jax.tree_util.tree_map_with_path(place, tree)


def in_memory(places, kind: str) -> dict:
    """The NamedShardings of a tree, in the memory of the 'device' or of its 'host'."""
    return jax.tree.map(lambda place: place.with_memory_kind(MEMORY[kind]), places)


def within(mesh: Mesh, f) -> Callable:
    """`f`, traced with the mesh in context, where kernels that are split by hand find its axes."""

    @wraps(f)
    def traced(*args, **kwargs):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return f(*args, **kwargs)

    return traced


def by_rows(x) -> jax.Array:
    """`x` [B, …], kept split over the batch axes of the mesh in context.

    Without it the partitioner may prefer to split what follows as the parameters are, and give
    each device the whole batch. Without a mesh, or where B does not divide, it is x itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or len(x) % (mesh.shape['data'] * mesh.shape['fsdp']):
        return x
    return jax.lax.with_sharding_constraint(x, BATCH)


def platform() -> str:
    """Of the devices of the mesh in context: 'gpu', 'tpu', 'cpu'; '' where it names none."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return '' if device is None else device.platform


def split_by_tensor() -> bool:
    """Whether heads and hidden widths are split over the mesh in context."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.shape['tensor'] > 1


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over the batch axes."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, P())


def spread(tree, mesh: Mesh) -> dict:
    """Rows that every process has in full → global arrays split over the batch axes.

    tree: any, of arrays [B, …].
    """
    return _put(tree, batch_sharding(mesh))


def everywhere(tree: tuple, mesh: Mesh) -> tuple:
    """Arrays that every process has in full → global arrays, whole on every device."""
    return _put(tree, replicated(mesh))


def _put(tree, place: NamedSharding):
    """Arrays that every process has in full → global arrays, of which each device has its part."""

    def put(array):
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, place, array.__getitem__)

    return jax.tree.map(put, tree)


def to_device(batch, mesh: Mesh) -> dict:
    """This process's rows of a batch (numpy) → global arrays split over the batch axes."""
    place = batch_sharding(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(place, rows), batch)
