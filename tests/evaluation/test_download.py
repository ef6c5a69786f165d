"""Downloading a file whose name carries its hash."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from jit_jax.__main__ import main
from jit_jax.evaluation import download

PAYLOAD = b'weights' * 1000  # what the test server serves
PREFIX = hashlib.sha256(PAYLOAD).hexdigest()[:8]


@pytest.fixture
def server(monkeypatch):
    """Serves PAYLOAD under every name; yields the address."""
    monkeypatch.setenv('no_proxy', '*')

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(404 if 'absent' in self.path else 200)
            self.end_headers()
            self.wfile.write(PAYLOAD)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
        yield f'http://127.0.0.1:{http.server_port}'
        http.shutdown()


def run_fetch(*flags) -> int:
    """The exit code of `jit-jax fetch`."""
    try:
        main(['fetch', *flags])
    except SystemExit as end:
        return end.code
    return 0


def test_fetch_puts_a_verified_file_in_place(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    url = f'{server}/weights-{PREFIX}.pth'
    for _ in range(2):  # the second time it is there already
        assert run_fetch(f'--url={url}') == 0
        assert capsys.readouterr().out.strip() == str(download.default_path())
    assert download.default_path().read_bytes() == PAYLOAD
    assert list((tmp_path / 'jit_jax').iterdir()) == [download.default_path()]


@pytest.mark.parametrize(
    'name, message',
    [
        ('weights-00000000.pth', 'starts with ' + PREFIX),
        ('weights.pth', 'eight hex digits'),
        (f'absent-{PREFIX}.pth', '404'),
    ],
)
def test_fetch_leaves_nothing_behind(server, tmp_path, capsys, name, message):
    assert run_fetch(f'--url={server}/{name}', f'--out={tmp_path}/weights.pth') == 1
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1
    assert list(tmp_path.iterdir()) == []


def test_fetch_never_replaces_a_file(server, tmp_path, capsys):
    path = tmp_path / 'mine.pth'
    path.write_bytes(b'mine')
    assert run_fetch(f'--url={server}/weights-{PREFIX}.pth', f'--out={path}') == 1
    assert f'The file at {path}' in capsys.readouterr().err
    assert path.read_bytes() == b'mine'


def test_fetch_without_a_network(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('no_proxy', '*')
    url = f'http://127.0.0.1:9/weights-{PREFIX}.pth'
    assert run_fetch(f'--url={url}', f'--out={tmp_path}/w.pth') == 1
    said = capsys.readouterr()
    assert said.out == '' and said.err.count('\n') == 1
    assert said.err.startswith('error: Could not fetch http://127.0.0.1:9/')
    assert '--url' in said.err and '--out' in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said_in_words(server, tmp_path, capsys):
    (tmp_path / 'file').write_text('in the way')
    assert run_fetch(f'--url={server}/weights-{PREFIX}.pth', f'--out={tmp_path}/file/w.pth') == 1
    error = capsys.readouterr().err
    assert error.startswith('error: Could not fetch') and f'{tmp_path}/file' in error


def test_the_published_name_carries_its_hash():
    assert download.default_path().name == 'pt_inception-2015-12-05-6726825d.pth'
