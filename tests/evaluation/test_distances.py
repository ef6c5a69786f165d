"""The FID room: Inception against features computed by torch-fidelity, distances against numbers worked by hand.

`goldens/inception.npz` was made with weights that anyone can recreate (`recreate`), so no checkpoint is shipped.
"""

import hashlib
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jit_jax.__main__ import main
from jit_jax.evaluation import distances, fetch, inception

GOLDENS = Path(__file__).parents[1] / 'goldens'
ROOT = Path(__file__).parents[2]
PAYLOAD = b'weights' * 1000  # what the test server serves
PREFIX = hashlib.sha256(PAYLOAD).hexdigest()[:8]
FEATURES = ('64', '192', '768', '2048', 'logits_unbiased', 'logits')


def recreate(name, shape):
    """The tensor that the goldens were made with."""
    if name.endswith('num_batches_tracked'):
        return np.zeros(shape, np.int64)
    random = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith(('bn.weight', 'running_var')):
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    scale = 0.1
    if name.endswith('conv.weight'):
        scale = np.sqrt(2 / np.prod(shape[1:]))
    if name == 'fc.weight':
        scale = np.sqrt(1 / shape[1])
    return (random.standard_normal(shape) * scale).astype(np.float32)


@pytest.fixture(scope='session')
def golden():
    with np.load(GOLDENS / 'inception.npz') as file:
        return dict(file)


@pytest.fixture(scope='session')
def state():
    shapes = json.loads((GOLDENS / 'inception_shapes.json').read_text())
    return {name: recreate(name, shape) for name, shape in shapes.items()}


@pytest.fixture(scope='session')
def weights_path(state, tmp_path_factory):
    path = tmp_path_factory.mktemp('inception') / 'weights.npz'
    np.savez(path, **state)
    return path


@pytest.fixture(scope='session')
def weights(weights_path):
    return inception.load_weights(weights_path)


@pytest.fixture(scope='session')
def extracted(weights, golden):
    """Both sizes' features, with the only two compilations of the network in this process."""
    run = jax.jit(inception.features)
    return {
        size: jax.tree.map(np.asarray, run(weights, golden[f'{size}_images']))
        for size in ('small', 'large')
    }


@pytest.mark.parametrize('size', ['small', 'large'])
@pytest.mark.parametrize('name', FEATURES)
def test_features_agree_with_torch_fidelity(extracted, golden, size, name):
    ours, theirs = extracted[size][name], golden[f'{size}_{name}']
    assert ours.shape == theirs.shape and ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5 * np.abs(theirs).max())


def test_features_have_no_other_names(extracted):
    assert set(extracted['small']) == set(FEATURES)


def test_resize_reads_pixel_i_at_i_times_scale():
    np.testing.assert_array_equal(inception._interpolation(299), np.eye(299))
    np.testing.assert_array_equal(inception._interpolation(598), np.eye(598)[::2])
    matrix = inception._interpolation(
        2
    )  # output i lies at 2i / 299, and beyond pixel 1 there is only pixel 1
    np.testing.assert_allclose(
        matrix[[0, 100, 298]], [[1, 0], [1 - 200 / 299, 200 / 299], [0, 1]], rtol=1e-6
    )


@pytest.mark.parametrize(
    'images',
    [
        np.zeros((1, 8, 8, 3), np.float32),
        np.zeros((1, 3, 8, 8), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
    ],
)
def test_features_take_only_uint8_nhwc(images):
    with pytest.raises(ValueError, match='uint8 images'):
        inception.features({}, images)


def test_eight_devices_equal_one(weights_path, extracted, tmp_path):
    """Eight rows on eight devices: the batch stays sharded and every row is the golden's."""
    out = tmp_path / 'sharded.npz'
    process = start_python(
        f"""
        import jax, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec as P
        from jit_jax.evaluation import inception
        mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
        rows, everywhere = NamedSharding(mesh, P('data')), NamedSharding(mesh, P())
        images = np.load({str(GOLDENS / 'inception.npz')!r})['small_images'][[0, 1, 2, 0, 1, 2, 0, 1]]
        weights = jax.device_put(inception.load_weights({str(weights_path)!r}), everywhere)
        found = jax.jit(inception.features)(weights, jax.device_put(images, rows))
        assert all(x.sharding.is_equivalent_to(rows, 2) for x in found.values())
        np.savez({str(out)!r}, **found)
        """,
        XLA_FLAGS='--xla_force_host_platform_device_count=8',
    )
    finish(process)
    with np.load(out) as sharded:
        for name, one in extracted['small'].items():
            expected = one[[0, 1, 2, 0, 1, 2, 0, 1]]
            np.testing.assert_allclose(
                sharded[name], expected, rtol=1e-4, atol=1e-5 * np.abs(one).max()
            )


def start_python(code, **environment):
    """Code in a fresh interpreter at the repository's root, because devices are fixed once JAX has started."""
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', **environment}
    pipe = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
    return subprocess.Popen(
        [sys.executable, '-c', textwrap.dedent(code)], cwd=ROOT, env=environment, **pipe
    )


def finish(*processes):
    try:
        for process in processes:
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0, output
    finally:
        for process in processes:  # one that waits for a dead one would wait on
            process.kill()


def test_pth_equals_npz(state, weights, tmp_path):
    torch = pytest.importorskip('torch')
    path = tmp_path / 'weights.pth'
    torch.save({name: torch.from_numpy(value) for name, value in state.items()}, path)
    jax.tree.map(np.testing.assert_array_equal, inception.load_weights(path), weights)


def test_damaged_pth(tmp_path):
    pytest.importorskip('torch')
    path = tmp_path / 'weights.pth'
    path.write_bytes(b'not a checkpoint')
    with pytest.raises(ValueError, match='not a readable PyTorch state dict'):
        inception.load_weights(path)


def test_pth_without_torch_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)
    path = tmp_path / 'weights.pth'
    path.touch()
    with pytest.raises(ImportError, match=r"pip install 'jit_jax\[torch\]'"):
        inception.load_weights(path)


