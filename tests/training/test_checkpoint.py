"""Checkpoints: exact, in the background, on any mesh, anywhere; and which of them stay."""

import json
import pathlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from toys import CONFIG, like, listing, run_with, same, toy

from jit_jax.training import checkpoint, manifest, storage
from jit_jax.training.checkpoint import Checkpoints
from jit_jax.training.weights import read_weights

# Exact, whatever the mesh.


def test_roundtrip_is_bit_exact(workdir):
    checkpoints = Checkpoints(workdir, keep_last=2)
    assert checkpoints.newest() == 2
    assert same(checkpoints.restore(2, like(toy(2))), toy(2))
    assert json.loads((workdir / 'checkpoints/2/config/metadata').read_text()) == CONFIG
    assert checkpoints.config(2) == CONFIG


def test_a_checkpoint_of_an_older_version_restores(workdir):
    """It has one more item, `data`, which nobody reads; its manifest holds that to what was saved
    as well.
    """
    step = checkpoint.epath.Path(workdir) / 'checkpoints/2'
    (step / 'data').mkdir()
    (step / 'data/metadata').write_text('{"seed": 3, "batch_size": 4}')
    about = manifest.read(step)
    (step / 'manifest.json').unlink()
    manifest.seal(step, {name: about[name] for name in ('step', 'metrics', 'arrays')})
    assert 'data/metadata' in manifest.read(step)['files']
    checkpoints = Checkpoints(workdir, keep_last=2)
    assert checkpoints.newest() == 2
    assert same(checkpoints.restore(2, like(toy(2))), toy(2))


def test_a_fresh_folder_has_none(tmp_path):
    assert Checkpoints(tmp_path / 'new', keep_last=1).newest() is None
    assert not (tmp_path / 'new').exists()


def on(shape, tree):
    """Shardings of a state's arrays on a mesh of this shape."""
    devices = jax.devices()[: shape[0] * shape[1]]
    mesh = jax.make_mesh(shape, ('a', 'b'), axis_types=(AxisType.Auto,) * 2, devices=devices)
    return jax.tree.map(
        lambda x: NamedSharding(mesh, P('a', 'b') if x.shape == (24, 8) else P()), tree
    )


def test_another_mesh(tmp_path):
    state = toy(5)
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    checkpoints.save(jax.device_put(state, on((8, 1), state)), config=CONFIG)
    assert checkpoints.wait() == 5
    for shape in ((2, 4), (1, 8), (4, 1), (1, 1)):
        places = on(shape, state)
        got = checkpoints.restore(5, placed(state, places))
        assert same(got, state), shape
        assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, got, places)), shape
    assert same(jax.tree.map(jnp.asarray, read_weights(tmp_path, 'ema2')[1]), toy(5).ema['ema2'])


