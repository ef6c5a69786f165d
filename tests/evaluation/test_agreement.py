"""Two processes that measure together, where one of them cannot do what the other can."""

import json
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from conftest import ROOT

TOGETHER = """
    import json, sys, jax, numpy as np
    port, process, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    jax.distributed.initialize(f'127.0.0.1:{port}', num_processes=2, process_id=process)

    from jit_jax import data
    from jit_jax.errors import UserError
    from jit_jax.evaluation import inception_scores, kept_files
    from jit_jax.evaluation.inception_scores import WIDTH, InceptionMetric
    from jit_jax.evaluation.moments import Moments
    from jit_jax.model.sharding import make_mesh
    from jit_jax.training.processes import in_every_process

    found = {'everyone': [in_every_process(process == 0), in_every_process(True)]}

    moments = Moments(3)
    moments.update(np.random.default_rng(process).standard_normal((process + 2, 3)))
    total = moments.across_hosts()
    np.savez(f'{folder}/moments-{process}.npz', count=total.count, mean=total.mean,
             scatter=total.scatter)

    def failure(work):
        try:
            work()
        except Exception as error:
            return f'{type(error).__name__}: {error}'

    # Weights that the first process alone can read.
    weights = f'{folder}/weights-{process}.npz'
    kept_files.keep_images(weights, np.zeros(3))
    inception_scores.inception.fold = lambda state: state
    mesh = make_mesh((-1, 1, 1))
    path = f'{folder}/weights-0.npz' if process == 0 else f'{folder}/nowhere.npz'
    found['weights'] = failure(lambda: inception_scores.open_network(path, mesh))

    # Images that the first process alone has kept: nobody takes them, and nobody waits.
    path = f'{folder}/part-{process}.npz'
    kept_files.keep_images(path, np.zeros((2, 4, 4, 3), np.uint8))
    found['kept'] = kept_files.kept_images(path, (2, 4, 4, 3)) is not None

    @jax.jit
    def fast(images):
        flat = images.reshape(len(images), -1)[:, :64] / 255
        return {'2048': jax.numpy.tile(flat, (1, WIDTH // 64))}

    def images(count, seed):
        return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)

    sizes = []
    kid = inception_scores.distances.kid
    inception_scores.distances.kid = lambda x, y, subset_size: (
        sizes.append(subset_size), kid(x, y, subset_size=subset_size))[1]
    metric = InceptionMetric(['kid'], fast, [data.from_arrays(images(9, 0))], mesh, rows=4)
    metric.update(images(7, 1), {}, None)
    found |= metric.compute() | {'sizes': sizes}

    source = data.from_arrays(images(9, 0))
    load = source.load

    def load_here(index):
        if process == 1 and index == 7:
            raise UserError('Process 1 cannot read image 7.')
        return load(index)

    source.load = load_here
    metric = InceptionMetric(['kid'], fast, [source], mesh, rows=4)
    metric.update(images(7, 1), {}, None)
    found['missing'] = failure(metric.compute)
    with open(f'{folder}/found-{process}.json', 'w') as file:
        json.dump(found, file)
"""


@pytest.fixture(scope='module')
def pair(env, tmp_path_factory):
    """A folder, and what each of the two processes has found."""
    folder = tmp_path_factory.mktemp('pair')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    code = textwrap.dedent(TOGETHER)
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
    processes = []
    for i in range(2):
        command = [sys.executable, '-c', code, port, str(i), str(folder)]
        processes.append(subprocess.Popen(command, cwd=ROOT, env=env, **pipes))
    try:
        for process in processes:
            said, _ = process.communicate(timeout=120)
            assert process.returncode == 0, said
    finally:
        for process in processes:  # one that waits for a dead one would wait on
            process.kill()
    found = [json.loads((folder / f'found-{i}.json').read_text()) for i in range(2)]
    return folder, *found


def test_two_hosts_end_with_the_same_float64_moments(pair):
    folder, _, _ = pair
    first, second = (dict(np.load(folder / f'moments-{i}.npz')) for i in range(2))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    rows = [np.random.default_rng(host).standard_normal((host + 2, 3)) for host in range(2)]
    rows = np.concatenate(rows)
    # Float32 on the way would miss this.
    np.testing.assert_allclose(first['mean'], rows.mean(0), rtol=1e-14)
    np.testing.assert_allclose(first['scatter'] / 4, np.cov(rows, rowvar=False), rtol=1e-14)


def test_weights_that_one_process_cannot_read(pair):
    _, first, second = pair
    assert first['weights'].startswith('UserError: Process 1 of 2 has failed')
    assert 'no Inception weights at' in second['weights'] and 'nowhere.npz' in second['weights']


def test_an_answer_is_that_of_both(pair):
    _, first, second = pair
    assert first['everyone'] == second['everyone'] == [False, True]


def test_what_one_process_has_kept_serves_nobody(pair):
    folder, first, second = pair
    assert (folder / 'part-0.npz').exists() and not (folder / 'part-1.npz').exists()
    assert first['kept'] is second['kept'] is False


def test_subsets_of_kid_are_of_the_rows_of_both(pair):
    _, first, second = pair
    assert first['sizes'] == second['sizes'] == [7]
    assert first['kid'] == second['kid']


def test_a_reference_that_one_process_cannot_read(pair):
    _, first, second = pair
    assert 'UserError' in first['missing']
    assert second['missing'] == 'UserError: Process 1 cannot read image 7.'
