"""The layout of the diffusers library, written, read, and checked against its own names."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jit_jax.__main__ import main
from jit_jax.errors import UserError
from jit_jax.model import diffusers_layout
from jit_jax.model.official import from_official
from jit_jax.training.weights import read_weights

safetensors = pytest.importorskip('safetensors.numpy')

GOLDEN = Path(__file__).parents[1] / 'goldens/jit_tiny_256tok_weights.npz'
# The names that the library's class gives its arrays, for a block and around the blocks.
BLOCK = {
    *('norm1.weight', 'norm2.weight', 'attn.q_norm.weight', 'attn.k_norm.weight'),
    *('attn.qkv.weight', 'attn.qkv.bias', 'attn.proj.weight', 'attn.proj.bias'),
    *('mlp.w12.weight', 'mlp.w12.bias', 'mlp.w3.weight', 'mlp.w3.bias'),
    *('adaLN_modulation.weight', 'adaLN_modulation.bias'),
}
AROUND = {
    *('pos_embed', 'in_context_posemb', 'y_embedder.embedding_table.weight', 'norm_final.weight'),
    *('x_embedder.proj1.weight', 'x_embedder.proj2.weight', 'x_embedder.proj2.bias'),
    *('t_embedder.mlp.0.weight', 't_embedder.mlp.0.bias'),
    *('t_embedder.mlp.2.weight', 't_embedder.mlp.2.bias'),
    *('linear_final.weight', 'linear_final.bias'),
    *('adaLN_modulation_final.weight', 'adaLN_modulation_final.bias'),
}


def official() -> dict:
    return {name.removeprefix('net.'): x for name, x in np.load(GOLDEN).items()}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name]) for name in a
    )


@pytest.fixture(scope='module')
def converted():
    return from_official(official(), class_start=1)


@pytest.mark.parametrize('shard_bytes, files', [(10**9, 1), (100_000, 3)])
def test_what_is_written_has_the_names_of_the_library_and_comes_back(
    converted, tmp_path, shard_bytes, files
):
    architecture, params = converted
    diffusers_layout.save(tmp_path, architecture, params, shard_bytes)
    shards = sorted(tmp_path.glob('*.safetensors'))
    assert len(shards) >= files
    arrays = {}
    for path in shards:
        content = safetensors.load_file(path)
        assert len(content) == 1 or sum(x.nbytes for x in content.values()) <= shard_bytes
        arrays |= content
    depth = 3
    blocks = {f'blocks.{i}.{name}' for i in range(depth) for name in BLOCK}
    assert arrays.keys() == AROUND | blocks
    index = tmp_path / 'diffusion_pytorch_model.safetensors.index.json'
    assert index.exists() == (len(shards) > 1)
    if index.exists():
        listed = json.loads(index.read_text())
        assert listed['metadata']['total_size'] == sum(x.nbytes for x in arrays.values())
        for name, file in listed['weight_map'].items():
            assert name in safetensors.load_file(tmp_path / file)
    config = json.loads((tmp_path / 'config.json').read_text())
    assert config['_class_name'] == 'JiTTransformer2DModel' and config['num_classes'] == 10
    assert (config['sample_size'], config['patch_size'], config['in_context_start']) == (32, 2, 1)

    state, class_start = diffusers_layout.load(diffusers_layout.find(tmp_path))
    assert class_start == 1 and equal(state, official())


def test_the_earlier_class_is_read_too(tmp_path):
    """It wrapped the official network, and its config names a published model."""
    folder = tmp_path / 'pipeline' / 'transformer'
    folder.mkdir(parents=True)
    about = {'_class_name': 'JiTTransformer2DModel', 'model_type': 'JiT-B/16'}
    (folder / 'config.json').write_text(json.dumps(about | {'num_class_embeds': 1000}))
    wrapped = {f'transformer.{name}': x for name, x in official().items()}
    safetensors.save_file(wrapped, folder / 'diffusion_pytorch_model.safetensors')
    state, class_start = diffusers_layout.load(diffusers_layout.find(tmp_path / 'pipeline'))
    assert class_start is None and equal(state, official())


def test_bfloat16_becomes_float32(converted, tmp_path):
    diffusers_layout.save(tmp_path, *converted)
    path = tmp_path / 'diffusion_pytorch_model.safetensors'
    half = {name: x.astype(ml_dtypes.bfloat16) for name, x in safetensors.load_file(path).items()}
    safetensors.save_file(half, path)
    state, _ = diffusers_layout.load(tmp_path)
    rounded = {
        name: x.astype(ml_dtypes.bfloat16).astype(np.float32) for name, x in official().items()
    }
    assert equal(state, rounded)


def test_the_command_there_and_back(converted, tmp_path):
    architecture, params = converted
    diffusers_layout.save(tmp_path / 'hub', architecture, params)
    main(['convert', str(tmp_path / 'hub'), str(tmp_path / 'run')])
    config, _, _ = read_weights(tmp_path / 'run')
    assert config['model'].items() >= architecture.items()
    assert config['condition']['kind'] == 'class'
    main(['convert', str(tmp_path / 'run'), str(tmp_path / 'back')])
    for name in ('diffusion_pytorch_model.safetensors', 'config.json'):
        assert (tmp_path / 'back' / name).read_bytes() == (tmp_path / 'hub' / name).read_bytes()


def test_what_is_missing_damaged_or_another_network_is_said(converted, tmp_path):
    assert diffusers_layout.find(tmp_path) is None
    architecture, params = converted
    diffusers_layout.save(tmp_path, architecture, params, 100_000)
    shard = sorted(tmp_path.glob('*-00002-of-*.safetensors'))[0]
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match='00002-of-.*is damaged; download it again'):
        diffusers_layout.load(tmp_path)
    shard.unlink()
    with pytest.raises(UserError, match='00002-of-.*cannot be read .No such file'):
        diffusers_layout.load(tmp_path)
    (tmp_path / 'diffusion_pytorch_model.safetensors.index.json').write_text('{"weight')
    with pytest.raises(UserError, match='index.json is damaged'):
        diffusers_layout.load(tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text()) | {'norm_eps': 1e-5}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(UserError, match='norm_eps is 1e-05; this model has 1e-06'):
        diffusers_layout.load(tmp_path)
