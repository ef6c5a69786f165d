"""The recipes. `jit_jax.configs` is this folder too, so that an installed package brings them along."""
