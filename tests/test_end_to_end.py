"""What a user does, as a user does it: the README's commands in subprocesses, shortened."""

import json
import os
import signal
import time
import zipfile

import numpy as np
import pytest
from PIL import Image
from shell import FIRST, ROOT, SHORT, TINY, assert_same_run, lines, run, start, train, weights

from jit_jax.output.images import Places


def test_first_command_leaves_the_promised_folder(finished):
    cwd, said = finished
    folder = cwd / 'runs' / 'uncond'
    assert [line['step'] for line in lines(folder)] == [2, 4, 6, 8, 10, 12]
    assert {'loss', 'learning_rate', 'images_per_second', 'grad_norm', 'data_wait'} <= lines(
        folder
    )[0].keys()
    assert json.loads((folder / 'config.json').read_text())['steps'] == 12
    assert {'0000006.png', '0000012.png', 'latest.png'} <= set(os.listdir(folder / 'samples'))
    assert {'8', '12'} <= set(os.listdir(folder / 'checkpoints'))
    assert any('tfevents' in name for name in os.listdir(folder / 'tensorboard'))
    assert 'Starting fresh' in said and 'Done: step 12' in said


def test_done_says_so_and_touches_nothing(finished, in_process):
    cwd, _ = finished
    before = (cwd / 'runs/uncond/metrics.jsonl').read_bytes()
    assert 'is done: step 12 of 12; more: raise --config.steps.\n' in in_process(cwd, *FIRST)
    said = in_process(cwd, *FIRST, '--config.optimizer.base_lr=1')
    assert 'Nothing came of what changed: optimizer.base_lr.' in said
    assert (cwd / 'runs/uncond/metrics.jsonl').read_bytes() == before


@pytest.mark.long
def test_stopped_killed_and_out_of_room_equals_never_stopped(finished, env, tmp_path):
    """One run that Ctrl-C, SIGTERM, kill -9 and a disk without room end in turn, each time to go on
    where it was.
    """
    cwd, _ = finished
    folder, newest = tmp_path / 'runs/uncond', 0
    for kind in (signal.SIGINT, signal.SIGTERM):
        process = start(tmp_path, env)
        said, first = process.stdout.readline(), ''
        assert (
            'Starting fresh' if not newest else f'Resuming runs/uncond at step {newest}'
        ) in said
        while not first.startswith('step '):
            first = process.stdout.readline()
        process.send_signal(kind)
        said = process.stdout.read()
        assert process.wait() == 0, said
        assert f'Stopped by {kind.name} after step ' in said and 'saved' in said
        newest = int(said.split('after step ')[1].split(':')[0])
        assert newest < 12 and (folder / f'checkpoints/{newest}').exists()
    process = start(tmp_path, env)
    for line in process.stdout:
        if line.startswith('step '):
            process.kill()
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    said = without_room(tmp_path, env)
    resumed = int(said.split('at step ')[1].split('.')[0])
    assert resumed >= newest and 'was not saved' in said and 'step 12/12' in said
    assert f'error: Step 12 could not be saved; runs/uncond goes on from step {resumed}' in said
    train(tmp_path, env)
    assert_same_run(cwd / 'runs' / 'uncond', folder)


def without_room(cwd, env):
    """The first command where no file may grow past 40 kB: metrics fit, checkpoints of 0.1 M
    parameters do not.
    """
    code = (
        'import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); '
        'resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)); '
        f'sys.path.insert(0, {ROOT!r}); sys.argv[0] = {FIRST[0]!r}; '
        f'runpy.run_path({FIRST[0]!r}, run_name="__main__")'
    )
    set_by_itself = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}
    # Compiled programs are read, and not written: half of one would be found by other tests.
    no_more_programs = {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '1000'}
    return run(['-c', code, *FIRST[1:]], env | set_by_itself | no_more_programs, cwd, code=1)


def size_of_grid(groups: int, images: int, columns: int) -> tuple[int, int]:
    """Of a picture of groups of three-times enlarged 32×32 images, with a head above each image."""
    heads = ('head',) if images > 1 else ()
    return Places((groups, images, 96, 96, 3), columns, heads=heads).size


