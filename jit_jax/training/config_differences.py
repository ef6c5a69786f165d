"""What differs between two runs, in words."""

import json
from collections.abc import Iterable


def differences(there: dict, here: dict, prefix: str = '') -> list[str]:
    """A readable line for each name whose value differs; values of `there` first, then names of one
    side alone.
    """
    lines = [
        f'{prefix}{name} is {there[name]} there and {here[name]} here'
        for name in there
        if name in here and there[name] != here[name]
    ]
    lines += [f'{prefix}{name} is only there' for name in there if name not in here]
    lines += [f'{prefix}{name} is only here' for name in here if name not in there]
    return lines


def changed_keys(a: dict, b: dict, prefix: str = '') -> list[str]:
    """Keys of two configs whose values differ or that only one has, as `data.path`, sorted."""
    keys = []
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b:
            keys.append(prefix + name)
        elif isinstance(a[name], dict) and isinstance(b[name], dict):
            keys += changed_keys(a[name], b[name], f'{prefix}{name}.')
        elif json.dumps(a[name]) != json.dumps(b[name]):  # in which a tuple is a list
            keys.append(prefix + name)
    return keys


def listed(names: Iterable[str], most: int = 8) -> str:
    """Names in order, separated by commas, and how many more there are; 'nothing' for none."""
    names = sorted(names)
    more = [f'and {len(names) - most} more'] if len(names) > most else []
    return ', '.join(names[:most] + more) or 'nothing'
