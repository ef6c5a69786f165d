"""From a command line to values: flags by argparse, `--config` and its keys by ml_collections.

What is wrong with the words becomes a UserError, and `run` alone turns a UserError into one
sentence and exit code 1.
"""

import argparse
import ast
import logging
import math
import os
import re
import sys
from collections.abc import Callable
from types import ModuleType

from absl import flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from jit_jax import configs
from jit_jax.errors import UserError, did_you_mean, nearest_first

CONFIG_KEYS = """\
Every key of the config is a flag too, such as --config.batch_size=16 or --config.mesh='(1,-1,1)';
the keys and what they mean are in docs/configuration.md and in the comments of configs/uncond.py.
`jit-jax train --list` has the presets."""

WANTED = {  # what a value must be, by how Python complains of it
    'invalid literal for int': 'a whole number',
    'could not convert string to float': 'a number',
    r"\('Non-boolean argument": 'true or false',
}


def run(command: ModuleType, words: list[str], program: str) -> None:
    """Runs a command: a module with a docstring, `define_flags(parser)` and `main(args)`.

    A UserError ends the process with its sentence and exit code 1; every other exception keeps its
    traceback.
    """
    root = logging.getLogger()
    if not any(isinstance(handler, _Notices) for handler in root.handlers):
        root.addHandler(_Notices(logging.WARNING))  # what libraries merely tell is left out
    try:
        parser = Parser(command, program)
        command.main(parser.parse(words))
    except UserError as error:
        print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
        sys.exit(1)


class _Notices(logging.Handler):
    """Warnings as ordinary lines, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(record.getMessage(), file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """The flags of one command, whose docstring is the help. What is wrong is a UserError."""

    def __init__(self, command: ModuleType, program: str):
        description, _, examples = command.__doc__.partition('\n\n')
        super().__init__(
            prog=program,
            usage=f'{program} [--flag=value …]',
            description=description,
            epilog=examples,
            formatter_class=_Help,
            allow_abbrev=False,
        )
        self.takes_config = False
        command.define_flags(self)

    def define_config(self, what: str) -> None:
        """Adds `--config=NAME[:PRESET]` and a flag for each of its keys."""
        self.takes_config = True
        self.add_argument('--config', metavar='FILE[:PRESET]', help=what)
        self.epilog = f'{self.epilog.rstrip()}\n\n{CONFIG_KEYS}'
        self.define_import('; the run remembers it, as --config.condition.module')

    def define_import(
        self, more: str = '; a run that was trained with --import remembers it'
    ) -> None:
        """Adds `--import=MODULE`, for conditions of the user's own."""
        what = f'a Python module with conditions of your own{more}'
        self.add_argument('--import', dest='module', metavar='MODULE', help=what)

    def parse(self, words: list[str]) -> argparse.Namespace:
        """Words → values by flag; with a config, also `config`, a ConfigDict, and `config_name`."""
        args, rest = self.parse_known_args(list(map(_at_home, words)))
        overrides = []
        while self.takes_config and rest and re.match(r'--(no)?config\.', rest[0]):
            overrides.append(rest.pop(0))
            if '=' not in overrides[-1] and rest and not rest[0].startswith('--'):
                overrides.append(rest.pop(0))  # --config.steps 5
        if rest:
            raise UserError(self._stray(rest[0], args))
        if self.takes_config:
            args.config, args.config_name = self._config(args.config, overrides)
        if getattr(args, 'module', None):
            from jit_jax.recipe import kinds  # here, so that --help is quick

            kinds.import_module(args.module, '--import')
            if self.takes_config and args.config is not None:
                args.config.condition.module = args.module
        return args

    def error(self, message: str) -> None:
        """argparse's own complaint: 'argument --num: expected one argument'."""
        raise UserError(f'{message.removeprefix("argument ").rstrip(".")}.')

    def _stray(self, word: str, args: argparse.Namespace) -> str:
        if not word.startswith('-'):
            return f'{word!r} is not a flag; write --name=value.'
        flag = word.partition('=')[0]
        keys = []
        if self.takes_config:  # --steps for --config.steps
            from jit_jax.recipe.checks import keys_of  # here, so that --help is quick

            config = read_config(args.config or packaged_configs()[0], [])
            wanted = flag.lstrip('-').removeprefix('config.')
            keys = [key for key in keys_of(config) if f'.{key}'.endswith(f'.{wanted}')]
        if keys:
            hint = f'did you mean --config.{min(keys, key=len)}?'
        else:
            hint = did_you_mean(flag, self._option_string_actions, 'see --help.')
        return f'There is no flag {flag}; {hint}'

    def _config(self, named: str | None, overrides: list[str]) -> tuple[ConfigDict | None, str]:
        if named is not None:
            return read_config(named, overrides), config_name(named)
        if overrides:
            raise UserError(f'{overrides[0]} changes a config; name it first, {example_config()}.')
        return None, ''


