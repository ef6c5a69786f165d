"""Downloads a file whose name carries its hash, such as the weights of the FID Inception.

The name ends in the first eight hex digits of its SHA-256, and only a file that has them is put in
place.
"""

import hashlib
import http.client
import os
import re
import shutil
import urllib.request
from pathlib import Path

from jit_jax.errors import UserError

URL = (
    'https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/'
    'pt_inception-2015-12-05-6726825d.pth'
)
_TIMEOUT = 60  # seconds without a byte


def default_path() -> Path:
    """Where the weights are kept unless the user says otherwise: in $XDG_CACHE_HOME or ~/.cache."""
    cache = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(cache) / 'jit_jax' / URL.rsplit('/', 1)[1]


def fetch(path, url: str = URL) -> None:
    """Downloads `url` to `path` unless that file is there already, and checks its hash either way.

    Nothing appears at `path` before the whole download is verified, and a file that is there is
    never replaced. Raises UserError for a URL without a hash in its name, a file with another hash,
    and a download or a write that fails.
    """
    match = re.search(r'-([0-9a-f]{8})\.\w+$', url)
    if not match:
        raise UserError(
            f'--url={url} does not end in the eight hex digits of a hash, as '
            'name-0123abcd.pth does.'
        )
    path = Path(path)
    try:
        if path.exists():
            _verify(path, match[1], f'The file at {path}')
        else:
            _download(path, url, match[1])
    except (OSError, http.client.HTTPException) as error:
        reason = str(error) or type(error).__name__
        raise UserError(
            f'Could not fetch {url} to {path}: {reason}; try --url with a mirror, or another --out.'
        ) from error


def _download(path: Path, url: str, prefix: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response, open(part, 'wb') as file:
            shutil.copyfileobj(response, file)
        _verify(part, prefix, f'What arrived from {url}')
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _verify(path: Path, prefix: str, subject: str) -> None:
    with open(path, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    if not digest.startswith(prefix):
        raise UserError(
            f'{subject} has a SHA-256 that starts with {digest[:8]}, not {prefix}; remove it or '
            'take another --url or --out.'
        )
