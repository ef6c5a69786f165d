"""Embeddings of captions by text models made on the spot: written, gone on with, and trained on."""

import json

import numpy as np
import pytest
from shell import config_of

import jit_jax
from jit_jax import data, loop
from jit_jax.data import embeddings
from jit_jax.recipe import inputs, text_encoder

torch = pytest.importorskip('torch', reason='text models need PyTorch')
transformers = pytest.importorskip('transformers', reason='the text models are of transformers')

WORDS = ['<pad>', '</s>', '<unk>', 'a', 'red', 'blue', 'boat', 'house', 'und', 'noch']
CAPTIONS = ['a red boat', 'a blue house', 'boat', 'a  red house', 'boat', '', 'a boat und noch a']


def tokenizer():
    """Words apart by spaces, an end after each caption."""
    tokenizers = pytest.importorskip('tokenizers')
    known = {word: i for i, word in enumerate(WORDS)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token='<unk>'))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single='$A </s>', special_tokens=[('</s>', 1)]
    )
    special = {'pad_token': '<pad>', 'eos_token': '</s>', 'unk_token': '<unk>'}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """A tiny T5 and a tiny CLIP as folders, by name, and what is no text model."""
    folder = tmp_path_factory.mktemp('models')
    torch.manual_seed(0)
    t5 = transformers.T5Config(
        vocab_size=16, d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0
    )
    clip = transformers.CLIPTextConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    transformers.T5EncoderModel(t5).save_pretrained(folder / 't5')
    transformers.CLIPTextModel(clip).save_pretrained(folder / 'clip')
    transformers.GPT2Config(n_layer=1).save_pretrained(folder / 'gpt2')
    for name in ('t5', 'clip'):
        tokenizer().save_pretrained(folder / name)
    return folder


@pytest.fixture
def captions(tmp_path):
    path = tmp_path / 'captions.txt'
    path.write_text('\n'.join(CAPTIONS))
    return path


@pytest.mark.parametrize('name, width, longest', [('t5', 12, 6), ('clip', 8, 5)])
def test_embeddings_are_the_states_of_the_model(
    command, models, captions, tmp_path, name, width, longest
):
    out = tmp_path / 'out'
    flags = (f'--encoder={models / name}', f'--out={out}', '--batch=2')
    code, said, err = command('embed', f'--captions={captions}', *flags)
    assert code == 0 and '5 of 5 captions' in said, err
    assert f'--config.model.token_width={width}' in said
    about = json.loads((out / 'encoder.json').read_text())
    assert (about['width'], about['longest']) == (width, longest)
    there = data.Embeddings(out)
    model = text_encoder.TextEncoder(str(models / name), '')
    for caption in ('a red boat', 'boat', 'a red house', 'a boat und noch a'):
        (number,) = there.numbers([caption])
        rows = there.tokens(number, 8)
        ids = tokenizer()(caption, truncation=True, max_length=longest, return_tensors='pt')
        with torch.inference_mode():
            states = model._model(**{k: ids[k] for k in ('input_ids', 'attention_mask')})[0][0]
        assert rows['token_count'] == len(states) and not rows['tokens'][len(states) :].any()
        np.testing.assert_allclose(rows['tokens'][: len(states)], states, atol=2e-3)
    assert there.caption(there.numbers([' a  red boat'])[0]) == 'a red boat' and '' not in there


def test_a_stopped_command_goes_on(command, models, tmp_path, monkeypatch):
    """Whole files stay, a torn one is made again, and new captions join those that are there."""
    monkeypatch.setattr(embeddings, 'SHARD', 2)
    encode, encoded = text_encoder.TextEncoder.encode, []

    def counted(model, some, most):
        if len(encoded) == stop:
            raise KeyboardInterrupt
        encoded.extend(some)
        return encode(model, some, most)

    monkeypatch.setattr(text_encoder.TextEncoder, 'encode', counted)
    path, out = tmp_path / 'captions.txt', tmp_path / 'out'
    path.write_text('\n'.join(CAPTIONS))
    words = ('embed', f'--captions={path}', f'--encoder={models}/t5', f'--out={out}', '--batch=1')
    stop = 3
    with pytest.raises(KeyboardInterrupt):
        command(*words)
    with pytest.raises(ValueError, match='not finished .1 of 3 files.: the same jit-jax embed'):
        data.Embeddings(out)
    assert encoded == ['a red boat', 'a blue house', 'boat']
    stop = None
    assert command(*words)[0] == 0
    assert encoded[3:] == ['boat', 'a red house', 'a boat und noch a']  # of the torn file, all
    before = data.Embeddings(out).tokens(1, 8)
    path.write_text('blue boat\nboat')
    assert command(*words)[0] == 0
    assert encoded[6:] == ['a boat und noch a', 'blue boat']  # its file had room
    there = data.Embeddings(out)
    assert list(there.numbers(['boat', 'blue boat'])) == [2, 5]
    np.testing.assert_array_equal(there.tokens(1, 8)['tokens'], before['tokens'])
    assert not list(out.glob('*.tmp'))
    assert command(*words)[0] == 0 and len(encoded) == 8  # nothing is left to do
    code, _, err = command(*words[:2], f'--encoder={models}/clip', *words[3:])
    assert code == 1 and 'holds embeddings by' in err and 'another folder with --out' in err


