"""A manifest finds every change of what it covers."""

import pathlib

import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import flip

from jit_jax.training import manifest


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_one_flipped_bit_anywhere_is_found(toy_run, data):
    step = epath.Path(toy_run) / 'checkpoints/2'
    manifest.verify(step)
    files = sorted(
        file for file in pathlib.Path(step).rglob('*') if file.is_file() and file.stat().st_size
    )
    file = data.draw(st.sampled_from(files))
    bit = data.draw(st.integers(0, file.stat().st_size * 8 - 1))
    flip(file, bit)
    try:
        with pytest.raises(manifest.Damaged, match=file.name):
            manifest.verify(step)
    finally:
        flip(file, bit)
