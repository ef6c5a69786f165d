"""What `jit-jax COMMAND` runs, one module a command."""
