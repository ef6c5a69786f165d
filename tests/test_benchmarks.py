"""The benchmarks run from a clean clone and fill their tables; their numbers are not judged."""

import re
import textwrap
import time
from dataclasses import replace

import jax
import numpy as np
import pytest
from shell import ROOT, TINY, run

from benchmarks import degradations, digits_text, measure, one_shot, same_hand, sample, step
from benchmarks.sample import passes
from configs import uncond
from jit_jax import data
from jit_jax.commands import command_line
from jit_jax.data import digit_captions
from jit_jax.diffusion.generate import Settings


def table(out: str) -> dict[str, list[float]]:
    """Rows of the Markdown table by name: the first number of every cell."""
    cells = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in out.splitlines()
        if line.startswith('|')
    ]
    header, rule, *rows = cells
    assert set(rule) == {'---'} and all(len(row) == len(header) for row in rows)
    found = {
        name: [float(re.match(r'[\d.]+', value)[0]) for value in values] for name, *values in rows
    }
    assert all(value >= 0 for values in found.values() for value in values) and all(
        values[0] > 0 for values in found.values()
    )
    return found


def test_median_and_quartiles():
    assert measure.spread([3.0, 1.0, 2.0, 4.0, 5.0]) == '3 (2–4)'
    assert measure.spread([1234.5]) == '1234 (1234–1234)'


def test_rows_are_changes_of_a_config():
    config = uncond.get_config()
    found = measure.rows(config, step.CHANGES, ['keep', '64+bfloat16'], [])
    assert (
        list(found) == ['keep', '64+bfloat16']
        and found['keep'].compute.dead_slots == 'keep' != config.compute.dead_slots
    )
    assert (
        found['64+bfloat16'].condition.kind == 'super_resolution'
        and found['64+bfloat16'].compute.dtype == 'bfloat16'
    )
    assert set(measure.rows(config, step.CHANGES, None, step.DEFAULT)) >= {
        'keep',
        'skip',
        '64',
        'full',
        'scanned',
        'unscanned',
    }
    with pytest.raises(ValueError, match="--rows: there is no 'kepe'; there are"):
        measure.rows(config, step.CHANGES, ['skip+kepe'], [])


def test_a_row_that_cannot_run_is_said(capsys):
    def build(config):
        if config == 'bad':
            raise ValueError('cudnn needs a GPU.')
        return measure.Program(lambda: None, 1, 1.0, 'float32', 1, 1.0)

    assert list(measure.built({'a': 'good', 'b': 'bad'}, build)) == ['a']
    assert capsys.readouterr().out == 'No row b: cudnn needs a GPU.\n'
    with pytest.raises(ValueError, match='No row could run'):
        measure.built({'b': 'bad'}, build)


def test_the_roofline_beside_what_was_measured(capsys, monkeypatch):
    monkeypatch.setattr(measure, 'ceiling', {'float32': 1e12}.get)
    row = measure.Program(lambda: time.sleep(0.02), 1, 1e9, 'float32', 2**30, 1.0, least=0.01)
    measure.report({'a': row}, 3)
    out = capsys.readouterr().out
    assert 'compile s | of roofline |' in out and 25 < table(out)['a'][-1] <= 50
    measure.report({'a': replace(row, least=None)}, 2)
    assert 'roofline' not in capsys.readouterr().out


@pytest.fixture
def printed(monkeypatch, capsys):
    """A benchmark in this process, on its eight devices: (module, flags) → what it prints."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv('JAX_NUM_CPU_DEVICES', '8')
    monkeypatch.setitem(measure.PRODUCTS, 'cpu', ((64, 128), 2))
    cached = jax.config.jax_enable_compilation_cache

    def call(module, *flags: str) -> str:
        command_line.run(module, [f'--variant={TINY}', '--batch=8', '--rounds=2', *flags], 'here')
        return capsys.readouterr().out

    yield call
    jax.config.update('jax_enable_compilation_cache', cached)


def test_step(printed):
    """The published recipe, made small, without its data."""
    rows = ['skip', 'keep', 'class+unscanned+remat']
    preset = ['--config=configs/uncond.py:imagenet256_b16', '--config.model.image_size=32']
    out = printed(step, *preset, '--steps=2', '--depth=1', f'--rows={",".join(rows)}')
    found = table(out)
    assert list(found) == rows and 'only 1 of its blocks' in out
    assert 'in float32 before or after' in out
    # The ratio to itself; the padding takes memory.
    assert found['skip'][1] == 1 and found['keep'][4] > found['skip'][4]


def test_sample(printed):
    rows = ['skip+euler', 'unguided']
    flags = ['--config=configs/cond.py', '--steps=3', f'--rows={",".join(rows)}']
    assert list(table(printed(sample, *flags))) == rows


def test_passes_of_both_branches():
    """50 Heun steps are 99 passes, the last step being Euler's; null only inside the interval."""
    assert passes(Settings('heun', 50, 3.0, (0.0, 1.0))) == (99, 99)
    assert passes(Settings('heun', 50, 1.0, (0.0, 1.0))) == (99, 0)
    assert passes(Settings('euler', 10, 3.0, (0.45, 1.0))) == (
        10,
        5,
    )  # at t = 0.5, 0.6, 0.7, 0.8 and 0.9