def _at_home(word: str) -> str:
    """`--workdir=~/runs` with the folder that ~ stands for: bash leaves it as it is after a =."""
    flag, _, value = word.partition('=')
    if flag.startswith('--') and value.startswith('~/'):
        return f'{flag}={os.path.expanduser(value)}'
    return word


class _Help(argparse.RawDescriptionHelpFormatter):
    """Docstrings as they are written, and after each flag its default where it has one."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28, width=100)

    def _get_help_string(self, action: argparse.Action) -> str:
        if isinstance(action.default, bool) or action.default in (None, '', argparse.SUPPRESS):
            return action.help
        return f'{action.help} (default: %(default)s)'


def whole_number(at_least: int, below: int | None = None) -> Callable[[str], int]:
    """The type of a flag that is a whole number, `at_least` or more, and below another if given."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or number < at_least or (below is not None and number >= below):
            most = '' if below is None else f' and at most {below - 1}'
            raise argparse.ArgumentTypeError(
                f'must be a whole number, at least {at_least}{most}; got {text!r}'
            )
        return number

    return parse


def finite_number(text: str) -> float:
    """The type of a flag that is a number, neither NaN nor infinite."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f'must be a number; got {text!r}')
    return number


def below_one(text: str) -> float:
    """The type of a flag that is a number from 0 to below 1."""
    number = finite_number(text)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f'must be a number from 0 to below 1; got {text!r}')
    return number


def block_numbers(text: str) -> tuple[int, ...]:
    """The type of a flag that is numbers of blocks: '2,4' → (2, 4)."""
    return tuple(map(whole_number(0), text.split(',')))


def define_skip(add: Callable) -> None:
    """The flags of guidance by the network without some of its blocks; `add` adds an argument."""
    add(
        '--skip_blocks',
        type=block_numbers,
        metavar='I,J',
        help="guides away from the same network without these blocks; the run's own by default",
    )
    add('--skip_scale', type=finite_number, help="of that guidance, 1 is none; the run's own")


def sampler_changes(args: argparse.Namespace) -> dict:
    """What the flags say of how images are drawn, None where the run's own way stays."""
    names = ('steps', 'sampler', 'guidance', 't_eps', 'skip_blocks', 'skip_scale')
    return {name: getattr(args, name) for name in names}


def words(text: str) -> list[str]:
    """The type of a flag that is a list, written with commas: 'a,b' → ['a', 'b']."""
    found = [word.strip() for word in text.split(',')]
    if not all(found):
        raise argparse.ArgumentTypeError(f'must be values with commas between; got {text!r}')
    return found


def required(args: argparse.Namespace, name: str, what: str) -> None:
    """Raises UserError, 'what' being its words, unless the flag of that name was given."""
    if not getattr(args, name):
        raise UserError(f'--{name} {what}')


def config_path(path: str) -> str:
    """The file that `--config=path` means: the path itself, or else a config of the package by its
    name.

    'uncond', 'uncond.py' and 'configs/uncond.py' are the package's where there is no such file.
    """
    if os.path.isfile(path):
        if not path.endswith('.py'):
            raise UserError(f'--config names a Python file such as configs/uncond.py; got {path}.')
        return path
    name = os.path.basename(path).removesuffix('.py')
    packaged = os.path.join(os.path.dirname(configs.__file__), f'{name}.py')
    ours = path in (name, f'{name}.py', f'configs/{name}.py', f'configs/{name}')
    if ours and name in packaged_configs():
        return packaged
    known = packaged_configs()
    there = f'--config names one of {", ".join(known)} or a file such as configs/uncond.py'
    raise UserError(
        nearest_first(f'There is no {path}', name, known, f'{there}, with :preset after it')
    )


def packaged_configs() -> list[str]:
    """The names of the configs that are installed with the package."""
    folder = os.path.dirname(configs.__file__)
    names = (file.removesuffix('.py') for file in os.listdir(folder) if file.endswith('.py'))
    return sorted((name for name in names if not name.startswith('_')), reverse=True)


