"""Captions: where they are found, what becomes of them, and which of several a step is given."""

import json

import numpy as np
import pytest
from pictures import batches, open_gray, refused, same, write

from configs import uncond
from jit_jax import data
from jit_jax.commands import embed
from jit_jax.data import caption_files, digit_captions
from jit_jax.data.captions import with_caption
from jit_jax.errors import UserError


def said(row):
    """The caption of an example that has one of them."""
    return data.decode_caption(row['tokens'][: row['token_count']])


def all_said(example):
    """Every caption of an example of a source."""
    rows = range(len(example['tokens']))
    return [said(with_caption(example, i)) for i in rows]


def described(folder):
    """Four images with two captions, one, none and three."""
    write(folder, {f'{i}.png': i for i in range(4)})
    captions = [['a line', 'a  bold\nline'], 'zwölf', [], ['七', '7', 'sept']]
    rows = [{'file_name': f'{i}.png', 'text': text} for i, text in enumerate(captions)]
    rows[2].pop('text')
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / 'metadata.jsonl').write_text('\n'.join(lines), encoding='utf-8')
    return folder


@pytest.mark.parametrize('caption', ['seven', 'zéro', 'ze\u0301ro', '七', ' a  seven\n', ''])
def test_a_caption_comes_back_in_one_spelling(caption):
    row = with_caption(data.to_tokens([caption], 16), 0)
    plain = {'ze\u0301ro': 'zéro', ' a  seven\n': 'a seven'}
    assert said(row) == (plain[caption] if caption in plain else caption)
    assert row['tokens'].dtype == np.uint8 and not row['tokens'][row['token_count'] :].any()


def test_a_long_caption_is_cut_between_characters():
    (row,) = data.to_tokens(['七七七'], 8)['tokens']
    assert bytes(row).rstrip(b'\0').decode() == '七七'  # of three bytes each


def test_captions_of_metadata(tmp_path):
    source = open_gray('folder', described(tmp_path), tokens=64)
    assert source.tokens == 16  # 'a bold line' has 11 bytes, and programs take steps of 8
    assert source[0]['tokens'].shape == (2, 16)
    expected = [['a line', 'a bold line'], ['zwölf'], ['']]
    assert [all_said(source[i]) for i in range(3)] == expected
    assert '2 with captions' in source.summary and 'ignored' not in source.summary
    assert all_said(open_gray('folder', tmp_path, 'test', tokens=64)[0]) == ['七', '7', 'sept']
    assert open_gray('folder', tmp_path, tokens=5).tokens == 5
    assert 'tokens' not in open_gray('folder', tmp_path)[0]


def test_captions_in_files_beside_their_images(tmp_path):
    texts = {'a/0.txt': 'one\n\n two \n'.encode(), 'b/2.txt': 'drei'.encode(), 'b/9.txt': b'no'}
    write(tmp_path, {f'{name}.png': i for i, name in enumerate(['a/0', 'a/1', 'b/2', 'b/3'])})
    source = open_gray('folder', write(tmp_path, texts), tokens=64)
    assert [all_said(source[i]) for i in range(3)] == [['one', 'two'], [''], ['drei']]
    assert source.classes == ('a', 'b')
    assert '2 with captions; ignored: 1 ending in .txt' in source.summary
    (tmp_path / 'a/0.txt').write_bytes(b'\xff\xfe\x00')
    refused('0.txt cannot be read as text', 'folder', path=tmp_path, channels=1, tokens=64)


def test_what_is_no_caption_is_refused(tmp_path):
    write(tmp_path, {f'{i}.png': i for i in range(2)})
    path = tmp_path / 'metadata.jsonl'
    for text in (7, ['a', 7], {'en': 'a'}, None):
        path.write_text(json.dumps({'file_name': '0.png', 'text': text}))
        refused('line 1: "text" is a caption or a list of captions', 'folder', path=tmp_path)
    path.unlink()
    needs = 'condition.kind with text needs captions'
    refused(needs, 'folder', path=tmp_path, channels=1, tokens=8)
    silent = write(tmp_path, {'0.txt': b'\n'})
    refused('None of the captions says anything', 'folder', path=silent, channels=1, tokens=8)


