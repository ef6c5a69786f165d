"""Does it pay to pre-train without a condition? Training runs that tell, and a page of results.

    python -m benchmarks.unification --quick                 # minutes: whether it all runs
    python -m benchmarks.unification                         # an hour or two on one core
    python -m benchmarks.unification --page                  # the tables and figures of the page

Every run is one line of --results. A run that has its line is skipped, so the command goes on where
it was stopped. Weights before fine-tuning are kept in --weights and made once for each seed.
"""

import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from jit_jax.commands import command_line, environment
from jit_jax.output.files import append

SEEDS = (0, 1, 2)
PAIRS = 150  # of the reference; other runs differ from it in one thing
DROP = 0.1
ARMS = {  # null: how no condition is said; before: what comes before fine-tuning
    'scratch': {'null': 'mask', 'before': False},
    'mask': {'null': 'mask', 'before': True},
    'token': {'null': 'token', 'before': True},
    'copied': {'null': 'mask', 'before': True},
    'mixed': {'null': 'mask', 'before': False},
}


@dataclass(frozen=True)
class Length:
    """Steps of training, and of its measurements."""

    before: int  # without a condition
    tuning: tuple[int, ...]  # the fine-tuning curve; the last is the budget


WHOLE, QUICK = Length(600, (50, 150)), Length(4, (2, 4))


@dataclass(frozen=True)
class Run:
    """A line of the results. pairs None: every image has its condition.

    long: goes on until it has cost as much as pre-training and fine-tuning together.
    """

    task: str
    arm: str
    seed: int
    pairs: int | None = PAIRS
    drop: float = DROP
    long: bool = False

    @property
    def name(self) -> str:
        pairs = 'all' if self.pairs is None else self.pairs
        return f'{self.task}/{self.arm}/pairs={pairs}/drop={self.drop}/seed={self.seed}'


def plan() -> Iterator[Run]:
    """The runs, those first without which the others say little. Not every combination.

    First the reference, 150 pairs and drop 0.1; then, seed by seed, what differs from it in one
    thing.
    """
    for seed in SEEDS:
        yield Run('super_resolution', 'mask', seed)
        yield Run('super_resolution', 'scratch', seed, long=True)
    for seed in SEEDS:
        yield from around_the_reference(seed)


def around_the_reference(seed: int) -> Iterator[Run]:
    """Other tasks, numbers of pairs, rates of drop and arms."""
    yield Run('inpaint', 'mask', seed)
    yield Run('inpaint', 'scratch', seed, long=True)
    for drop in (0.0, 0.5):
        yield Run('super_resolution', 'mask', seed, drop=drop)
    yield Run('super_resolution', 'mask', seed, pairs=50)
    yield Run('super_resolution', 'scratch', seed, pairs=50, long=True)
    yield Run('super_resolution', 'copied', seed)
    yield Run('super_resolution', 'mixed', seed, long=True)
    yield Run('glyphs', 'mask', seed)
    yield Run('glyphs', 'scratch', seed, long=True)
    yield Run('super_resolution', 'token', seed)
    for pairs in (500, None):
        yield Run('super_resolution', 'mask', seed, pairs=pairs)
        yield Run('super_resolution', 'scratch', seed, pairs=pairs)
    yield Run('inpaint', 'copied', seed)
    yield Run('inpaint', 'mixed', seed, long=True)
    yield Run('glyphs', 'mixed', seed, long=True)
    yield Run('inpaint', 'token', seed)