def test_condition_fine_tunes_the_same_tree_and_shows_three_side_by_side(finished, in_process):
    cwd, _ = finished
    fine_tune = ['train', '--config=cond', *SHORT, '--config.init_from=runs/uncond']
    said = in_process(cwd, *fine_tune, '--config.sample.guidance=2.0', '--config.steps=4')
    assert 'Starting from ema1 of runs/uncond at step 12' in said
    sample = ['sample', '--workdir=runs/cond', '--steps=2']
    in_process(cwd, *sample, '--num=4', '--out=cond.png')
    assert Image.open(cwd / 'cond.png').size == size_of_grid(4, 3, columns=2)
    holed = Image.fromarray(np.full((32, 32, 4), 255, np.uint8))
    holed.paste((0, 0, 0, 0), (8, 8, 16, 16))
    holed.save(cwd / 'holed.png')
    in_process(cwd, *sample, '--cond=holed.png', '--num=2', '--out=filled.png')
    assert Image.open(cwd / 'filled.png').size == size_of_grid(2, 2, columns=1)
    # And back: a run without a condition starts from one with.
    back = ['--workdir=runs/back', '--config.init_from=runs/cond', '--config.init_ema=ema2']
    said = in_process(cwd, 'train', '--config=uncond', *SHORT, *back, '--config.steps=2')
    assert 'Starting from ema2' in said


def test_digits_from_captions(in_process, tmp_path):
    """Trained with a text and a reference beside each other, drawn from a caption of one's own."""
    kind = ['--config.condition.kind=text+edges+grayscale', '--config.model.reference_images=1']
    flags = ['--config=cond:digits_text', *SHORT, *kind, '--config.steps=2', '--workdir=runs/text']
    in_process(tmp_path, 'train', *flags)
    config = json.loads((tmp_path / 'runs/text/config.json').read_text())
    assert config['condition']['tokens'] == 24  # as the longest caption has, in eights
    sample = ['sample', '--workdir=runs/text', '--steps=2', '--num=2']
    in_process(tmp_path, *sample, '--out=held_out.png')
    with_reference = Image.open(tmp_path / 'held_out.png').size
    shape, heads = (2, 4, 96, 96, 3), ('condition', 'reference 1', 'result', 'truth')
    assert with_reference == Places(shape, 1, heads=heads, captions=('a', 'b')).size
    words = ('--text=七', '--text=a seven or a two')
    in_process(tmp_path, *sample, *words, '--out=sevens.png')
    below = Places((2, 1, 96, 96, 3), 2, captions=words).size
    assert Image.open(tmp_path / 'sevens.png').size == below
    said = in_process(tmp_path, *sample, '--text=' + 25 * 'a', '--out=x.png', code=1)
    assert 'is 25 bytes, and this run learned at most 24' in said
    assert not (tmp_path / 'x.png').exists()


def test_sample_writes_what_was_asked_for(finished, in_process):
    cwd, _ = finished
    sample = ['sample', '--workdir=runs/uncond', '--steps=2', '--sampler=euler', '--ema=params']
    in_process(cwd, *sample, '--num=5', '--out=five.npz')
    five = np.load(cwd / 'five.npz')['arr_0']
    assert five.shape == (5, 32, 32, 3) and five.dtype == np.uint8
    in_process(cwd, *sample, '--num=3', '--batch=2', '--out=three.npz')
    three = np.load(cwd / 'three.npz')['arr_0']
    # Image i is image i in any batching.
    assert np.abs(three.astype(int) - five[:3]).max() <= 1


def test_one_device_equals_eight(finished, in_process, tmp_path):
    cwd, _ = finished
    mesh = ('--config.mesh=(2,2,2)', '--config.ema.memory=host')
    in_process(tmp_path, *FIRST, *mesh, devices=8)
    one, eight = cwd / 'runs/uncond', tmp_path / 'runs/uncond'
    for line, other in zip(lines(one), lines(eight), strict=True):
        assert line['loss'] == pytest.approx(other['loss'], rel=1e-4)
    (x, _), (y, _) = weights(one, 'params'), weights(eight, 'params')
    # Adam divides by the gradient's size, so rounding in a tiny gradient moves its parameter by up
    # to a step.
    assert np.mean([np.mean(np.abs(p - q)) for p, q in zip(x, y, strict=True)]) < 1e-4


