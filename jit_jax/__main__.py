"""`jit-jax COMMAND`, or `python -m jit_jax COMMAND`; without a command, a list of them."""

import importlib
import sys

COMMANDS = {
    'train': 'pre-train without a condition, or fine-tune with one',
    'sample': 'draw images from a trained run',
    'evaluate': 'measure a trained run',
    'export': 'write the weights of a run without its optimiser',
    'convert': 'official PyTorch weights to a run folder, or back',
    'compile': 'compile the train step for devices that need not be here',
    'report': 'draw a run on one page',
    'replay': 'find what made the loss of a stopped run not finite',
    'fetch': 'download the Inception weights that FID needs',
}
MODULES = {'compile': 'compile_check'}


def main() -> None:
    """Runs the command that the first word of the command line names."""
    name = sys.argv[1] if len(sys.argv) > 1 else ''
    if name not in COMMANDS:
        print('usage: jit-jax COMMAND [--flag=value …]')
        for command, summary in COMMANDS.items():
            print(f'  {command:10}{summary}')
        sys.exit(0 if name in ('', '-h', '--help') else 1)
    sys.argv = [f'jit-jax {name}', *sys.argv[2:]]
    importlib.import_module(f'jit_jax.commands.{MODULES.get(name, name)}').main()


if __name__ == '__main__':
    main()