def test_a_step_is_given_any_caption_and_always_the_same(tmp_path):
    source = open_gray('folder', described(tmp_path), tokens=64)
    steps = [step for step, _ in zip(batches(source), range(40))]
    assert steps[0]['tokens'].shape == (4, 16) and steps[0]['token_count'].shape == (4,)
    found = {0: [], 1: [], 2: []}
    for step in steps:
        for image, tokens, count in zip(step['image'], step['tokens'], step['token_count']):
            found[image[0, 0, 0]].append(said({'tokens': tokens, 'token_count': count}))
    assert set(found[1]) == {'zwölf'} and set(found[2]) == {''}
    assert 0.3 < np.mean([one == 'a line' for one in found[0]]) < 0.7
    for step, again in zip(steps[7:12], batches(source, start_step=7)):
        same(step, again)
    halves = [batches(source, process_index=p, process_count=2) for p in range(2)]
    for step, *parts in zip(steps[:5], *halves):
        same(step, {name: np.concatenate([part[name] for part in parts]) for name in step})
    other = [step for step, _ in zip(batches(source, seed=1), range(40))]
    assert any((a['tokens'] != b['tokens']).any() for a, b in zip(steps, other))


def test_evaluation_goes_round_the_captions(tmp_path):
    source = open_gray('folder', described(tmp_path), tokens=64)
    (rows,) = data.eval_batches(source, batch_size=4)
    captions = zip(rows['tokens'], rows['token_count'])
    found = [said({'tokens': tokens, 'token_count': count}) for tokens, count in captions]
    assert found[:3] == ['a line', 'zwölf', ''] and rows['weight'].tolist() == [1, 1, 1, 0]


def test_what_is_said_of_digits():
    for digit in range(10):
        for number in range(9):
            captions = digit_captions.captions(digit, number)
            assert captions[:2] == tuple(
                digit_captions.name(digit, language) for language in ('English', 'French')
            )
            for caption in captions:
                both = caption.split(' or ')
                assert len(both) == 1 or digit_captions.with_article(digit) in both
                for one, other in digit_captions.UNSEEN:
                    assert caption != digit_captions.either(one, other)
    assert 'an eight or a seven' in digit_captions.captions(7, 0)
    seen = {
        caption for n in range(9) for caption in digit_captions.captions(7, n) if 'or' in caption
    }
    assert len(seen) == 2 * 8  # with every other digit but 2, in both orders


def test_captions_of_images_in_memory():
    images = np.zeros((20, 8, 8, 1), np.uint8)
    captions = ['one', ['two', 'zwei'], [], *['more'] * 17]
    memory = data.in_memory(images, captions=captions)
    source = memory.source('train', 'spread', image_size=8, channels=1, max_broken=0.01, tokens=64)
    assert source.tokens == 8
    assert [all_said(source[i]) for i in range(4)] == [['one'], ['two', 'zwei'], [''], ['more']]
    other = data.in_memory(images, captions=['ONE', *captions[1:]])
    assert len({memory.content, other.content, data.in_memory(images).content}) == 3
    for wrong, sentence in (
        (captions[:3], '20 images and 3 captions: give one for each'),
        ([7] * 20, 'for each image a caption or a list of them; got 7'),
        ([['a', None]] * 20, 'for each image a caption or a list'),
    ):
        with pytest.raises(UserError, match=sentence):
            data.in_memory(images, captions=wrong)


def test_captions_for_a_text_model_are_all_that_are_there(tmp_path):
    """Of both splits of a folder; of a metadata.jsonl or a text file without any image."""
    folder = described(tmp_path / 'images')
    captions = ['a line', 'a  bold\nline', 'zwölf', '七', '7', 'sept']
    assert caption_files.read(folder) == captions
    alone = tmp_path / 'metadata.jsonl'
    alone.write_bytes((folder / 'metadata.jsonl').read_bytes())
    assert caption_files.read(alone) == captions
    (tmp_path / 'a.txt').write_bytes('zéro\n\nun'.encode())
    assert caption_files.read(tmp_path / 'a.txt') == ['zéro', '', 'un']
    (tmp_path / 'b.txt').write_bytes(b'\xff\xfe\x00')
    config = uncond.get_config('folder_cpu')
    config.data.path = str(folder)
    assert list(embed.captions_of(config)) == captions
    config.data.path = str(write(tmp_path / 'silent', {f'{i}.png': i for i in range(2)}))
    for name, sentence in (('b.txt', 'cannot be read as text'), ('silent', 'holds no captions')):
        with pytest.raises(UserError, match=f'{name} {sentence}'):
            caption_files.read(tmp_path / name)
    with pytest.raises(UserError, match='needs captions'):
        list(embed.captions_of(config))
