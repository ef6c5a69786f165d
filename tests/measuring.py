"""Measuring a small model on some of the eight devices of the tests, and what that needs."""

import contextlib
import zlib
from pathlib import Path

import jax
import numpy as np
from jax import monitoring

from jit_jax.evaluation.image_parts import ImageParts
from jit_jax.evaluation.measure import Files, Measure, make_metrics
from jit_jax.model import sharding

GOLDENS = Path(__file__).parent / 'goldens'
NO_FILES = Files()
COMPILED = '/jax/core/compile/backend_compile_duration'


def mesh(count: int):
    return sharding.make_mesh((-1, 1, 1), devices=jax.devices()[:count])


def on(count: int, params):
    """Parameters on a mesh of so many devices."""
    return jax.device_put(params, sharding.replicated(mesh(count)))


def parts(devices: int, run, *, num=20, batch=16, seed=0) -> ImageParts:
    """run: (model, params, train, test), such as the fixture `holes`."""
    model, _, _, test = run
    return ImageParts(model, mesh(devices), num=num, batch=batch, seed=seed, test=test)


def measure(devices: int, run, names, *, num=20, batch=16, files=NO_FILES):
    """(a Measure of `run` on so many devices, its parameters there)."""
    model, params, train, test = run
    rows = min(num, batch)
    data = {'train': train, 'test': test}
    metrics = make_metrics(names, model, mesh(devices), rows=rows, files=files, **data)
    return Measure(parts(devices, run, num=num, batch=batch), metrics), on(devices, params)


def recreate(name, shape):
    """The tensor of Inception that the goldens were made with."""
    if name.endswith('num_batches_tracked'):
        return np.zeros(shape, np.int64)
    random = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith(('bn.weight', 'running_var')):
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    scale = 0.1
    if name.endswith('conv.weight'):
        scale = np.sqrt(2 / np.prod(shape[1:]))
    if name == 'fc.weight':
        scale = np.sqrt(1 / shape[1])
    return (random.standard_normal(shape) * scale).astype(np.float32)


@contextlib.contextmanager
def compilations():
    """A list that grows by one entry with each program that is compiled within it."""
    found = []

    def listen(event, duration, **about):
        if event == COMPILED:
            found.append(about.get('fun_name', ''))

    monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        monitoring.unregister_event_duration_listener(listen)
