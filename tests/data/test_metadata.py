"""metadata.jsonl beside images, as Hugging Face lays them out."""

import json

import pytest
from pictures import levels, open_gray, refused, write


def write_rows(path, *rows):
    path.write_text('\n'.join(json.dumps(row) for row in rows) + '\n')


def labels(source):
    return [int(source[i]['label']) for i in range(len(source))]


def test_labels_by_name_and_by_number(tmp_path):
    write(tmp_path, {f'{folder}/{i}.png': i for folder in ('train', 'test') for i in range(3)})
    names = ('dog', 'cat', 'dog')
    for split in ('train', 'test'):
        rows = [{'file_name': f'{i}.png', 'label': name} for i, name in enumerate(names)]
        write_rows(tmp_path / split / 'metadata.jsonl', *rows)
    for split in ('train', 'test'):
        source = open_gray('folder', tmp_path, split)
        assert source.classes == ('cat', 'dog') and labels(source) == [1, 0, 1]
    rows = [{'file_name': f'{i}.png', 'label': number} for i, number in enumerate((10, 9, 10))]
    write_rows(tmp_path / 'train' / 'metadata.jsonl', *rows)
    source = open_gray('folder', tmp_path)
    assert source.classes == ('9', '10') and labels(source) == [1, 0, 1]
    refused('train lacks: remove or rename cat', 'folder', path=tmp_path, split='test')


def test_one_file_at_the_root_and_what_it_leaves_out(tmp_path):
    write(tmp_path, {f'train/{i}.png': i for i in range(4)} | {'test/9.png': 9})
    rows = [
        {'file_name': f'train/{i}.png', 'text': 'a photo', 'credit': 'me', 'label': 'x'}
        for i in (2, 0)
    ]
    write_rows(tmp_path / 'metadata.jsonl', *rows, {'file_name': 'test/9.png', 'label': 'x'})
    source = open_gray('folder', tmp_path)
    assert levels(source) == [0, 2] and levels(open_gray('folder', tmp_path, 'test')) == [9]
    assert (
        "2 with captions; ignored: 2 that metadata.jsonl does not list, 2 values of 'credit' in "
        'metadata.jsonl' in source.summary
    )


def test_without_labels_folders_are_no_classes(tmp_path):
    write(tmp_path, {'images/0.png': 0, 'images/1.png': 1, 'metadata.jsonl': b''})
    write_rows(tmp_path / 'metadata.jsonl', *({'file_name': f'images/{i}.png'} for i in range(2)))
    source = open_gray('folder', tmp_path)
    assert source.classes == () and labels(source) == [-1] and '.jsonl' not in source.summary


@pytest.mark.parametrize(
    ('line', 'problem'),
    [
        ('{"file_name": "2.png"}', 'line 3: .*2.png is not there'),
        ('{"file_name": "0.png", "label": "a"}', 'line 3: .*0.png is named twice'),
        ('{"image": "1.png"}', 'line 3 has no "file_name": add it'),
        ('[1]', 'line 3 has no "file_name": add it'),
        ('{"file_name"', 'line 3 is not JSON'),
        ('{"file_name": "1.png"}', '"label" must be a name in every line'),
        ('{"file_name": "1.png", "label": 3}', '"label" must be a name in every line'),
        ('{"file_name": "1.png", "label": [3]}', '"label" must be a name in every line'),
    ],
)
def test_refused_lines(tmp_path, line, problem):
    write(tmp_path, {'0.png': 0, '1.png': 1})
    (tmp_path / 'metadata.jsonl').write_text(f'{{"file_name": "0.png", "label": "a"}}\n\n{line}\n')
    refused(f'metadata.jsonl.*{problem}', 'folder', path=tmp_path)
