"""The steps of a run on its storage: which are there, what is swept away, what is set aside, and
why it failed.
"""

import os
import re

import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from jit_jax.output.files import remote

PARTIAL = '.partial'  # what stands behind the name of a folder that is on its way in or out
HALF = re.compile(rf'\d+({re.escape(PARTIAL)}|\.orbax-checkpoint-tmp).*')


def steps(root: epath.Path) -> list[int]:
    """The numbers of the step folders in `root`, ascending; [] when there is no such folder."""
    if not root.exists():
        return []
    names = [path.name for path in root.iterdir() if path.is_dir()]
    return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))


def staging(root: epath.Path, step: int) -> epath.Path:
    """Where a step is written: beside its place, or in it on an object store without renames."""
    return root / (str(step) if remote(root) else f'{step}{PARTIAL}')


def sweep(root: epath.Path) -> None:
    """Removes steps that were on their way in or out when a process died."""
    if not root.exists():
        return
    for path in root.iterdir():
        if not HALF.fullmatch(path.name):
            continue
        try:
            if path.is_dir():
                path.rmtree()
            else:
                path.unlink()
        except OSError as error:
            logging.info(
                '%s, half a checkpoint, could not be removed yet: %s.', path, reason(error)
            )


def set_aside(folder: epath.Path, problem: Exception) -> None:
    """Renames a damaged step to damaged-<step>, or damaged-<step>-2 and so on, and says so in the
    log.
    """
    aside, again = folder.parent / f'damaged-{folder.name}', 1
    while aside.exists():
        again += 1
        aside = folder.parent / f'damaged-{folder.name}-{again}'
    try:
        folder.rename(aside)
        logging.warning('%s is damaged (%s) and is now %s.', folder, problem, aside.name)
    except OSError as error:
        why = reason(error)
        logging.warning('%s is damaged (%s) and could not be set aside: %s.', folder, problem, why)


def absolute(path: epath.Path) -> epath.Path:
    """A path as Orbax takes it."""
    return path if remote(path) else path.absolute()


def as_items(trees: dict, **texts: dict) -> ocp.args.Composite:
    """Trees of arrays and JSON texts, by name, as the items of one Orbax checkpoint."""
    items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
    items |= {name: ocp.args.JsonSave(text) for name, text in texts.items()}
    return ocp.args.Composite(**items)


def reason(error: Exception) -> str:
    """A few words for an error of the storage, where TensorStore has pages."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    number = int(code[1]) if code else getattr(error, 'errno', None)
    if number:
        return os.strerror(number)
    return ' '.join(str(error).split())[:300] or type(error).__name__


def worth_reading(record) -> bool:
    """A filter of the log: drops the tracebacks that Orbax logs for an error it also raises, as our
    line says it.
    """
    of_orbax = record.exc_info and f'{os.sep}orbax{os.sep}' in record.pathname
    return not of_orbax or logging.get_verbosity() >= logging.DEBUG
