"""Sources: broken files are skipped by what the files are, named once, and counted."""

import itertools
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from pictures import RGB, batches, encode, levels, open_gray, png_header, refused, same, write

from jit_jax import data
from jit_jax.data import preprocess
from jit_jax.errors import UserError

BROKEN = {
    'empty': b'',
    'text': b'<html>404</html>',
    'png cut': encode(RGB)[:200],
    'jpeg cut': encode(RGB, 'JPEG')[:-200],
    'float': encode(np.ones((8, 8), np.float32), 'TIFF'),
}


@pytest.mark.parametrize('content', BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_skipped_named_once_and_counted(tmp_path, content, caplog):
    source = open_gray(
        'folder', write(tmp_path, {f'{i}.png': content if i == 2 else i for i in range(6)})
    )
    assert levels(source) == [0, 1, 3, 3, 4] == levels(source)
    assert source.broken == (str(tmp_path / '2.png'),)
    assert [
        r.getMessage().count('2.png, which is broken')
        for r in caplog.records
        if 'broken' in r.getMessage()
    ] == [1]


def test_two_threads_name_a_broken_file_once(tmp_path, monkeypatch, caplog):
    def to_array(*_):
        both.wait(timeout=30)
        raise OSError('cut')

    both = threading.Barrier(2)
    source = open_gray('folder', write(tmp_path, {f'{i}.png': i for i in range(4)}))
    monkeypatch.setattr(preprocess, 'to_array', to_array)
    threads = [threading.Thread(target=source.load, args=(0,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(source.broken) == 1 and caplog.text.count('0.png, which is broken: cut') == 1


def test_after_the_last_comes_the_first(tmp_path):
    source = open_gray(
        'folder', write(tmp_path, {'0.png': 7, '1.png': 8, '2.png': b'', '3.png': 9})
    )
    assert levels(source) == [7, 8, 7]


def test_a_vanished_file_and_a_broken_partner(tmp_path):
    write(tmp_path, {f'{side}/{i}.png': i for side in ('target', 'cond') for i in range(4)})
    source = open_gray('pairs', tmp_path)
    (tmp_path / 'cond' / '1.png').unlink()
    assert [int(source[i]['cond'][0, 0, 0]) for i in range(3)] == levels(source) == [0, 2, 2]
    assert len(source.broken) == 1 and 'cond/1.png' in source.broken[0]


@pytest.mark.parametrize(
    ('max_broken', 'broken', 'stops'),
    [(0.1, 2, False), (0.1, 3, True), (0, 1, True), (0.01, 1, False)],
)
def test_too_many_broken_files_stop_the_run(tmp_path, max_broken, broken, stops):
    write(
        tmp_path,
        {f'train/{i:02}.png': b'' if i < broken else i for i in range(20)} | {'test/0.png': 0},
    )
    source = open_gray('folder', tmp_path, max_broken=max_broken)
    two_epochs = itertools.islice(batches(source, threads=2), 10)
    if stops:
        with pytest.raises(
            UserError, match=f'{broken} of 20 examples are broken.*repair or remove'
        ):
            list(two_epochs)
    else:
        list(two_epochs)
    assert len(source.broken) == broken


def test_nothing_intact(tmp_path):
    write(tmp_path, {f'{i}.png': b'' for i in range(3)})
    with pytest.raises(UserError, match='None of the 2 .* the first is .*/0.png .*identify'):
        open_gray('folder', tmp_path, max_broken=1.0)
    write(tmp_path, {f'{i}.png': i for i in range(3)})
    source = open_gray('folder', tmp_path, max_broken=1.0)
    write(tmp_path, {f'{i}.png': b'' for i in range(3)})
    with pytest.raises(UserError, match='None of the 2'):
        source[0]


def test_a_folder_of_unreadable_images_is_refused_when_it_is_opened(tmp_path):
    write(tmp_path, {f'{i:03}.png': b'<html>404</html>' for i in range(100)})
    refused(
        'None of the 8 images that were tried, of 95, .*repair or remove', 'folder', path=tmp_path
    )
    write(tmp_path, {'081.png': 81})
    open_gray('folder', tmp_path)  # the others are counted when they are read


def test_unreadable_images_that_are_held_out_are_called_so(tmp_path):
    write(tmp_path, {f'{i:02}.png': b'' if i in (3, 19, 20) else i for i in range(23)})
    counts = '22 images for training, 1 held out .every 20th.'
    sentence = f'1 held-out images .*{counts}.*, and others are held out .*first is .*19.png'
    refused(sentence, 'folder', path=tmp_path, split='test')
    write(tmp_path / 'in', {f'{part}/{i}.png': b'' for part in ('train', 'test') for i in range(3)})
    refused('3 held-out .*repair or remove them; the', 'folder', path=tmp_path / 'in', split='test')


def test_opening_decodes_one_image_and_counts_none_as_broken(tmp_path, monkeypatch):
    write(tmp_path, {f'{i:02}.png': b'' if i < 2 else i for i in range(21)})
    read, to_array = [], preprocess.to_array

    def counted(path, *options):
        read.append(Path(path).name)
        return to_array(path, *options)

    monkeypatch.setattr(preprocess, 'to_array', counted)
    source = open_gray('folder', tmp_path, max_broken=0)
    assert read == ['00.png', '02.png'] and source.broken == ()


def test_a_picture_of_too_many_pixels_is_broken(tmp_path, caplog):
    write(tmp_path, {'0.png': 0, '1.png': png_header(20000, 20000), '2.png': 2, '3.png': 3})
    source = open_gray('folder', tmp_path)
    assert levels(source) == [0, 2, 2] and source.broken == (str(tmp_path / '1.png'),)
    assert '1.png, which is broken: it has more than 178,956,970 pixels; scale' in caplog.text


@pytest.mark.parametrize('shape', [(1, 1), (1, 9), (9, 1), (2, 65000)])
def test_placeholders_and_lines_are_broken(tmp_path, shape, caplog):
    write(
        tmp_path, {'0.png': 0, '1.png': encode(np.zeros(shape, np.uint8)), '2.png': 2, '3.png': 3}
    )
    source = data.open_source('folder', path=tmp_path, split='train', image_size=256)
    assert [int(source[i]['image'][0, 0, 0]) for i in range(3)] == [0, 2, 2]
    assert f'1.png, which is broken: a picture of {shape[1]} × {shape[0]} pixels' in caplog.text


def test_a_long_path_to_the_same_place():
    assert data.absolute('') == '' and data.absolute('gs://bucket/x') == 'gs://bucket/x'
    assert (
        data.absolute('photos') == os.path.join(os.getcwd(), 'photos') == data.absolute('./photos')
    )
    assert data.absolute('~/photos') == os.path.expanduser('~/photos')


def test_resume_does_not_depend_on_what_was_found_broken(tmp_path):
    write(tmp_path, {f'{i:02}.png': b'' if i % 5 == 0 else i for i in range(30)})
    sources = [open_gray('folder', tmp_path, max_broken=1.0) for _ in range(2)]
    straight = list(itertools.islice(batches(sources[0]), 12))
    for step in (7, 11, 3):
        same(next(batches(sources[1], start_step=step)), straight[step])


def test_the_only_held_out_image_breaks(tmp_path):
    write(tmp_path, {f'{side}/{i}.png': i for side in ('target', 'cond') for i in range(4)})
    source = open_gray('pairs', tmp_path, 'test')
    (tmp_path / 'cond' / '3.png').write_bytes(b'')
    (batch,) = data.eval_batches(source, batch_size=2)
    assert batch['weight'].tolist() == [0, 0] and batch['label'].tolist() == [-1, -1]
    assert batch['image'].shape == batch['cond'].shape == (2, 8, 8, 1)
    assert batch['image'].dtype == np.uint8
    refused('None of the 1 .*target/3.png .*cond/3.png', 'pairs', path=tmp_path, split='test')


def test_eval_does_not_count_broken_ones(tmp_path):
    write(tmp_path, {f'train/{i}.png': b'' if i == 3 else i for i in range(10)} | {'test/0.png': 0})
    found = list(data.eval_batches(open_gray('folder', tmp_path), batch_size=4))
    weight = np.concatenate([batch['weight'] for batch in found])
    level = np.concatenate([batch['image'][:, 0, 0, 0] for batch in found])
    assert (
        list(level[weight > 0]) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
        and weight.sum() == 9
        and len(weight) == 12
    )
