"""A folder that can prove it is what was saved: sizes and SHA-256 of its files, signed, written
last.

Orbax restores a file with a flipped bit without a word; with a manifest the flip has a name.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
from etils import epath

MANIFEST = 'manifest.json'
UNSIGNED = b'0' * 64  # where a file's own hash will stand in it


class Damaged(Exception):
    """A step is not what was saved; the message says what is wrong, as a part of a sentence."""


def verify(folder: epath.Path, *items: str) -> dict:
    """The manifest, when every file (of these items, or of all) is as it was saved.

    Raises Damaged where one is not, and OSError where one cannot be read, which does not make it
    damaged.
    """
    manifest = read(folder)
    if folder.name.isdecimal() and int(folder.name) != manifest['step']:
        raise Damaged(f'it holds step {manifest["step"]}')
    files = manifest['files']
    if items:
        files = {name: about for name, about in files.items() if name.split('/')[0] in items}
    with ThreadPoolExecutor() as pool:
        for problem in pool.map(partial(_problem, folder), files, files.values()):
            if problem:
                raise Damaged(problem)
    return manifest


def _problem(folder: epath.Path, name: str, saved: list) -> str | None:
    """What is wrong with a file that was saved with (bytes, SHA-256)."""
    length, digest = saved
    try:
        found = (folder / name).stat().length
        if found != length:
            return f'{name} has {found} bytes instead of {length}'
        return None if _sha256(folder / name) == digest else f'{name} is not what was saved'
    except (FileNotFoundError, NotADirectoryError):
        return f'{name} is missing'


def read(folder: epath.Path) -> dict:
    """The manifest alone: step, metrics, arrays, files and its own `sha256`. Raises Damaged, or
    OSError.
    """
    try:
        content = (folder / MANIFEST).read_bytes()
        manifest = json.loads(content)
        if sign(content.replace(manifest['sha256'].encode(), UNSIGNED, 1)) == content:
            return manifest
    except FileNotFoundError:
        raise Damaged(f'it has no {MANIFEST}') from None
    except (ValueError, KeyError, TypeError):
        pass
    raise Damaged(f'{MANIFEST} is not what was saved')


def seal(folder: epath.Path, manifest: dict) -> None:
    """Adds to the manifest the size and SHA-256 of every file and writes it: this makes the step
    complete.
    """
    files = [epath.Path(parent) / name for parent, _, names in folder.walk() for name in names]
    for file in files:
        if (
            file.name == 'commit_success.txt'
        ):  # Orbax notes the folder's address; but a run may move
            file.write_text('')
    with ThreadPoolExecutor() as pool:
        saved = list(pool.map(_size_and_hash, files))
    names = [str(file.relative_to(folder)) for file in files]
    manifest = {'sha256': UNSIGNED.decode(), **manifest, 'files': dict(zip(names, saved))}
    (folder / MANIFEST).write_bytes(sign(json.dumps(manifest, indent=1).encode()))


def sign(content: bytes) -> bytes:
    """Puts the SHA-256 of `content`, in which it says UNSIGNED, in the place of that word."""
    return content.replace(UNSIGNED, hashlib.sha256(content).hexdigest().encode(), 1)


def arrays(items: dict) -> dict[str, str]:
    """The arrays of a tree by name, as in {'params/final/bias': 'float32[12]'}."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(items)
    return {
        jax.tree_util.keystr(path, simple=True, separator='/'): f'{x.dtype}{list(x.shape)}'
        for path, x in leaves
    }


def _size_and_hash(file: epath.Path) -> tuple[int, str]:
    return file.stat().length, _sha256(file)


def _sha256(file: epath.Path) -> str:
    digest = hashlib.sha256()
    with file.open('rb') as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
