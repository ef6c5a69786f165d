"""`jit-jax` and its commands: help, names that are not there, configs and their keys."""

import ast
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import absl.logging
import pytest
from shell import ROOT

import jit_jax
from configs import uncond
from jit_jax import configs
from jit_jax.__main__ import COMMANDS, MODULES, main
from jit_jax.commands import command_line, train
from jit_jax.commands.command_line import Parser, read_config
from jit_jax.errors import UserError
from jit_jax.recipe import checks


def module(name: str):
    return importlib.import_module(f'jit_jax.commands.{MODULES.get(name, name)}')


def parsed(command, *words):
    return Parser(command, 'jit-jax x').parse(words)


def said(capsys, *words) -> str:
    """What a command line that cannot be says: one sentence, with exit code 1."""
    with pytest.raises(SystemExit) as end:
        main(list(words))
    shown = capsys.readouterr()
    assert end.value.code == 1 and shown.out == ''
    assert shown.err.startswith('error: ') and shown.err.count('\n') == 1
    return shown.err


def test_alone_it_lists_the_commands(capsys):
    for words in ([], ['--help'], ['-h']):
        main(words)
        lines = capsys.readouterr().out.splitlines()
        for name, summary in COMMANDS.items():
            assert f'  {name:10}{summary}' in lines


def test_an_unknown_command_suggests_the_nearest(capsys):
    assert 'did you mean sample?' in said(capsys, 'smaple')
    assert 'without a command lists them' in said(capsys, 'xyz')


@pytest.mark.parametrize('flag', ['--help', '-h'])
@pytest.mark.parametrize('name', COMMANDS)
def test_help_is_about_this_command_alone(name, flag, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, flag])
    text = capsys.readouterr().out
    assert end.value.code == 0
    description, _, examples = module(name).__doc__.partition('\n\n')
    assert text.startswith(f'usage: jit-jax {name} ') and f'jit-jax {name}' in examples
    assert ' '.join(description.split()) in ' '.join(text.split())
    assert examples.strip() in text
    assert (
        len(text.splitlines()) < 75
        and 'absl' not in text
        and max(map(len, text.splitlines())) < 130
    )
    # A default is shown where there is one, and no other.
    assert 'None' not in text and ('(default: 16)' in text) == (name == 'sample')
    assert ('--config.batch_size=16' in text) == (name in ('train', 'compile', 'preview', 'embed'))


def test_help_of_train_py():
    done = subprocess.run(
        [sys.executable, os.path.join(ROOT, 'train.py'), '-h'], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == '' and 'jit-jax train --list' in done.stdout


def test_every_preset_has_a_line(capsys):
    main(['train', '--list'])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(set(lines)) > 20 and all(len(line.split()) > 3 for line in lines)
    for line in lines:
        config = read_config(line.split()[0], [])
        assert config.model.variant in line or 'imagenet' not in line
        assert ('class labels' in line) == (config.condition.kind == 'class')
    assert {line.split()[0] for line in lines} >= {'uncond:digits', 'cond:pairs'}


def test_packaged_configs_are_found_without_a_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for named in ('uncond:folder', 'uncond.py:folder', 'configs/uncond.py:folder'):
        args = parsed(train, f'--config={named}', '--config.data.path=photos')
        assert args.config.data.kind == 'folder' and args.config.data.path == 'photos'
        assert args.config_name == 'uncond-folder'
    assert parsed(train, '--config', 'cond').config_name == 'cond'
    (tmp_path / 'uncond').mkdir()  # a folder is no config
    assert command_line.config_path('uncond') == os.path.join(configs.__path__[0], 'uncond.py')
    # A file of one's own goes first.
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs/uncond.py').write_text(
        'from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({"mine": 1})\n'
    )
    assert parsed(train, '--config=configs/uncond.py', '--config.mine=2').config.mine == 2


def test_the_package_needs_no_clone():
    """Its modules import `jit_jax.configs`, not the folder `configs` that only a clone has."""
    for path in Path(jit_jax.__path__[0]).rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.module.split('.')[0] != 'configs', path
            if isinstance(node, ast.Import):
                assert not [n for n in node.names if n.name.split('.')[0] == 'configs'], path