class Experiment:
    """Carries runs out, each program compiled once.

    results: the file of lines; weights: a folder; num: how many images a measurement draws.
    """

    def __init__(self, results: str, weights: str, length: Length, num: int):
        from benchmarks import fine_tuning

        self.results, self.weights, self.length = results, weights, length
        self._measured = fine_tuning.Measured(num, num // 2, length.tuning[-1])
        self._bench, self._benches = fine_tuning.Bench, {}
        self.done = read(results)

    def bench(self, task: str, null: str, *, conditioned: bool):
        """The `fine_tuning.Bench` of these, made once."""
        key = (task, null, conditioned)
        if key not in self._benches:
            made = self._bench(task, null, self._measured, conditioned=conditioned)
            self._benches[key] = made
        return self._benches[key]

    def carry_out(self, run: Run) -> None:
        """Trains and measures a run, unless it has its line."""
        if run.name in self.done:
            return
        arm = ARMS[run.arm]
        bench = self.bench(run.task, arm['null'], conditioned=True)
        params = None
        if arm['before']:
            params = self.before(run, arm['null'])
        if run.arm == 'copied':
            params = with_copied_embedding(params)
        rows = bench.rows(run.pairs, run.drop, run.seed, mixed=run.arm == 'mixed')
        found, _ = bench.curve(params, rows, run.seed, self._steps(run, bench))
        self.write(run.name, dataclasses.asdict(run) | found)

    def before(self, run: Run, null: str) -> dict:
        """The weights of training without a condition on all images: read, or made and kept."""
        from benchmarks import few_pairs
        from jit_jax.training.weights import read_weights, write_weights

        data = few_pairs.TASKS[run.task]['images']
        name = f'{data}/before-{null}/seed={run.seed}'
        folder = os.path.join(self.weights, name.replace('/', '-'))
        if name not in self.done or not os.path.exists(folder):
            bench = self.bench(run.task, null, conditioned=False)
            rows = bench.rows(None, 0.0, run.seed, mixed=False)
            found, weights = bench.curve(None, rows, run.seed, [self.length.before])
            if not os.path.exists(folder):
                write_weights(folder, bench.config.to_dict(), None, {'ema1': weights})
            about = {'task': data, 'arm': f'before-{null}', 'seed': run.seed}
            self.write(name, about | found)
        return read_weights(folder)[1]

    def _steps(self, run: Run, bench) -> list[int]:
        """The steps after which a run is measured, the last of which ends it."""
        steps = list(self.length.tuning)
        if run.long:
            alone = self.bench(run.task, ARMS[run.arm]['null'], conditioned=False)
            steps.append(steps[-1] + round(self.length.before * alone.flops / bench.flops))
        return steps

    def write(self, name: str, found: dict) -> None:
        """Appends the line of a run, and says how it ended."""
        line = {'run': name, **found, 'finished': time.strftime('%Y-%m-%d %H:%M')}
        os.makedirs(os.path.dirname(os.path.abspath(self.results)), exist_ok=True)
        append(self.results, json.dumps(line) + '\n')
        self.done[name] = line
        end = found['curve'][-1]
        words = [f'{key} {value:.3g}' for key, value in end.items() if 'held_out' not in key]
        print(f'{name}: {", ".join(words)}', flush=True)


def with_copied_embedding(params: dict) -> dict:
    """Weights whose condition patches are embedded as the target's are."""
    return params | {'cond_embed': params['target_embed']}


def read(path: str) -> dict[str, dict]:
    """The lines of a results file by the name of their run; {} where there is no file."""
    if not os.path.exists(path):
        return {}
    with open(path) as file:
        lines = [json.loads(line) for line in file]
    return {line['run']: line for line in lines}


def results(path: str):
    """The lines at `path` for the tables of the page."""
    from benchmarks import unification_page

    return unification_page.Results(list(read(path).values()), WHOLE.tuning, WHOLE.before)


def define_flags(parser):
    add = parser.add_argument
    add('--results', default='docs/unification.jsonl', help='a line for each run')
    add('--weights', default='runs/unification', help='a folder for pre-trained weights')
    add('--only', default='', help='a regular expression: runs whose name has it')
    add('--quick', action='store_true', help='a few steps of every run, of one seed')
    add('--page', action='store_true', help='no runs: what docs/unification.md shows of --results')


def main(args):
    if args.page:
        from benchmarks import unification_page

        unification_page.write(results(args.results), 'docs/unification.md')
        return
    length, num, path, weights = WHOLE, 96, args.results, args.weights
    runs = [run for run in plan() if re.search(args.only, run.name)]
    if args.quick:
        length, num = QUICK, 4
        path, weights = f'{args.weights}/quick/results.jsonl', f'{args.weights}/quick'
        runs = [run for run in runs if run.seed == 0]
    experiment = Experiment(path, weights, length, num)
    for run in runs:
        experiment.carry_out(run)


if __name__ == '__main__':
    environment.restart_with_variables()
    command_line.run(sys.modules[__name__], sys.argv[1:], 'python -m benchmarks.unification')