def example_config() -> str:
    """The flag for the first config, as it works from here: by its path in a clone, by its name
    elsewhere.
    """
    path = 'configs/uncond.py'
    return f'--config={path if os.path.isfile(path) else "uncond"}'


def config_name(named: str) -> str:
    """`uncond` for configs/uncond.py, `uncond-imagenet256_b16` for a preset of it."""
    path, _, preset = named.partition(':')
    name = os.path.basename(path).removesuffix('.py')
    return f'{name}-{preset}' if preset else name


def read_config(named: str, overrides: list[str]) -> ConfigDict:
    """The config of a file and preset ('configs/uncond.py:folder') with `--config.key=value` words
    applied, locked.

    Raises UserError for a file, preset, key or value that cannot be.
    """
    path, colon, preset = named.partition(':')
    file = config_path(path)
    _check_python(file)
    argv = ['jit-jax', f'--config={file}{colon}{preset}', *overrides]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
    try:
        stray = values(argv)[1:]
    except (AttributeError, KeyError, TypeError) as error:
        problem = _no_such_key(named, overrides) if overrides else ''
        if not problem and isinstance(error, TypeError):
            raise
        problem = problem or f'{file} cannot be read ({" ".join(str(error).split())}); mend it.'
        raise UserError(problem) from error
    except ImportError as error:
        raise UserError(f'{file} cannot be imported ({error}); install it or mend it.') from error
    except flags.Error as error:
        # What a config file raised itself is the last line of a traceback.
        words = str(error).strip().rpartition('Error: ')[2]
        raise UserError(
            _wrong_value(words) or f'{words.rstrip(".")}.'.replace('?.', '?')
        ) from error
    if stray:
        raise UserError(f'{stray[0]!r} is not a flag; write --name=value.')
    if not isinstance(values.config, ConfigDict):
        raise UserError(f'get_config of {file} must return a ConfigDict; got {values.config!r}.')
    return values.config


def _check_python(file: str) -> None:
    """Raises UserError for a config file that is no Python, or lacks what a config needs."""
    with open(file, 'rb') as opened:
        source = opened.read()
    try:
        ast.parse(source, file)
    except (SyntaxError, ValueError) as error:
        line = f', line {error.lineno}' if isinstance(error, SyntaxError) else ''
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise UserError(f'{file}{line} is not Python ({reason}); mend it.') from error
    if b'get_config' not in source:
        raise UserError(
            f'{file} has no get_config; write one that returns a config, as configs/uncond.py has.'
        )


def _wrong_value(words: str) -> str:
    """absl's 'flag --config.steps=abc: invalid literal …' in plain words; '' where it is no such
    thing.
    """
    for complaint, wanted in WANTED.items():
        found = re.fullmatch(rf'flag (--\S+?)=(.*): {complaint}.*', words)
        if found:
            return f'{found[1]} must be {wanted}; got {found[2]!r}.'
    return ''


def _no_such_key(named: str, overrides: list[str]) -> str:
    """Which key of the words the config does not have, and which was perhaps meant; '' where it has
    them all.
    """
    from jit_jax.recipe.checks import keys_of  # here, so that --help is quick

    keys = list(keys_of(read_config(named, [])))
    for word in overrides:
        section, rest = '', word.partition('=')[0].partition('config.')[2]
        while rest:
            key, _, rest = rest.partition('.')
            if section in keys:
                return f'config.{section} is a value and has no {key}; leave .{key} out.'
            inside = [one.removeprefix(section) for one in keys if one.startswith(section)]
            there = dict.fromkeys(one.lstrip('.').partition('.')[0] for one in inside)
            if key not in there:
                hint = _meant(key, section, keys) or did_you_mean(key, there)
                hint = hint or f'config{section and "."}{section} has {", ".join(there)}.'
                return f'There is no config key {key}; {hint}'
            section = f'{section}.{key}'.lstrip('.')
    return ''


def _meant(key: str, section: str, keys: list[str]) -> str:
    """The keys whose names have this one in them, in its section or else anywhere; '' for none."""
    beside = [one for one in keys if one.rpartition('.')[0] == section]
    near = [one for one in beside if key in one.rpartition('.')[2].split('_')]
    near = near or [one for one in keys if one.rpartition('.')[2] == key]
    return f'did you mean {" or ".join(near)}?' if near else ''