def test_every_bad_tensor_is_in_one_error(state):
    bad = {**state, 'AuxLogits.fc.weight': np.zeros(1), 'fc.bias': np.zeros(1000)}
    del bad['Mixed_7c.branch1x1.conv.weight']
    with pytest.raises(ValueError) as error:
        inception.fold(bad)
    for words in (
        'missing Mixed_7c.branch1x1.conv.weight',
        'unexpected AuxLogits',
        'fc.bias [1000], not [1008]',
    ):
        assert words in str(error.value)


def test_another_network_is_not_listed_in_full():
    with pytest.raises(
        ValueError, match='and 462 more'
    ) as error:  # 94 convolutions of 5 tensors, 2 more, 10 listed
        inception.fold({'layer1.weight': np.zeros(3)})
    assert len(str(error.value)) < 1000


def test_counters_are_optional(state, weights):
    without = {name: value for name, value in state.items() if 'num_batches' not in name}
    jax.tree.map(np.testing.assert_array_equal, inception.fold(without), weights)


def test_weights_that_are_no_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match='jit-jax fetch'):
        inception.load_weights(tmp_path / 'absent.npz')
    other = tmp_path / 'weights.txt'
    other.touch()
    with pytest.raises(ValueError, match=r'a \.pth or an \.npz'):
        inception.load_weights(other)
    damaged = tmp_path / 'damaged.npz'
    damaged.write_bytes(b'PK damaged')
    with pytest.raises(ValueError, match='not a readable'):
        inception.load_weights(damaged)
    pickled = tmp_path / 'pickled.npz'
    np.savez(pickled, x=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match='not a readable .npz of plain arrays'):
        inception.load_weights(pickled)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=2, max_size=6),
    offset=st.sampled_from([0.0, -3.0, 1e6]),
    seed=st.integers(0, 2**32 - 1),
)
def test_streaming_and_merging_equal_one_shot(sizes, offset, seed):
    random = np.random.default_rng(seed)
    rows = random.standard_normal((sum(sizes) + 2, 4)) + offset
    batches = np.split(rows, np.cumsum(sizes))
    halves = distances.Moments(4), distances.Moments(4)
    for i, batch in enumerate(batches):
        weight = np.arange(len(batch) + 3) < len(batch)
        padded = np.concatenate([batch, np.full((3, 4), np.nan)])  # padding may contain anything
        halves[i % 2].update(padded, weight)
    halves[0].merge(halves[1])
    assert halves[0].count == len(rows)
    np.testing.assert_allclose(halves[0].mean, rows.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        halves[0].covariance, np.cov(rows, rowvar=False), rtol=1e-7, atol=1e-9
    )


def test_moments_refuse():
    moments = distances.Moments(3)
    with pytest.raises(ValueError, match='at least two rows'):
        _ = moments.covariance
    with pytest.raises(ValueError, match=r'\[B, 3\]'):
        moments.update(np.zeros((2, 4)))
    with pytest.raises(ValueError, match='0 or a 1'):
        moments.update(np.zeros((2, 3)), weight=[0.5, 1])
    with pytest.raises(ValueError, match='0 or a 1'):
        moments.update(np.zeros((2, 3)), weight=[1])
    with pytest.raises(ValueError, match='NaN'):
        moments.update(np.full((2, 3), np.nan))
    assert moments.count == 0


