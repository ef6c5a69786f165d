"""Writes docs/configuration.md from the comments of configs/: `python docs/configuration.py`.

A test holds the two together.
"""

import ast
import sys
from functools import reduce
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
HEAD = """# Configuration

Written by `python docs/configuration.py` from the comments in `configs/`; change those.

Every value is a flag, such as `--config.batch_size=16` or `--config.mesh='(1,-1,1)'`. The values
below are of the preset `configs/uncond.py:imagenet256_b16`, the published recipe; the other presets
change what their own code shows, and `jit-jax train --config=uncond:folder --show` prints all
values of one.

"""
TABLE = '| key | default | |\n|---|---|---|\n'


def recipe() -> list[tuple[str, str, str]]:
    """(key, default, comment) of every assignment to `config.key` in the recipe, in order.

    Its comment stands behind it, or in the lines before it.
    """
    from configs import uncond

    config = uncond.get_config('imagenet256_b16')
    text = (ROOT / 'configs/uncond.py').read_text()
    lines = text.splitlines()
    rows = []
    for function in sections(ast.parse(text)):
        done = function.lineno
        for statement in function.body:
            target = ast.unparse(getattr(statement, 'targets', [ast.Constant('')])[0])
            if target.startswith('config.'):
                key = target.removeprefix('config.')
                value = reduce(lambda section, name: section[name], key.split('.'), config)
                code = ast.get_source_segment(text, statement.value)
                comment = comments(lines[done : statement.end_lineno])
                rows.append((key, default(statement.value, code, value), comment))
            done = statement.end_lineno
    return rows


def sections(tree: ast.Module) -> list[ast.FunctionDef]:
    """The functions that make the published recipe: of the run, and one for each section."""
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [node for node in functions if node.name == 'imagenet' or node.name.startswith('_')]


def comments(lines: list[str]) -> str:
    """The comments of some lines of code, joined."""
    parts = [line.partition('# ')[2] for line in lines]
    return ' '.join(part for part in parts if part)


def default(node: ast.expr, code: str, value) -> str:
    """How a default is shown: as it is written, and what it comes to where that is a product."""
    if code == 'ConfigDict()' or isinstance(node, ast.Constant | ast.Tuple | ast.UnaryOp):
        return code
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return f'{value!r} = {code}'
    return repr(value)


def presets() -> list[tuple[str, str]]:
    """(file, its docstring) of each config file."""
    files = [(name, ROOT / 'configs' / name) for name in ('uncond.py', 'cond.py')]
    return [(name, ast.get_docstring(ast.parse(path.read_text()))) for name, path in files]


def page() -> str:
    """The whole of docs/configuration.md."""
    parts = [HEAD]
    for name, text in presets():
        first, _, commands = text.partition('\n\n')
        parts.append(f'`configs/{name}`: {first}\n\n```\n{commands}\n```\n\n')
    parts.append(f'## The run\n\n{TABLE}')
    for key, value, comment in recipe():
        if value == 'ConfigDict()':
            sentence = f'{comment[0].upper()}{comment[1:]}.'
            parts.append(f'\n## {key}\n\n{sentence}\n\n{TABLE}')
        else:
            escaped = comment.replace('|', '\\|')
            parts.append(f'| `{key}` | `{value}` | {escaped} |\n')
    return ''.join(parts)


if __name__ == '__main__':
    (ROOT / 'docs/configuration.md').write_text(page())