def placed(state, places):
    """What to restore: shapes and dtypes of a state, with shardings."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, places
    )


def test_what_does_not_fit_is_listed(workdir):
    checkpoints = Checkpoints(workdir, keep_last=2)
    state = like(toy(checkpoints.newest()))
    shaped = like(toy(2, size=32))
    with pytest.raises(
        ValueError, match=r'params/final/kernel is float32\[24, 8\] there and float32\[32, 8\] here'
    ):
        checkpoints.restore(2, shaped)
    half = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding), state.params
    )
    with pytest.raises(ValueError, match=r'float32\[8\] there and bfloat16\[8\] here'):
        checkpoints.restore(2, state.replace(params=half))
    with pytest.raises(ValueError, match='params/blocks/w is only there'):
        checkpoints.restore(2, state.replace(params={'final': state.params['final']}))
    with pytest.raises(ValueError, match='ema/ema3/blocks/w is only here'):
        checkpoints.restore(2, state.replace(ema=state.ema | {'ema3': state.params}))


def test_training_on_while_a_save_is_under_way(tmp_path, monkeypatch):
    """A save returns before anything is hashed, and what is written is the state of then, though
    its memory is reused.
    """
    checkpoints = run_with(tmp_path, 1, keep_last=1)
    gate, seal = threading.Event(), manifest.seal
    monkeypatch.setattr(manifest, 'seal', lambda *args: gate.wait(60) and seal(*args))
    step = jax.jit(lambda state: jax.tree.map(lambda x: x * 2 + 1, state), donate_argnums=0)
    big = toy(2).replace(params={'w': jnp.arange(4_000_000.0).reshape(2000, 2000)})
    checkpoints.save(big, config=CONFIG)
    for _ in range(5):
        big = step(big)
    jax.block_until_ready(big)
    assert '2' not in listing(tmp_path)
    gate.set()
    assert checkpoints.wait() == 2
    assert np.array_equal(
        read_weights(tmp_path, 'params')[1]['w'], np.arange(4_000_000.0).reshape(2000, 2000)
    )


def test_a_moved_run_resumes(workdir, toy_run):
    elsewhere = workdir.rename(workdir.with_name('elsewhere'))
    checkpoints = Checkpoints(elsewhere, keep_last=2)
    assert same(checkpoints.restore(checkpoints.newest(), like(toy(2))), toy(2))
    files = [file for file in elsewhere.rglob('*') if file.is_file()]
    assert files and not any(str(toy_run).encode() in file.read_bytes() for file in files)


# What stays.


def test_keep_last_keep_every_and_best_at_once(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_every=4, best=('fid', 'min'))
    fid = {1: 9.0, 2: 8.0, 3: 5.0, 4: float('nan'), 5: 7.0, 6: 6.0, 7: 6.5, 8: 5.5, 9: None}
    for step, value in fid.items():
        checkpoints.save(
            toy(step), config=CONFIG, metrics=None if value is None else {'fid': value}
        )
        assert checkpoints.wait() == step
        assert str(step) in listing(tmp_path)
    assert listing(tmp_path) == ['3', '4', '8', '9']


def test_the_last_good_step_goes_only_after_the_next_is_complete(tmp_path, monkeypatch):
    checkpoints = run_with(tmp_path, 1, keep_last=1)
    gate, seal = threading.Event(), manifest.seal
    monkeypatch.setattr(manifest, 'seal', lambda *args: gate.wait(60) and seal(*args))
    checkpoints.save(toy(2), config=CONFIG)
    assert '1' in listing(tmp_path)
    gate.set()
    checkpoints.wait()
    assert listing(tmp_path) == ['2']


def test_a_complete_step_is_not_saved_again(workdir):
    before = (workdir / 'checkpoints/2').stat()
    checkpoints = Checkpoints(workdir, keep_last=1)
    checkpoints.newest()
    checkpoints.save(toy(2), config=CONFIG)
    assert checkpoints.wait() == 2 and (workdir / 'checkpoints/2').stat() == before


@pytest.mark.parametrize(
    'keep',
    [
        {'keep_last': 0},
        {'keep_last': 1, 'keep_every': -1},
        {'keep_last': 1, 'best': ('fid', 'low')},
    ],
)
def test_rules_that_make_no_sense(tmp_path, keep):
    with pytest.raises(ValueError, match='keep_last and keep_every are at least 1'):
        Checkpoints(tmp_path, **keep)


def test_an_object_store(tmp_path, monkeypatch, caplog):
    """Where nothing can be renamed, a step is written in place and the manifest decides."""
    for module in (checkpoint, storage):
        monkeypatch.setattr(module, 'remote', lambda path: True)
    checkpoints = run_with(tmp_path, 1, 2, 3, keep_last=2)
    assert listing(tmp_path) == ['2', '3']
    (tmp_path / 'checkpoints/3/manifest.json').unlink()
    assert checkpoints.newest() == 2
    assert same(checkpoints.restore(2, like(toy(2))), toy(2))
    assert listing(tmp_path) == ['2', 'damaged-3']


def test_the_docs_are_one_page():
    page = pathlib.Path(__file__).parents[2] / 'docs' / 'checkpoints.md'
    assert len(page.read_text().split()) <= 800  # words