# A network of one parameter with the interface of the official code: both sides take their turns.
DENOISER = """
    import torch

    class Denoiser(torch.nn.Module):
        def __init__(self, args):
            super().__init__()
            assert args.model == 'JiT-B/2' and args.img_size == 32 and args.label_drop_prob == 0.1
            self.scale = torch.nn.Parameter(torch.ones(()).cuda())
            self.before = 1.0
            self.net = torch.nn.Module()
            self.net.blocks = torch.nn.ModuleList(torch.nn.Identity() for _ in range(12))

        def forward(self, x, labels):
            assert x.shape == (2, 3, 32, 32) and x.min() >= -1 and x.max() <= 1 and self.training
            return (self.scale * x).square().mean()

        def update_ema(self):
            assert self.scale.item() != self.before
            self.before = self.scale.item()

        def generate(self, labels):
            assert labels.shape == (2,) and not self.training
            assert len(self.net.blocks) == 1 and self.net.in_context_start == 0
"""
MISC = """
    def add_weight_decay(model, decay):
        return [{'params': list(model.parameters()), 'weight_decay': decay}]
"""


@pytest.mark.long
def test_compare(env, tmp_path):
    pytest.importorskip('torch')
    pytest.importorskip('einops')
    (tmp_path / 'util').mkdir()
    (tmp_path / 'denoiser.py').write_text(textwrap.dedent(DENOISER))
    (tmp_path / 'util/misc.py').write_text(textwrap.dedent(MISC))
    flags = [
        '--batch=2',
        '--rounds=1',
        '--depth=1',
        '--steps=2',
        '--rows=train,sample',
        '--config.model.image_size=32',
    ]
    flags += ['--config.sample.sampler=euler']
    out = run(['-m', 'benchmarks.compare', f'--official={tmp_path}', *flags], env, ROOT)
    found = table(out)
    assert list(found) == ['train', 'sample'] and all(value > 0 for value in found['train'])
    assert '.cuda()' in (tmp_path / 'denoiser.py').read_text()  # only the copy goes without


def test_compare_says_what_is_missing(env, tmp_path):
    out = run(['-m', 'benchmarks.compare', f'--official={tmp_path}'], env, ROOT, code=1)
    assert (
        out.strip()
        .splitlines()[-1]
        .startswith('error: --official names the folder of the official code')
    )


def test_patches_to_restore(monkeypatch):
    """Held-out patches are of other parts of the photographs; conditions are of their columns."""
    train, test = degradations.patches(6)
    assert train.shape == (4000, 32, 32, 3) and test.shape == (6, 32, 32, 3)
    lost = {}
    for name, condition in degradations.COLUMNS.items():
        cond = degradations.degraded(test, condition)
        assert cond.shape == test.shape and np.abs(cond).max() <= 1
        lost[name] = np.abs(cond - (test / 127.5 - 1)).mean()
    assert lost['degraded, 0 to 1'] < lost['degraded, 1 to 1.5'] < lost['twice, 1 to 1.5']


@pytest.mark.slow
def test_degradations(env, tmp_path):
    flags = ['--steps=4', '--num=4', '--rows=bicubic', f'--workdir={tmp_path}']
    out = run(['-m', 'benchmarks.degradations', *flags], env, ROOT)
    first, row = out.splitlines()[-2:]
    assert first.startswith('| the image as it is |') and row.startswith('| bicubic |')


@pytest.mark.slow
def test_start(env, tmp_path):
    tiny = ['--config=uncond', f'--config.model.variant={TINY}', '--config.steps=2']
    rows = table(run(['-m', 'benchmarks.start', *tiny], env | {'PYTHONPATH': ROOT}, tmp_path))
    assert list(rows) == ['cache empty', 'cache full']
    assert rows['cache full'][0] < rows['cache empty'][0]


def test_what_is_asked_of_a_model_of_captions(capsys):
    """Every caption is true of its digits alone, and the last kind is what no image is called."""
    asked = digits_text.asked()
    for rows in asked.values():
        for caption, digits in rows:
            true_of = {
                digit
                for digit in range(10)
                for number in range(9)
                if caption in digit_captions.captions(digit, number)
            }
            # '6' is six in every language, and so on: a name may be that of one digit alone.
            assert true_of <= digits
            assert bool(true_of) != (rows is asked['two that were never joined'])
    rows = sum(len(rows) for rows in asked.values())
    right = np.arange(rows * 2).reshape(rows, 2) % 2 == 0
    digits_text.print_shares(right)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == '| English | 20 | 50.0% |' and lines[-1] == f'| all | {2 * rows} | 50.0% |'


def test_the_nearest_reference_tells_characters_apart():
    """Real drawings do far better than chance, copies are right and share all ink, noise is not."""
    source = data.open_source('omniglot', split='test', image_size=32, channels=1)
    real, references = one_shot.examples(source, 1)
    assert real.shape == (1, 27, 32, 32, 1) and references.shape == (1, 27, 2, 32, 32, 1)
    assert 0.5 < one_shot.right(real, references) < 1
    assert one_shot.right(references[:, :, 1], references) == 1
    assert one_shot.shared(references[:, :, 1], references) == 1
    assert one_shot.shared(real, references) < 0.5
    assert one_shot.right(np.roll(references[:, :, 0], 1, 1), references) == 0
    one_shot.right(np.zeros_like(real), references)  # an empty picture is no reason to end


def test_a_hand_is_followed_by_its_own_digits_alone():
    references, real = same_hand.examples(40)
    assert references.shape == (40, 32, 32, 1) and real.shape == (40, 10, 32, 32, 1)
    others = np.roll(real, 7, 0)
    for measure_of, least in ((same_hand.leaning, 0.7), (same_hand.amount, 0.5)):
        assert same_hand.follows(measure_of, real, references) > least
        assert abs(same_hand.follows(measure_of, others, references)) < 0.3
        copies = np.repeat(references[:, None], 10, 1)
        assert same_hand.follows(measure_of, copies, references) == pytest.approx(1)
    mirrored = real[..., ::-1, :]
    assert same_hand.follows(same_hand.leaning, mirrored, references) < -0.7
