"""The one kind of error that a user can cause and mend."""

import difflib
import reprlib
from collections.abc import Iterable


class UserError(ValueError):
    """What cannot be done as asked; the message is one sentence that names the fix.

    A command ends with that sentence and exit code 1. Every other exception is a bug of ours and
    keeps its traceback.
    """


def shown(value) -> str:
    """What was given, on one short line."""
    text = ' '.join(reprlib.repr(value).split())
    return text if len(text) <= 60 else f'{text[:59]}…'


def did_you_mean(word: str, names: Iterable[str], otherwise: str = '') -> str:
    """'did you mean X?', X the name that looks most like the word; `otherwise` where none does."""
    near = difflib.get_close_matches(word, list(names), 1)
    return f'did you mean {near[0]}?' if near else otherwise


def nearest_first(problem: str, word: str, names: Iterable[str], there: str) -> str:
    """What is wrong, the name that was perhaps meant, and then what there is, which may be long.

    'problem: did you mean X? There is.' where a name looks like the word, else 'problem; there is.'
    """
    near = did_you_mean(word, names)
    if near:
        return f'{problem}: {near} {there[0].upper()}{there[1:]}.'
    return f'{problem}; {there}.'
