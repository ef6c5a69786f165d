"""A folder that can prove it is what was saved: sizes and SHA-256 of its files, signed, written last.

Orbax restores a file with a flipped bit without a word; with a manifest the flip has a name.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

from etils import epath

MANIFEST = 'manifest.json'
UNSIGNED = b'0' * 64  # where a file's own hash will stand in it


class Damaged(ValueError):
    """A step is not what was saved; the message says what is wrong, as a part of a sentence."""


def verify(folder: epath.Path, *items: str) -> dict:
    """The manifest, when every file (of these items) is as it was saved; else raises Damaged, or OSError if unreadable."""
    manifest = read(folder)
    if folder.name.isdecimal() and int(folder.name) != manifest['step']:
        raise Damaged(f'it holds step {manifest["step"]}')

    def problem(entry) -> str | None:
        name, (length, digest) = entry
        try:
            found = (folder / name).stat().length
            if found != length:
                return f'{name} has {found} bytes instead of {length}'
            return None if _sha256(folder / name) == digest else f'{name} is not what was saved'
        except (FileNotFoundError, NotADirectoryError):
            return f'{name} is missing'

    files = {
        name: found
        for name, found in manifest['files'].items()
        if not items or name.split('/')[0] in items
    }
    with ThreadPoolExecutor() as pool:
        for found in filter(None, pool.map(problem, files.items())):
            raise Damaged(found)
    return manifest


def read(folder: epath.Path) -> dict:
    try:
        content = (folder / MANIFEST).read_bytes()
        manifest = json.loads(content)
        if sign(content.replace(manifest['sha256'].encode(), UNSIGNED, 1)) == content:
            return manifest
    except FileNotFoundError:
        raise Damaged(f'it has no {MANIFEST}, so it was never complete') from None
    except (ValueError, KeyError, TypeError):
        pass
    raise Damaged(f'{MANIFEST} is not what was saved')


def seal(folder: epath.Path, manifest: dict) -> None:
    """Adds to the manifest the size and SHA-256 of every file and writes it: this makes the step complete."""
    files = [epath.Path(parent) / name for parent, _, names in folder.walk() for name in names]
    for file in files:
        if (
            file.name == 'commit_success.txt'
        ):  # Orbax notes the folder's address here; but a run may move
            file.write_text('')
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda file: (file.stat().length, _sha256(file)), files))
    manifest = manifest | {
        'files': {str(file.relative_to(folder)): each for file, each in zip(files, found)}
    }
    (folder / MANIFEST).write_bytes(
        sign(json.dumps({'sha256': UNSIGNED.decode(), **manifest}, indent=1).encode())
    )


def sign(content: bytes) -> bytes:
    """Puts the SHA-256 of `content`, in which it says UNSIGNED, in the place of that word."""
    return content.replace(UNSIGNED, hashlib.sha256(content).hexdigest().encode(), 1)


def _sha256(file: epath.Path) -> str:
    digest = hashlib.sha256()
    with file.open('rb') as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
