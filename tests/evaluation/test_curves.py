"""The numbers of a run as curves."""

import json

from jit_jax.evaluation.curves import families


def write_lines(path, lines):
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


def test_families_put_what_ends_in_a_number_on_one_chart(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    write_lines(
        path,
        [
            {
                'step': s,
                'loss': 2.0 / s,
                'v_loss_t0.2': 1.0,
                'v_loss_t0.5': 0.5 * s,
                'v_loss_t0.5_0.75': 0.5 * s,
                'broken': 0,
                'broken_images': 1,
                'odd': float('nan'),
            }
            for s in (1, 2)
        ],
    )
    found = families(path)
    assert list(found) == ['loss', 'v_loss']
    assert found['loss'] == {'': [(1, 2.0), (2, 1.0)]} and found['v_loss'] == {
        't0.2': [(1, 1.0), (2, 1.0)],
        't0.5': [(1, 0.5), (2, 1.0)],
        't0.5–0.75': [(1, 0.5), (2, 1.0)],
    }


def test_what_numbers_are_held_against_is_on_their_chart(tmp_path):
    names = ('readable', 'readable_svc', 'readable_svc_held_out', 'seams')
    write_lines(tmp_path / 'metrics.jsonl', [{'step': 4, f'evaluate/{n}': 0.5} for n in names])
    found = families(tmp_path / 'metrics.jsonl')
    assert list(found) == ['evaluate/readable', 'evaluate/seams']
    assert list(found['evaluate/readable']) == ['generated', 'svc', 'svc held out']


def test_a_torn_line_and_no_file_are_no_curves(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    assert families(path) == {}
    write_lines(path, [{'step': 1, 'loss': 2.0}])
    path.write_text(path.read_text() + '{"step": 2, "lo')
    assert families(path) == {'loss': {'': [(1, 2.0)]}}
