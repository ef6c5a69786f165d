"""metrics.jsonl: one object a line, whole lines in the order of steps, whatever a disk or a kill
does.
"""

import json

from etils import epath

from jit_jax.output.files import append, write_whole
from jit_jax.output.warnings_once import Trouble


class Lines:
    """A file that grows by a line at a time.

    What a full disk refuses waits, and goes first the next time.
    """

    def __init__(self, path: epath.PathLike, trouble: Trouble):
        self.path, self.trouble = path, trouble
        self.waiting = []

    def add(self, values: dict) -> None:
        """Appends one object; it is in the file when this returns, unless that is in trouble, which
        is said.
        """
        self.waiting.append(json.dumps(values) + '\n')
        self.flush()

    def flush(self) -> None:
        """Appends the lines that wait."""
        if not self.waiting:
            return
        try:
            append(self.path, ''.join(self.waiting))
        except Exception as error:  # noqa: BLE001 - object stores raise their own kinds
            self.trouble.came(error)
        else:
            self.waiting = []
            self.trouble.went()


def read_lines(path: epath.PathLike) -> list[dict]:
    """The objects of a metrics.jsonl, without torn lines; [] where there is no file."""
    path = epath.Path(path)
    if not path.exists():
        return []
    objects = [_object(line) for line in path.read_text().splitlines()]
    return [one for one in objects if one is not None]


def drop_lines_after(path: epath.PathLike, step: int) -> None:
    """Leaves no line after `step` in a metrics.jsonl, and no torn last line.

    Does nothing when there is no file.
    """
    path = epath.Path(path)
    if not path.exists():
        return
    text = path.read_text()
    kept = ''.join(line for line in text.splitlines(keepends=True) if _is_up_to(line, step))
    if kept != text:
        write_whole(path, kept.encode())


def _is_up_to(line: str, step: int) -> bool:
    one = _object(line)
    return line.endswith('\n') and one is not None and one['step'] <= step


def _object(line: str) -> dict | None:
    """What a line says; None of a torn one."""
    try:
        one = json.loads(line)
    except json.JSONDecodeError:
        return None
    return one if isinstance(one, dict) and 'step' in one else None