@pytest.mark.parametrize(
    'flags, says',
    [
        (['--config.stepz=3'], 'stepz'),
        (['--config.steps=many'], 'steps'),
        (['--config.steps=0'], 'config.steps must be a whole number, at least 1'),
        (['--config.model.variant=XL'], 'model.variant must be one of XS, digits, S, B'),
        (['--config.condition.kind=inpain'], 'did you mean inpaint?'),
        (['--config.init_from=runs/nothing'], 'runs/nothing'),
        (['--config.data.kind=folder', '--config.data.path=/nowhere'], '/nowhere'),
        (['--config.batch_size=7', '--config.mesh=(2,1,1)'], 'config.mesh'),
        (['stray'], "'stray' is not a flag"),
        (['--flag_that_is_not=1'], 'flag_that_is_not'),
    ],
)
def test_user_errors_are_one_sentence(in_process, tmp_path, flags, says):
    said = in_process(tmp_path, *FIRST, *flags, code=1)
    assert says in said and 'Traceback' not in said
    assert len([line for line in said.splitlines() if line.startswith('error: ')]) == 1
    assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize(
    'config, says', [('uncond:nothing', "no preset 'nothing'"), ('missing', 'missing')]
)
def test_wrong_config_is_one_sentence(in_process, tmp_path, config, says):
    said = in_process(tmp_path, 'train', f'--config={config}', code=1)
    assert says in said and 'Traceback' not in said


def test_another_architecture_is_refused_before_anything_is_written(finished, in_process):
    cwd, _ = finished
    other = f'--config.model.variant={TINY.replace("depth=2", "depth=3")}'
    new = ('--workdir=runs/other', '--config.init_from=runs/uncond')
    said = in_process(cwd, *FIRST, other, *new, code=1)
    assert 'depth' in said and not (cwd / 'runs/other/config.json').exists()
    before = sorted(os.listdir(cwd / 'runs/uncond/checkpoints'))
    assert 'depth' in in_process(cwd, *FIRST, other, '--config.steps=14', code=1)
    assert sorted(os.listdir(cwd / 'runs/uncond/checkpoints')) == before


def test_a_run_of_days_starts_with_yes_alone_and_a_second_one_on_its_folder_is_refused(
    env, in_process, tmp_path
):
    endless = '--config.steps=10000000000'
    said = in_process(tmp_path, *FIRST, endless, code=1)
    assert 'On this CPU' in said and '--yes' in said and 'Traceback' not in said
    assert not (tmp_path / 'runs').exists(), 'it is asked before anything is written'
    first = start(tmp_path, env, endless, '--yes')
    assert 'Starting fresh' in first.stdout.readline()
    said = in_process(tmp_path, *FIRST, code=1)
    assert 'in use by another run' in said and 'Traceback' not in said
    first.kill()
    first.communicate()


@pytest.mark.slow
def test_twenty_kills_lose_nothing(finished, env, tmp_path):
    """kill -9 at random moments of step, save and pruning; every start goes on from the newest
    complete step.
    """
    cwd, _ = finished
    random = np.random.default_rng(0)
    flags = [
        '--config.checkpoint.every=1',
        '--config.checkpoint.keep_last=1',
        '--config.log_every=1',
        '--config.steps=100',
        '--config.sample.every=1000',
    ]
    newest, kills = 0, 0
    while kills < 20:
        process = start(tmp_path, env, *flags)
        said = process.stdout.readline()
        while 'runs/uncond' not in said:
            said = process.stdout.readline()
        resumed = (
            int(said.split('at step ')[1].split('.')[0].split(',')[0]) if 'Resuming' in said else 0
        )
        assert resumed >= newest, said
        for line in process.stdout:
            if line.startswith('step '):
                break
        time.sleep(random.uniform(0, 0.8))
        process.kill()
        process.communicate()
        kills += 1
        complete = [
            int(name)
            for name in os.listdir(tmp_path / 'runs/uncond/checkpoints')
            if name.isdecimal()
        ]
        newest = max(complete, default=0)
    straight = tmp_path / 'straight'
    straight.mkdir()
    train(tmp_path, env, 'uncond', *flags)
    train(straight, env, 'uncond', *flags)
    assert_same_run(tmp_path / 'runs/uncond', straight / 'runs/uncond')


