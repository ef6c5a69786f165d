"""Damaged steps: named, set aside, never trained on, and never a reason for a fresh start."""

import errno
import os
import pathlib
import shutil

import pytest
from toys import CONFIG, biggest, flip, like, listing, same, toy

from jit_jax.errors import UserError
from jit_jax.training import manifest
from jit_jax.training.checkpoint import Checkpoints


def half_copied(step: pathlib.Path):
    for name in ('params', 'config'):
        shutil.rmtree(step / name)


FAULTS = {
    'a flipped bit': (lambda step: flip(biggest(step / 'opt'), 99), 'is not what was saved'),
    'a truncated file': (
        lambda step: os.truncate(biggest(step / 'ema'), 10),
        'has 10 bytes instead of',
    ),
    'a longer file': (
        lambda step: (step / 'config/metadata').open('a').write(' '),
        'bytes instead of',
    ),
    'a missing file': (
        lambda step: (step / 'params/_METADATA').unlink(),
        'params/_METADATA is missing',
    ),
    'an empty folder': (lambda step: [shutil.rmtree(step), step.mkdir()], 'has no manifest.json'),
    'a half-copied step': (half_copied, 'is missing'),
    'no manifest': (lambda step: (step / 'manifest.json').unlink(), 'has no manifest.json'),
    'an empty manifest': (
        lambda step: os.truncate(step / 'manifest.json', 0),
        'manifest.json is not what was saved',
    ),
    'another manifest': (
        lambda step: (step / 'manifest.json').write_text('[1]'),
        'manifest.json is not what was saved',
    ),
    'another step': (
        lambda step: [shutil.rmtree(step), shutil.copytree(step.parent / '1', step)],
        'it holds step 1',
    ),
}


def files(folder):
    return sorted(file.relative_to(folder) for file in folder.rglob('*'))


@pytest.mark.parametrize('fault', FAULTS)
def test_damage_is_named_and_set_aside(workdir, caplog, fault):
    damage, sentence = FAULTS[fault]
    damage(workdir / 'checkpoints/2')
    with pytest.raises(ValueError, match='cannot be restored: '):
        Checkpoints(workdir, keep_last=2).restore(2, like(toy(2)))
    before = files(workdir / 'checkpoints/2')
    checkpoints = Checkpoints(workdir, keep_last=2)
    assert checkpoints.newest() == 1
    assert same(checkpoints.restore(1, like(toy(1))), toy(1))
    assert (
        len(caplog.records) == 1
        and sentence in caplog.text
        and 'checkpoints/2 is damaged' in caplog.text
    )
    assert listing(workdir) == ['1', 'damaged-2']
    assert files(workdir / 'checkpoints/damaged-2') == before


def test_damage_again_and_again(workdir, caplog):
    """The same step, trained again and damaged again, gets another name."""
    for again in range(2):
        half_copied(workdir / 'checkpoints/2')
        checkpoints = Checkpoints(workdir, keep_last=2)
        assert checkpoints.newest() == 1
        checkpoints.save(toy(2), config=CONFIG)
        assert checkpoints.wait() == 2
    assert listing(workdir) == ['1', '2', 'damaged-2', 'damaged-2-2']


def test_a_fresh_start_after_total_damage_is_refused(workdir, caplog):
    for step in '12':
        half_copied(workdir / 'checkpoints' / step)
    for _ in range(2):
        with pytest.raises(
            UserError,
            match='only damaged steps left; repair them, or, to start over, remove .*run or',
        ):
            Checkpoints(workdir, keep_last=2).newest()
        assert listing(workdir) == ['damaged-1', 'damaged-2'] and len(caplog.records) == 2


def test_steps_whose_manifests_are_gone_had_been_complete(workdir):
    """A step gets its name after its manifest is written; so somebody has lost it, and a fresh
    start would lose more.
    """
    for step in '12':
        (workdir / f'checkpoints/{step}/manifest.json').unlink()
    for _ in range(2):
        with pytest.raises(UserError, match='only damaged steps left.*to start over, remove'):
            Checkpoints(workdir, keep_last=2).newest()
    assert listing(workdir) == ['damaged-1', 'damaged-2']


def test_an_empty_folder_with_a_number_is_no_loss(tmp_path):
    (tmp_path / 'checkpoints/3').mkdir(parents=True)
    assert Checkpoints(tmp_path, keep_last=2).newest() is None


def test_what_cannot_be_read_is_not_damaged(workdir, monkeypatch):
    def broken(file):
        raise OSError(errno.EIO, 'broken', str(file))

    monkeypatch.setattr(manifest, '_sha256', broken)
    with pytest.raises(UserError, match='checkpoints cannot be read: Input/output error'):
        Checkpoints(workdir, keep_last=2).newest()
    assert listing(workdir) == ['1', '2']


def test_strangers_are_left_alone(workdir):
    for name in ('007', 'notes.txt', 'best', '12.old'):
        (workdir / 'checkpoints' / name).mkdir()
    assert Checkpoints(workdir, keep_last=1).newest() == 2
    assert listing(workdir) == ['007', '1', '12.old', '2', 'best', 'notes.txt']
