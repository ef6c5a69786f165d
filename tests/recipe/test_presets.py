"""Published presets for a TPU and a GPU that are not here: attention is a fused kernel.

The networks have two blocks instead of all; what decides the kernel, the slots and the heads, is
published.
"""

import importlib.util
import os
import re
from functools import partial

import jax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from configs import cond, uncond
from jit_jax.commands import lowering
from jit_jax.hardware import hlo, topologies
from jit_jax.hardware.analysis import analyse
from jit_jax.model import sharding
from jit_jax.model.sizes import size, spelled
from jit_jax.recipe import build
from jit_jax.training import step

DEVICES = {'tpu': ('TPU v5 lite', 'v5e:2x2'), 'cuda': ('NVIDIA H100 80GB HBM3', 'h100')}
LOWERED = {
    'tpu': {'splash_mha_fwd', 'splash_mha_dkv'},
    'cuda': {'__cudnn$fmhaSoftmax', '__cudnn$fmhaSoftmaxBackward'},
}
COMPILED = {
    'tpu': {'splash_mha_fwd', 'splash_mha_dkv', 'splash_mha_dq'},
    'cuda': {'cudnn$fmhaSoftmax', 'cudnn$fmhaSoftmaxBackward'},
}
MODULES = {'uncond': uncond, 'cond': cond}
# Heads of 64, 80 and 104 channels; 256 slots, 320, and 288 after the class tokens enter. The other
# published presets have the heads and slots of one of these.
DIFFERENT = ['uncond:imagenet256_b16', 'cond:imagenet256_h16', 'cond:imagenet256_g16_class']
FEW_STEPS = 'uncond:imagenet256_b16:meanflow'  # the first of these, in few steps
SLOTS = {256, 288, 320, 384, 512}


def shallow(name: str):
    """A published preset with two blocks, for four images."""
    module, preset, *few_steps = name.split(':')
    config = MODULES[module].get_config(preset)
    if few_steps:
        uncond.in_few_steps(config)
    sizes = size(config.model.variant) | {'depth': 2, 'class_start': 1}
    config.model.variant, config.batch_size = spelled(sizes), 4
    return config


def all_pairs(shapes) -> list[tuple[int, ...]]:
    """Those of [B, 1 or heads, slots, slots]: logits, or masks of all pairs."""
    return [dims for dims in shapes if len(dims) > 3 and SLOTS >= set(dims[-2:])]


@pytest.mark.parametrize('platform', DEVICES)
@pytest.mark.parametrize('name', [*DIFFERENT, FEW_STEPS])
def test_a_step_lowers_with_the_fused_kernel(name, platform, monkeypatch):
    monkeypatch.setattr(  # none is here
        'jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version', lambda: 91000
    )
    config, (kind, _) = shallow(name), DEVICES[platform]
    device = AbstractDevice(kind, 1, {'cuda': 'gpu'}.get(platform, platform))
    recipe = build.step_recipe(config, device)
    types = (AxisType.Auto,) * 3
    mesh = AbstractMesh((1, 1, 1), sharding.AXES, axis_types=types, abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        state = build.state_shapes(recipe)
        arguments = state, lowering.shapes_of_a_batch(config), lowering.shape_of_a_key()
        traced = jax.jit(partial(step.train_step, recipe=recipe)).trace(*arguments)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
    kernels = re.findall(r'splash_mha_(?:fwd|dkv)|__cudnn\$fmhaSoftmax(?:Backward)?', text)
    assert set(kernels) == LOWERED[platform]
    found = re.findall(r'tensor<((?:\d+x)+)\w+>', text)
    shapes = [tuple(int(side) for side in dims.split('x')[:-1]) for dims in found]
    # With MeanFlow, passes with derivatives alone have logits of all pairs, of half of the rows.
    rows = {2} if name == FEW_STEPS else set()
    assert {dims[0] for dims in all_pairs(shapes)} == rows


@pytest.mark.slow
@pytest.mark.parametrize('platform', DEVICES)
@pytest.mark.parametrize('name', DIFFERENT)
def test_a_step_compiles_with_the_fused_kernel(name, platform, monkeypatch):
    for variable, value in topologies.ENVIRONMENT.items():
        monkeypatch.setitem(os.environ, variable, value)
    compiler = {'tpu': 'libtpu', 'cuda': 'jax_plugins'}[platform]
    if importlib.util.find_spec(compiler) is None:
        pytest.skip(f'needs {compiler}')
    config, (_, topology) = shallow(name), DEVICES[platform]
    target = topologies.target(topology)
    run = build.programs(config, build.mesh(config, target.devices))
    arguments = run.like, lowering.shapes_of_a_batch(config), lowering.shape_of_a_key()
    program = run.step.lower(*arguments).compile(compiler_options=target.options or None)
    found = analyse(program.as_text(), target.card)
    assert set(found.attention) == COMPILED[platform]
    instructions = hlo.parse(program.as_text()).entry.values()
    shapes = [shape.dims for c in instructions for shape in c.shapes]
    assert not all_pairs(shapes)