def test_two_hosts_end_with_the_same_float64_moments(tmp_path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    code = """
        import sys, jax, numpy as np
        jax.distributed.initialize('127.0.0.1:{port}', num_processes=2, process_id={host})
        from jit_jax.evaluation.distances import Moments
        moments = Moments(3)
        moments.update(np.random.default_rng({host}).standard_normal(({host} + 2, 3)))
        total = moments.across_hosts()
        np.savez({out!r}, count=total.count, mean=total.mean, scatter=total.scatter)
        """
    outs = [str(tmp_path / f'{host}.npz') for host in range(2)]
    finish(*(start_python(code.format(port=port, host=host, out=outs[host])) for host in range(2)))
    first, second = (dict(np.load(out)) for out in outs)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    rows = np.concatenate(
        [np.random.default_rng(host).standard_normal((host + 2, 3)) for host in range(2)]
    )
    np.testing.assert_allclose(
        first['mean'], rows.mean(0), rtol=1e-14
    )  # float32 on the way would miss this
    np.testing.assert_allclose(first['scatter'] / 4, np.cov(rows, rowvar=False), rtol=1e-14)


def test_one_host_is_every_host():
    moments = distances.Moments(2)
    moments.update([[1.0, 2.0], [3.0, 5.0]])
    total = moments.across_hosts()
    assert total.count == 2 and total is not moments
    np.testing.assert_array_equal(total.covariance, [[2, 3], [3, 4.5]])


def stats(rows):
    return rows.mean(0), np.cov(rows, rowvar=False)


def test_frechet_agrees_with_torch_fidelity(golden):
    found = distances.frechet(*stats(golden['fid_x']), *stats(golden['fid_y']))
    assert found == pytest.approx(golden['fid_value'], rel=1e-4)


def test_frechet_by_hand():
    assert distances.frechet([0], [[1]], [3], [[4]]) == pytest.approx(10)  # 3² + (1 − 2)²
    diagonal = distances.frechet([0, 1], np.diag([4, 9]), [0, 0], np.diag([1, 0]))
    assert diagonal == pytest.approx(1 + (2 - 1) ** 2 + 9)


def test_frechet_of_fewer_rows_than_features():
    """Against the nuclear norm of AᵀB, where Σ₁ = AAᵀ and Σ₂ = BBᵀ: the same quantity by another road."""
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, 9, 40))
    a, b = ((rows - rows.mean(0)).T / np.sqrt(8) for rows in (x, y))
    expected = (
        ((x.mean(0) - y.mean(0)) ** 2).sum()
        + (a**2).sum()
        + (b**2).sum()
        - 2 * np.linalg.norm(a.T @ b, 'nuc')
    )
    assert distances.frechet(*stats(x), *stats(y)) == pytest.approx(expected, rel=1e-6)
    assert distances.frechet(*stats(x), *stats(x)) == pytest.approx(0, abs=1e-5)


def test_frechet_refuses():
    with pytest.raises(ValueError, match='2 and 3 features'):
        distances.frechet(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))
    with pytest.raises(ValueError, match=r'sigma \[D, D\]'):
        distances.frechet(np.zeros(2), np.eye(3), np.zeros(2), np.eye(2))


def test_inception_score_agrees_with_torch_fidelity(golden):
    found = distances.inception_score(golden['isc_logits'])
    np.testing.assert_allclose(found, [golden['isc_mean'], golden['isc_std']], rtol=1e-4)


def test_inception_score_by_hand():
    assert distances.inception_score(np.zeros((20, 7)), splits=2) == pytest.approx((1, 0))
    certain = 1e4 * np.eye(6)[[0, 1, 2, 3, 4] * 4]  # the sixth class has probability exactly 0
    assert distances.inception_score(certain, splits=4) == pytest.approx((5, 0))
    with pytest.raises(ValueError, match='at least 10'):
        distances.inception_score(np.zeros((9, 7)))


def test_kid_by_hand():
    # k(a, b) = (ab + 1)³: within {0, 1} it is 1, within {0, 2} it is 1, across 1, 1, 1 and 27, 7.5 on average.
    found = distances.kid(np.array([[0], [1]]), np.array([[0], [2]]), subsets=3, subset_size=2)
    assert found == pytest.approx((1 + 1 - 2 * 7.5, 0))


