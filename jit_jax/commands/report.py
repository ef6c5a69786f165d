"""Draws a run on one page."""

import json

from etils import epath

from jit_jax import data
from jit_jax.evaluation.page import write
from jit_jax.recipe import build


def main() -> None:
    from absl import flags

    from jit_jax.commands import cli

    workdir = flags.DEFINE_string('workdir', None, 'A run folder.')
    cli.parse()
    with cli.one_sentence():
        if not workdir.value:
            raise ValueError(
                '--workdir says which run to report, for example --workdir=runs/uncond.'
            )
        config = json.loads((epath.Path(workdir.value) / 'config.json').read_text())
        sources = []
        try:
            sources = [build.source(config, split) for split in ('train', 'test')]
        except data.DataError as problem:
            print(f'Without its images: {problem}')
        print(write(workdir.value, config, *sources))


if __name__ == '__main__':
    main()
