"""The recipes. `jit_jax.configs` is this folder too, for an installed package to bring it along."""
