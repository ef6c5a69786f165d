"""`jit-jax COMMAND`, or `python -m jit_jax COMMAND`; without a command, a list of them."""

import importlib
import sys

import jit_jax
from jit_jax.commands import environment
from jit_jax.errors import did_you_mean

COMMANDS = {
    'train': 'pre-train without a condition, or fine-tune with one',
    'preview': 'draw what a model is about to train on',
    'embed': 'make embeddings of captions by a text model, to train with',
    'sample': 'draw images from a trained run',
    'evaluate': 'measure a trained run',
    'export': 'write the weights of a run without its optimiser',
    'convert': 'official PyTorch weights to a run folder, or back',
    'compile': 'compile the train step for devices that need not be here',
    'report': 'draw a run on one page',
    'replay': 'find what made the loss of a stopped run not finite',
    'fetch': 'download the Inception weights that FID needs',
}
MODULES = {  # where a command's name would hide a builtin, or is that of another module
    'compile': 'compile_check',
    'preview': 'draw_batch',
}


def main(words: list[str] | None = None, program: str = 'jit-jax') -> None:
    """Runs the command that the first word names. words: those of this process by default.

    Ends the process with exit code 1 after one sentence where the words, or what they name, are
    wrong.
    """
    if words is None:
        environment.restart_with_variables()
        words = sys.argv[1:]
    name, *rest = words or ['--help']
    if name in ('-h', '--help', 'help'):
        print(overview())
    elif name == '--version':
        print(f'jit_jax {jit_jax.__version__}')
    elif name in COMMANDS:
        from jit_jax.commands import command_line

        module = importlib.import_module(f'jit_jax.commands.{MODULES.get(name, name)}')
        command_line.run(module, rest, f'{program} {name}')
    else:
        print(f'error: There is no command {name!r}; {suggestion(name)}', file=sys.stderr)
        sys.exit(1)


def overview() -> str:
    """Every command with a line."""
    lines = [f'  {name:10}{summary}' for name, summary in COMMANDS.items()]
    return '\n'.join(
        [
            'usage: jit-jax COMMAND [--flag=value …]',
            '',
            *lines,
            '',
            'jit-jax COMMAND --help says what it takes. To begin: jit-jax train --config=uncond',
        ]
    )


def suggestion(name: str) -> str:
    """What to type instead of a command that is not there."""
    return did_you_mean(name, COMMANDS, 'jit-jax without a command lists them.')


if __name__ == '__main__':
    main()
