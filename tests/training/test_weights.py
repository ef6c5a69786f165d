"""Weights, in and out: of a run, of a step, of an export."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
from toys import CONFIG, biggest, flip, same, toy

from jit_jax.commands import export
from jit_jax.errors import UserError
from jit_jax.training import manifest
from jit_jax.training.weights import read_weights, write_weights


def test_weights_of_a_run_and_of_a_step(workdir):
    for path, step in ((workdir, 2), (workdir / 'checkpoints', 2), (workdir / 'checkpoints/1', 1)):
        for which, tree in {
            'params': toy(step).params,
            **toy(step).ema,
            None: toy(step).ema['ema1'],
        }.items():
            config, got, at = read_weights(path, which)
            assert (config, at) == (CONFIG, step)
            assert same(got, jax.tree.map(np.asarray, tree))


def test_weights_do_not_need_the_optimiser_and_reading_never_writes(workdir):
    for step in '12':
        shutil.rmtree(workdir / 'checkpoints' / step / 'opt')
    flip(biggest(workdir / 'checkpoints/2/ema'), 77)
    before = sorted(workdir.rglob('*'))
    assert read_weights(workdir, 'params')[2] == 2
    assert read_weights(workdir, 'ema1')[2] == 1, 'the newest step with these weights intact'
    assert sorted(workdir.rglob('*')) == before
    with pytest.raises(
        ValueError,
        match='checkpoints/2 holds no intact checkpoint; 2: ema/.* is not what was saved',
    ):
        read_weights(workdir / 'checkpoints/2', 'ema1')


def test_wrong_paths_and_names(workdir):
    with pytest.raises(UserError, match=r'rum does not exist; .* holds run\.'):
        read_weights(workdir.with_name('rum'))
    with pytest.raises(UserError, match='holds no intact checkpoint; name a run in it: run.'):
        read_weights(workdir.parent)
    (workdir.parent / 'empty').mkdir()
    with pytest.raises(UserError, match='holds no intact checkpoint; give a run folder'):
        read_weights(workdir.parent / 'empty')
    with pytest.raises(ValueError, match="has no weights 'ema3'; it has ema1, ema2, params"):
        read_weights(workdir, 'ema3')
    (workdir / 'other.safetensors').write_bytes(b'hello')
    with pytest.raises(ValueError, match='is damaged, or was not written by jit_jax.export'):
        read_weights(workdir / 'other.safetensors')


@pytest.mark.parametrize('name', ['out.safetensors', 'folder'])
@pytest.mark.parametrize('which', ['params', 'ema2'])
def test_exports(workdir, tmp_path, name, which):
    out = tmp_path / 'deep' / name
    said = export.export(str(workdir), which, str(out))
    assert which in said and 'step 2' in said
    config, got, step = read_weights(out)
    assert (config, step) == (CONFIG, 2)
    assert same(got, read_weights(workdir, which)[1])
    with pytest.raises(ValueError, match=f"has no weights 'ema1'; it has {which}"):
        read_weights(out, 'ema1')
    assert not list(out.parent.glob('*.partial'))
    file = out if out.is_file() else biggest(out)
    for bit in range(0, file.stat().st_size * 8, file.stat().st_size * 8 // 20):
        flip(file, bit)
        with pytest.raises(ValueError, match='damaged|intact'):
            read_weights(out)
        flip(file, bit)


def test_exported_arrays_are_plain_safetensors(workdir, tmp_path):
    from safetensors.numpy import load_file

    export.export(str(workdir), 'ema1', str(tmp_path / 'a.safetensors'))
    assert set(load_file(tmp_path / 'a.safetensors')) == {'final/kernel', 'final/bias', 'blocks/w'}


def test_write_weights_is_all_or_nothing(tmp_path, monkeypatch):
    tree = jax.tree.map(np.asarray, toy(0).params)
    with monkeypatch.context() as patch:
        patch.setattr(manifest, 'seal', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_weights(tmp_path / 'run', CONFIG, tree, {})
    assert not (tmp_path / 'run').exists()
    write_weights(tmp_path / 'run', CONFIG, tree, {'ema1': tree, 'ema2': tree}, step=7)
    assert (
        os.listdir(tmp_path) == ['run']
        and json.loads((tmp_path / 'run/config.json').read_text()) == CONFIG
    )
    assert read_weights(tmp_path / 'run', 'ema2')[2] == 7
    with pytest.raises(UserError, match='run is a run folder and is not overwritten'):
        write_weights(tmp_path / 'run', CONFIG, tree, {})


def test_the_export_command(workdir, tmp_path, command, monkeypatch):
    monkeypatch.setattr(export.model_card, 'write', lambda out, *about: f'{out}.md')
    out = f'--out={tmp_path}/x.safetensors'
    code, said, _ = command('export', f'--workdir={workdir}', out)
    assert code == 0 and said.startswith('Wrote ema1 of')
    assert said.endswith(f'Its model card: {tmp_path}/x.safetensors.md\n')
    assert (tmp_path / 'x.safetensors').exists()
    code, _, said = command('export', f'--workdir={workdir}x', out)
    assert code == 1 and 'does not exist' in said and said.count('\n') == 1
