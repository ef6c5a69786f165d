"""Settings of the compiler, which a process must make before JAX makes its devices."""

import os

import jax
import pytest

from jit_jax.hardware import compiler


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    """This process's own settings, put back afterwards."""
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
    monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=8')
    yield
    jax.config.update('jax_compilation_cache_dir', before)


def test_programs_are_kept_in_a_folder_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    compiler.configure()
    folder = tmp_path / '.cache/jit_jax/xla'
    assert folder.is_dir() and jax.config.jax_compilation_cache_dir == str(folder)


@pytest.mark.parametrize('cache', ['', '/proc/nowhere/xla'])
def test_no_folder_and_one_that_cannot_be_written_are_no_cache(cache):
    jax.config.update('jax_compilation_cache_dir', None)
    compiler.configure(cache=cache)
    assert jax.config.jax_compilation_cache_dir is None


def test_the_environment_goes_before_the_config(monkeypatch, tmp_path):
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', 'elsewhere')
    before = jax.config.jax_compilation_cache_dir
    compiler.configure(cache=str(tmp_path / 'xla'))
    assert jax.config.jax_compilation_cache_dir == before and not (tmp_path / 'xla').exists()


def test_deterministic_operations_are_a_flag_beside_others():
    compiler.configure(deterministic=False, cache='')
    assert os.environ['XLA_FLAGS'] == '--xla_force_host_platform_device_count=8'
    for _ in range(2):
        compiler.configure(deterministic=True, cache='')
        assert os.environ['XLA_FLAGS'] == (
            '--xla_force_host_platform_device_count=8 --xla_gpu_deterministic_ops=true'
        )


def test_the_compiler_knows_the_flag():
    """In the environment, one that it does not know would end the process."""
    name, _, value = compiler.DETERMINISTIC.removeprefix('--').partition('=')
    lowered = jax.jit(lambda x: x + 1).lower(1.0)
    assert lowered.compile({name: value == 'true'})(1.0) == 2
    with pytest.raises(Exception, match='xla_gpu_deterministic_opz'):
        lowered.compile({'xla_gpu_deterministic_opz': True})
