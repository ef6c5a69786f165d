"""What `jit-jax COMMAND` runs, one module a command.

Such a module has a docstring, whose first paragraph describes the command and whose rest shows
examples; both are what `--help` prints. `define_flags(parser)` adds its flags, and `main(args)`
does the work with what was given.
"""
