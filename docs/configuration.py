"""Writes docs/configuration.md from the comments of configs/: `python docs/configuration.py`. A test holds the two together."""

import ast
import re
import sys
from functools import reduce
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
HEAD = """# Configuration

Written by `python docs/configuration.py` from the comments in `configs/`; change those.

Every value is a flag, such as `--config.batch_size=16` or `--config.mesh='(1,-1,1)'`. The values below are of the preset
`configs/uncond.py:imagenet256_b16`, the published recipe; the other presets change what their own code shows.

"""


def recipe() -> list[tuple[str, str, str]]:
    """(key, default, comment) of every `config.key = value  # comment` of the recipe, in order."""
    from configs import uncond

    config = uncond.get_config('imagenet256_b16')
    text = (ROOT / 'configs/uncond.py').read_text()
    (function,) = (node for node in ast.parse(text).body if getattr(node, 'name', '') == 'imagenet')
    rows = []
    for line in text.splitlines()[function.lineno : function.end_lineno]:
        found = re.fullmatch(r'    config\.([\w.]+) = (.+?)(?:  # (.+))?', line)
        if found:
            value = reduce(lambda part, name: part[name], found[1].split('.'), config)
            code = (
                found[2]
                if found[2] in ('ConfigDict()', repr(value)) or found[2][0] in "('-0123456789TF"
                else repr(value)
            )
            code = f'{value!r} = {found[2]}' if '*' in found[2] else code
            rows.append((found[1], code, found[3] or ''))
    return rows


def presets() -> list[tuple[str, str]]:
    """(file, its docstring) of each config file."""
    return [
        (name, ast.get_docstring(ast.parse((ROOT / 'configs' / name).read_text())))
        for name in ('uncond.py', 'cond.py')
    ]


def page() -> str:
    parts = [HEAD]
    for name, text in presets():
        first, _, rest = text.partition('\n\n')
        parts.append(
            f'`configs/{name}`: {first}\n\n```\n'
            + '\n'.join(line.removeprefix('    ') for line in rest.splitlines())
            + '\n```\n\n'
        )
    for key, value, comment in recipe():
        if value == 'ConfigDict()':
            parts.append(
                f'\n## {key}\n\n{comment[:1].upper() + comment[1:]}{"." if comment else ""}\n\n'.replace(
                    '\n\n\n\n', '\n\n'
                )
                + '| key | default | |\n|---|---|---|\n'
            )
        else:
            if key == 'seed':
                parts.append('## The run\n\n| key | default | |\n|---|---|---|\n')
            parts.append(f'| `{key}` | `{value}` | {comment.replace("|", chr(92) + "|")} |\n')
    return ''.join(parts)


if __name__ == '__main__':
    (ROOT / 'docs/configuration.md').write_text(page())