@pytest.fixture
def glyphs(tmp_path):
    """Real images in nested folders: alphabet/character/*.png."""
    with zipfile.ZipFile(os.path.join(ROOT, 'tests/goldens/omniglot_small.zip')) as archive:
        archive.extractall(tmp_path / 'glyphs')
    return tmp_path / 'glyphs'


FOLDER = ['--config.batch_size=4', '--config.model.image_size=32', '--config.optimizer.warmup=2']


def test_a_folder_of_images_trains_and_samples_by_class_name(in_process, tmp_path, glyphs):
    folder = [
        'train',
        '--config=uncond:folder',
        f'--config.data.path={glyphs}',
        *SHORT,
        *FOLDER,
        '--config.condition.kind=class',
        '--config.model.num_classes=50',
        '--config.sample.guidance=2.0',
        '--config.steps=4',
        '--config.batch_size=8',
    ]
    in_process(tmp_path, *folder)
    run_folder = tmp_path / 'runs/uncond-folder'
    classes = json.loads((run_folder / 'config.json').read_text())['classes']
    assert len(classes) > 1 and all('/' in name for name in classes)
    sample = ['sample', '--workdir=runs/uncond-folder', '--num=2', '--steps=2']
    in_process(tmp_path, *sample, f'--label={classes[1]}', '--out=a.npz')
    in_process(tmp_path, *sample, '--label=1', '--out=b.npz')
    in_process(tmp_path, *sample, '--label=3,7', '--guidance=2', '--out=label.png')
    a, b = (np.load(tmp_path / name)['arr_0'] for name in ('a.npz', 'b.npz'))
    assert a.shape == (2, 32, 32, 3) and np.array_equal(a, b)
    said = in_process(tmp_path, *sample, '--label=nobody', code=1)
    assert "'nobody' is not a class of this run" in said
    said = in_process(tmp_path, *folder, '--config.model.num_classes=1', code=1)
    assert 'config.model.num_classes' in said


def test_the_walk_of_the_readme_from_a_folder_of_pairs_to_a_result(in_process, tmp_path, glyphs):
    """Somebody with two folders and the README: its commands as they stand there, but for a smaller
    model and fewer steps.
    """
    for side in ('target', 'cond'):
        (tmp_path / 'pairs' / side).mkdir(parents=True)
    for i, path in enumerate(sorted(glyphs.rglob('*.png'))[:24]):
        image = Image.open(path).convert('L')
        image.save(tmp_path / 'pairs/target' / f'{i}.png')
        image.resize((20, 20)).save(tmp_path / 'pairs/cond' / f'{i}.jpg')
    image.resize((32, 32)).save(tmp_path / 'new.png')
    with open(os.path.join(ROOT, 'README.md')) as file:
        walk = file.read().partition('## Your own images')[2].split('```')[1]
    commands = [line.split('   #')[0].split() for line in walk.strip().splitlines()]
    (first,) = (words for words in commands if words[1] == 'train.py' and 'pairs' in words[-1])
    rest = [words for words in commands if words[1] == 'sample']
    assert first[:2] == ['python', 'train.py'] and len(rest) == 2
    (config,) = (word for word in first if word.startswith('--config='))
    path = config.replace('--config=', f'--config={ROOT}/')
    flags = [word for word in first[2:] if word != config]
    in_process(tmp_path, first[1], path, *flags, *SHORT, *FOLDER, '--config.steps=4')
    for command in rest:
        assert command[0] == 'jit-jax'
        in_process(tmp_path, *command[1:], '--steps=2')
    # 16 of condition, result and truth; 4 of condition and result.
    assert Image.open(tmp_path / 'pairs.png').size == size_of_grid(16, 3, columns=3)
    assert Image.open(tmp_path / 'new-results.png').size == size_of_grid(4, 2, columns=2)
    report = (tmp_path / 'runs/cond-pairs_cpu/report/index.html').read_text()
    assert (
        'condition | result | truth' in report
        and 'are closer to a training image' in report
        and 'alt="slots"' in report
    )


def test_one_run_learns_several_conditions(in_process, tmp_path):
    kinds = 'super_resolution|inpaint|grayscale'
    several = [f'--config.condition.kind={kinds}', '--config.steps=4']
    said = in_process(tmp_path, 'train', '--config=cond', *SHORT, *several)
    assert f'condition {kinds}' in said and lines(tmp_path / 'runs/cond')[-1]['loss'] > 0