def test_keys_of_a_config_are_flags():
    words = ['--config.steps=7', '--config.mesh=(1,8,1)', '--config.seed', '3']
    words += ['--config.sample.guidance=2.5', '--config.data.flip=false', '--noconfig.compute.scan']
    config = parsed(train, '--config=uncond', *words).config
    assert (config.steps, config.seed, config.mesh) == (7, 3, (1, 8, 1))
    assert config.sample.guidance == 2.5 and not config.data.flip and not config.compute.scan
    with pytest.raises(AttributeError):  # locked
        config.setps = 3
    # Order does not matter, and references hold: epochs follow the batch size.
    config = parsed(train, '--config.batch_size=512', '--config=uncond:imagenet256_b16').config
    assert config.batch_size == 512 and config.steps == 600 * (1_281_167 // 512)


REFUSED = [
    ((), '--config says what to run, for example --config='),
    (('--config.steps=3',), 'name it first, --config='),
    (
        ('--config=uncnod',),
        'There is no uncnod: did you mean uncond? --config names one of uncond, ',
    ),
    (
        ('--config=uncond:digit',),
        "no preset 'digit': did you mean digits? This file has digits, fol",
    ),
    (('--config=uncond', '--config.stepz=3'), 'no config key stepz; did you mean steps?'),
    (('--config=uncond', '--config.model.varian=B'), 'no config key varian; did you mean variant?'),
    (('--config=uncond', '--config.optimizer.lr=1'), 'key lr; did you mean optimizer.base_lr?'),
    (('--config=uncond', '--config.decays=1'), 'no config key decays; did you mean ema.decays?'),
    (('--config=uncond', '--config.sample.qqq=1'), 'no config key qqq; config.sample has every, g'),
    (('--config=uncond', '--config.zzz.qqq=1'), 'no config key zzz; config has accumulate, bat'),
    (('--config=uncond', '--config.steps.x=1'), 'config.steps is a value and has no x; leave .x'),
    (('--config=uncond', '--config.mesh.a=1'), 'config.mesh is a value and has no a; leave .a out'),
    (('--config=uncond', '--config.steps=many'), 'config.steps'),
    (('--config=uncond', 'stray'), "'stray' is not a flag; write --name=value."),
    (('--config=uncond', '--config.steps', '3', 'stray'), "'stray' is not a flag"),
    (('--config=uncond', '--wrkdir=x'), 'There is no flag --wrkdir; did you mean --workdir?'),
    (('--config=uncond', '--workdir'), '--workdir: expected one argument.'),
    (('--config=uncond', '--num_processes=two'), "--num_processes: invalid int value: 'two'."),
]


@pytest.mark.parametrize('words, sentence', REFUSED, ids=lambda x: ' '.join(x)[:40])
def test_words_that_cannot_be(words, sentence, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert sentence in said(capsys, 'train', *words)
    assert not os.listdir(tmp_path)


def test_only_what_a_user_can_cause_becomes_a_sentence(capsys):
    """A mistake of ours keeps its traceback."""

    class Command:
        """Fails.\n\nexamples: none"""

        error = UserError('do this')

        @staticmethod
        def define_flags(parser):
            parser.add_argument('--x')

        @classmethod
        def main(cls, args):
            raise cls.error

    with pytest.raises(SystemExit) as end:
        command_line.run(Command, ['--x=1'], 'jit-jax fail')
    assert end.value.code == 1 and capsys.readouterr().err == 'error: do this\n'
    for kind in (AttributeError, KeyError, TypeError, ValueError, OSError, MemoryError):
        mistake = kind('ours')
        Command.error = mistake
        with pytest.raises(kind):
            command_line.run(Command, [], 'jit-jax fail')


def test_notices_are_ordinary_lines(capsys):
    class Command:
        """Warns.\n\nexamples: none"""

        @staticmethod
        def define_flags(parser):
            pass

        @staticmethod
        def main(args):
            absl.logging.warning('Skipping %s.', 'a.png')
            absl.logging.info('nothing')

    for _ in range(2):
        command_line.run(Command, [], 'jit-jax warn')
        assert capsys.readouterr().err == 'Skipping a.png.\n'


def test_the_verbs_are_functions_that_no_module_hides():
    for name in ('load', 'sample', 'train'):
        verb = getattr(jit_jax, name)
        assert inspect.isfunction(verb) and verb.__module__ == 'jit_jax' and verb.__doc__
        assert importlib.util.find_spec(f'jit_jax.{name}') is None


def test_a_config_that_only_train_lists(command, monkeypatch):
    """`--list` needs no config, and nothing else does without."""
    code, out, err = command('train', '--list')
    assert code == 0 and err == '' and out == train.presets() + '\n'


def test_the_whole_config_is_shown_and_nothing_run(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = command('train', '--config=uncond:folder_cpu', '--config.steps=44', '--show')
    assert code == 0 and err == '' and not os.listdir(tmp_path)
    shown = out.splitlines()
    for line in ('steps = 44', "data.kind = 'folder'", 'optimizer.warmup = 2', 'mesh = (-1, 1, 1)'):
        assert f'config.{line}' in shown  # warmup follows steps
    assert len(shown) == len(list(checks.keys_of(uncond.get_config())))


def test_a_reader_may_stop_listening(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, 'w') as closed:
        monkeypatch.setattr(sys, 'stdout', closed)
        train.show('to nobody')
        train.show('nor this')
        assert os.path.samestat(os.fstat(closed.fileno()), os.stat(os.devnull))
