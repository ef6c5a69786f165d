"""Downloads the Inception weights that FID needs."""

from jit_jax.evaluation.fetch import main

__all__ = ['main']