def test_what_cannot_be_embedded(command, models, captions, tmp_path, monkeypatch):
    flags = (f'--encoder={models}/t5', f'--out={tmp_path}/out')
    (tmp_path / 'silent.txt').write_text('\n \n')
    for words, sentence in (
        (flags, '--captions says where captions are'),
        ((f'--captions={tmp_path}/none', *flags), 'There is no'),
        ((f'--captions={tmp_path}/silent.txt', *flags), 'holds no captions'),
        ((f'--captions={models}/t5/config.json', *flags), 'a metadata.jsonl, or a .txt; got'),
        ((f'--captions={captions}', flags[1]), '--encoder names a text model'),
        ((f'--captions={captions}', flags[0]), '--out says where embeddings go'),
        ((f'--captions={captions}', f'--encoder={models}/gpt2', flags[1]), "of the kind 'gpt2'"),
        ((f'--captions={captions}', f'--encoder={tmp_path}', flags[1]), 'cannot be loaded'),
    ):
        code, _, err = command('embed', *words)
        assert code == 1 and sentence in err and err.count('\n') == 1, err
    monkeypatch.setattr(text_encoder.importlib.util, 'find_spec', lambda name: None)
    text_encoder.text_encoder.cache_clear()
    code, _, err = command('embed', f'--captions={captions}', *flags)
    assert code == 1 and "transformers, which is not installed: pip install 'jit_jax[text]'" in err
    assert not (tmp_path / 'out').exists()


def test_a_run_learns_from_embeddings_and_draws_from_captions(
    command, models, tmp_path, monkeypatch
):
    """Captions of the folder need no text model; others are encoded by the same one."""
    folder, out = tmp_path / 'images', tmp_path / 'out'
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    for i, image in enumerate(jit_jax.to_pil(images)):
        image.save(folder / f'{i}.png')
        (folder / f'{i}.txt').write_text('\n'.join(CAPTIONS[i : i + 2]))
    config = config_of()
    config.data.kind, config.data.path, config.model.num_classes = 'folder', str(folder), 0
    config.condition.kind, config.condition.embeddings, config.steps = 'text', str(out), 2
    config.checkpoint.every = config.sample.every = 2
    workdir = str(tmp_path / 'run')
    monkeypatch.setattr(loop.page, 'try_write', lambda *_: '')
    for change, sentence in (
        ({}, f'{out} holds no embeddings of captions; write them with: jit-jax embed'),
        (
            {'model.token_width': 6},
            'need config.model.token_width=12 and config.model.vocabulary=0',
        ),
        ({'condition.kind': 'edges', 'model.token_width': 12}, 'set config.condition.kind=text'),
    ):
        with pytest.raises(ValueError, match=sentence):
            config.update_from_flattened_dict(change)
            jit_jax.train(config, workdir)
        if not out.exists():
            flags = (f'--encoder={models}/t5', f'--out={out}')
            assert command('embed', f'--captions={folder}', *flags)[0] == 0
    config.condition.kind = 'text'
    (folder / '1.txt').write_text('another boat')
    with pytest.raises(ValueError, match="'another boat' is not among the captions of .*out"):
        jit_jax.train(config, workdir)
    (folder / '1.txt').write_text('boat')
    jit_jax.train(config, workdir)
    record = json.loads((tmp_path / 'run/config.json').read_text())
    assert record['encoder']['name'] == str(models / 't5') and record['condition']['tokens'] == 8
    model, _ = jit_jax.load(workdir)
    text_encoder.text_encoder.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(text_encoder, 'TextEncoder', None)
        known = inputs.caption_tokens(model.config, 2, ['a red boat', ''])
    both = inputs.caption_tokens(model.config, 2, ['a  red boat', 'a blue boat'])
    rows = text_encoder.text_encoder(str(models / 't5'), '').encode(
        ['a red boat', 'a blue boat'], 9
    )
    for i, row in enumerate(rows):
        assert both['cond_tokens_valid'][i].tolist() == [True] * 4 + [False] * 4 and len(row) == 4
        np.testing.assert_allclose(both['cond_tokens'][i, :4], row, atol=2e-3)
    np.testing.assert_array_equal(known['cond_tokens'][0], both['cond_tokens'][0])
    assert not known['cond_tokens_valid'][1].any()
    sample = ('sample', f'--workdir={workdir}', '--num=2', '--steps=1', f'--out={tmp_path}/a.png')
    assert command(*sample, '--text=a blue boat', '--guidance=2')[0] == 0
    long = (*sample, '--text=' + 'boat ' * 9)
    assert '10 tokens, and this run learned at most 8' in command(*long)[2]
    text_encoder.text_encoder.cache_clear()
    monkeypatch.setattr(text_encoder.importlib.util, 'find_spec', lambda name: None)
    err = command(*sample, '--text=a blue boat')[2]
    assert "'a blue boat' is not among the captions in" in err and 'is not installed' in err
