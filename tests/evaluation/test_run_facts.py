"""What a page says of a run, from the files in its folder."""

import json
import os

import pytest

from configs import uncond
from jit_jax.evaluation import run_facts


@pytest.fixture
def resumed(tmp_path):
    """A folder as a run leaves it that was stopped at step 4 and went on with more steps."""
    lines = [{'step': 2, 'loss': 0.9, 'images_per_second': 8.0}]
    lines += [{'step': 4, 'loss': 0.5, 'images_per_second': 2.0}, {'step': 4, 'evaluate/fid': 9.0}]
    sessions = [{'step': 0, 'time': 0, 'how': 'Starting fresh in run.'}]
    sessions += [{'step': 4, 'time': 3600, 'how': 'Resuming run at step 4, with steps changed.'}]
    for name, content in (('metrics.jsonl', lines), ('history.jsonl', sessions)):
        (tmp_path / name).write_text(''.join(json.dumps(line) + '\n' for line in content))
    os.utime(tmp_path / 'metrics.jsonl', (7200, 7200))
    return str(tmp_path)


def test_facts_of_a_run_that_went_on(resumed):
    config = uncond.get_config().to_dict() | {'batch_size': 16}
    facts = run_facts.facts(resumed, config)
    assert facts['model'] == 'JiT-XS at 32×32, 0.6 M parameters'
    assert facts['step'] == '4 of 2,200, batch 16: 64 images' and facts['loss'] == '0.5'
    assert facts['time'] == '20 s of training steps'  # 32 images at 8 a second, 32 at 2
    assert facts['begun'] == '1970-01-01 00:00 UTC: Starting fresh in run.'
    assert facts['resumed'].startswith('1970-01-01 01:00 UTC: Resuming run at step 4, with steps')
    assert facts['last line'] == '1970-01-01 02:00 UTC'
    assert run_facts.resumed_steps(resumed) == [4]
    # Stopped again between two lines, with an image that could not be read.
    os.makedirs(f'{resumed}/checkpoints/5')
    with open(f'{resumed}/metrics.jsonl', 'a') as file:
        file.write('{"step": 4, "broken_images": 2.0}\n')
    facts = run_facts.facts(resumed, config)
    assert facts['step'] == '5 of 2,200, batch 16: 80 images'
    assert facts['images'].endswith('; 2 could not be read')


def test_a_folder_that_tells_nothing_leaves_it_out(tmp_path):
    facts = run_facts.facts(str(tmp_path), uncond.get_config().to_dict())
    assert list(facts) == ['model', 'condition', 'images']
    assert run_facts.resumed_steps(str(tmp_path)) == [] == run_facts.evaluation(str(tmp_path))


def test_the_latest_evaluation_is_shown(tmp_path):
    entries = {'a': {'fid': 9.0, 'num': 4}, 'b': {'fid': 7.5, 'step': 2, 'psnr': 20.25}}
    (tmp_path / 'evaluation.json').write_text(json.dumps(entries))
    assert run_facts.evaluation(str(tmp_path)) == [('fid', 7.5), ('psnr', 20.25)]
    (tmp_path / 'evaluation.json').write_text('{"a": ')
    assert run_facts.evaluation(str(tmp_path)) == []