def test_kid_by_loops():
    random = np.random.default_rng(1)
    x, y = random.standard_normal((2, 6, 5)).astype(np.float32)
    kernel = lambda a, b: (float(a @ b) / 5 + 1) ** 3
    pairs = [(i, j) for i in range(6) for j in range(6)]
    within = sum(kernel(z[i], z[j]) for z in (x, y) for i, j in pairs if i != j) / 30
    expected = within - 2 * sum(kernel(x[i], y[j]) for i, j in pairs) / 36
    assert distances.kid(x, y, subsets=2, subset_size=6)[0] == pytest.approx(expected, rel=1e-5)


def test_kid_subsets_follow_the_seed():
    x, y = np.random.default_rng(2).standard_normal((2, 50, 3))
    few = {'subsets': 5, 'subset_size': 10}
    assert (
        distances.kid(x, y, seed=1, **few)
        == distances.kid(x, y, seed=1, **few)
        != distances.kid(x, y, seed=2, **few)
    )
    with pytest.raises(ValueError, match='at least 60'):
        distances.kid(x, y, subset_size=60)


def test_precision_recall_by_hand():
    # k = 1: balls of the real [−1, 1], [0, 2], [1, 5], [3, 11]; of the fake [19, 21], [20, 22], [0.2, 1.2], [0.7, 1.7].
    real, fake = np.array([[0], [1], [3], [7]]), np.array([[20], [21], [0.7], [1.2]])
    assert distances.precision_recall(real, fake, k=1) == (0.5, 0.25)
    with pytest.raises(ValueError, match='at least 5'):
        distances.precision_recall(real, fake, k=4)


@pytest.mark.parametrize('offset', [0, 1000])
def test_precision_recall_by_loops(monkeypatch, offset):
    monkeypatch.setattr(distances, '_ROWS', 16)
    random = np.random.default_rng(3)
    real = random.standard_normal((40, 4)) + offset
    fake = 0.7 * random.standard_normal((32, 4)) + 1.2 + offset

    def share(rows, centres):
        radius = [sorted(np.linalg.norm(c - other) for other in centres)[3] for c in centres]
        return np.mean(
            [any(np.linalg.norm(row - c) <= r for c, r in zip(centres, radius)) for row in rows]
        )

    expected = share(fake, real), share(real, fake)
    assert 0.1 < min(expected) and max(expected) < 0.99  # or the example would show little
    assert distances.precision_recall(real, fake) == pytest.approx(expected)


def test_stats_round_trip(tmp_path):
    path = tmp_path / 'reference.npz'
    mu, sigma = np.arange(3.0), np.diag([1.0, 2.0, 3.0])
    distances.save_stats(path, mu, sigma)
    loaded = distances.load_stats(path)
    np.testing.assert_array_equal(loaded[0], mu)
    np.testing.assert_array_equal(loaded[1], sigma)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    'arrays, message',
    [
        ({'arr_0': np.zeros(2)}, 'no arrays `mu` and `sigma`; it holds arr_0'),
        ({'mu': np.zeros(3), 'sigma': np.eye(2)}, r'sigma \[D, D\]'),
        ({'mu': np.full(2, np.nan), 'sigma': np.eye(2)}, 'NaN'),
        ({'mu': np.array([{}, {}]), 'sigma': np.eye(2)}, 'plain arrays'),
    ],
)
def test_stats_that_are_no_stats(tmp_path, arrays, message):
    path = tmp_path / 'reference.npz'
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message):
        distances.load_stats(path)


def test_stats_that_are_no_npz(tmp_path):
    with pytest.raises(FileNotFoundError, match='No reference statistics'):
        distances.load_stats(tmp_path / 'absent.npz')
    (tmp_path / 'damaged.npz').write_bytes(b'PK damaged')
    np.save(tmp_path / 'array.npy', np.zeros(2))
    for name in ('damaged.npz', 'array.npy'):
        with pytest.raises(ValueError, match='not a readable .npz'):
            distances.load_stats(tmp_path / name)


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
        assert capsys.readouterr().out.strip() == str(fetch.default_path())
    assert fetch.default_path().read_bytes() == PAYLOAD
    assert list((tmp_path / 'jit_jax').iterdir()) == [fetch.default_path()]


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


def test_fetch_without_a_network(tmp_path):
    command = [
        sys.executable,
        '-m',
        'jit_jax',
        'fetch',
        f'--url=http://127.0.0.1:9/weights-{PREFIX}.pth',
    ]
    environment = {**os.environ, 'no_proxy': '*'}
    done = subprocess.run(
        [*command, f'--out={tmp_path}/w.pth'],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and done.stdout == ''
    assert (
        done.stderr.startswith('error: Could not fetch http://127.0.0.1:9/')
        and done.stderr.count('\n') == 1
    )


def test_the_published_name_carries_its_hash():
    assert fetch.default_path().name == 'pt_inception-2015-12-05-6726825d.pth'
