"""The tables and figures of docs/unification.md, from the lines that `unification.py` wrote."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

ARMS = {  # as they are called on the page, in its order
    'scratch': 'from scratch',
    'mask': 'pre-trained, dead slots',
    'copied': 'pre-trained, embedding copied',
    'token': 'pre-trained, learned token',
    'mixed': 'both at once',
}
TASKS = {
    'super_resolution': 'super-resolution, 8×8 → 32×32',
    'inpaint': 'inpainting',
    'glyphs': "glyphs from another person's",
}
REFERENCE = {'pairs': 150, 'drop': 0.1}
SCORES = {  # by key of a measurement: a column's head and its decimals
    'psnr': ('PSNR, dB', 1),
    'ssim': ('SSIM', 3),
    'classifier_distance': ('distance', 0),
    'unconditional_classifier_distance': ('without a condition', 0),
}


@dataclass(frozen=True)
class Results:
    """Lines of the results, and the steps of fine-tuning and of what comes before."""

    lines: list[dict]
    tuning: tuple[int, ...]  # after which steps a run is measured; the last is the budget
    before: int

    def find(self, **wanted) -> list[dict]:
        """The lines, one a seed, of which all of this is true."""
        found = []
        for line in self.lines:
            if all(name in line and line[name] == value for name, value in wanted.items()):
                found.append(line)
        return sorted(found, key=lambda line: line['seed'])

    def reference(self, task: str, arm: str, **changes) -> list[dict]:
        return self.find(task=task, arm=arm, **(REFERENCE | changes))


def at(line: dict, step: int | None) -> dict:
    """What was measured after `step` of a run, None for its end; {} where nothing was."""
    if step is None:
        return line['curve'][-1]
    return next((point for point in line['curve'] if point['step'] == step), {})


def values(lines: list[dict], step: int | None, score: str) -> np.ndarray:
    """A score of each line that has it at a step."""
    points = [at(line, step) for line in lines]
    return np.array([point[score] for point in points if score in point])


def cell(found: np.ndarray, decimals: int) -> str:
    """Mean ± standard deviation over seeds; the number alone of a single one."""
    if not len(found):
        return ''
    text = f'{found.mean():.{decimals}f}'
    if len(found) > 1:
        text += f' ± {found.std(ddof=1):.{decimals}f}'
    return text


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def scores_of(lines: list[dict], step: int | None, scores: list[str]) -> list[str]:
    """How many seeds there are, and a cell for each score."""
    cells = [cell(values(lines, step, score), SCORES[score][1]) for score in scores]
    return [str(len(lines)), *cells]


def equal_steps(results: Results) -> str:
    """Every arm after the same numbers of fine-tuning steps."""
    scores, rows = ['psnr', 'ssim', 'classifier_distance'], []
    for task, task_name in TASKS.items():
        for step in results.tuning:
            for arm, name in ARMS.items():
                lines = results.reference(task, arm)
                if lines:
                    rows.append([task_name, str(step), name, *scores_of(lines, step, scores)])
    heads = [SCORES[score][0] for score in scores]
    return markdown(['task', 'steps', 'arm', 'seeds', *heads], rows)


def equal_compute(results: Results) -> str:
    """Arms that cost the same, pre-training included."""
    scores, rows = list(SCORES), []
    for task, task_name in TASKS.items():
        for pairs in (50, 150, None):
            for arm in ('mask', 'scratch', 'mixed'):
                lines = results.reference(task, arm, pairs=pairs)
                lines = [line for line in lines if line['long'] or arm == 'mask']
                if lines:
                    steps = lines[0]['curve'][-1]['step']
                    spent = f'{results.before} + {steps}' if arm == 'mask' else f'{steps}'
                    row = [task_name, counted(pairs), ARMS[arm], spent]
                    rows.append(row + scores_of(lines, None, scores))
    heads = [SCORES[score][0] for score in scores]
    return markdown(['task', 'pairs', 'arm', 'steps', 'seeds', *heads], rows)


def counted(pairs: int | None) -> str:
    return 'all' if pairs is None else str(pairs)


def by_pairs(results: Results) -> str:
    """Super-resolution by the number of pairs, after the same number of fine-tuning steps."""
    scores, rows = ['psnr', 'ssim', 'classifier_distance'], []
    for pairs in (50, 150, 500, None):
        for arm in ('scratch', 'mask'):
            lines = results.reference('super_resolution', arm, pairs=pairs)
            if lines:
                row = [counted(pairs), ARMS[arm]]
                rows.append(row + scores_of(lines, results.tuning[-1], scores))
    heads = [SCORES[score][0] for score in scores]
    return markdown(['pairs', 'arm', 'seeds', *heads], rows)


def forgetting(results: Results) -> str:
    """Images without a condition, before fine-tuning and after it by `drop`."""
    scores = ['psnr', 'classifier_distance', 'unconditional_classifier_distance']
    before = results.find(task='digits', arm='before-mask')
    rows = [['before fine-tuning', *scores_of(before, None, scores)]]
    for drop in (0.0, 0.1, 0.5):
        lines = results.reference('super_resolution', 'mask', drop=drop)
        if lines:
            rows.append([f'drop {drop}', *scores_of(lines, None, scores)])
    heads = [SCORES[score][0] for score in scores]
    return markdown(['super-resolution', 'seeds', *heads], rows)


def machine(results: Results) -> str:
    """What the runs have cost."""
    seconds = sum(line['training_seconds'] + line['measuring_seconds'] for line in results.lines)
    teraflop = sum(line['petaflop'] for line in results.lines) * 1000
    return (
        f'{len(results.lines)} runs, {teraflop:.0f} TFLOP of training, {seconds / 60:.0f} minutes '
        'of one core.'
    )


TABLES: dict[str, Callable[[Results], str]] = {
    'equal steps': equal_steps,
    'equal compute': equal_compute,
    'pairs': by_pairs,
    'forgetting': forgetting,
    'machine': machine,
}


def with_tables(text: str, results: Results) -> str:
    """A page with what stands between `<!-- NAME -->` and `<!-- end -->` made anew."""
    for name, make in TABLES.items():
        block = f'<!-- {name} -->\n{make(results)}\n<!-- end -->'
        text = re.sub(rf'<!-- {name} -->\n.*?<!-- end -->', lambda _: block, text, flags=re.S)  # noqa: B023
    return text


def write(results: Results, path: str) -> None:
    """Makes the tables of the page at `path` anew, and its figures beside it."""
    with open(path) as file:
        text = file.read()
    with open(path, 'w') as file:
        file.write(with_tables(text, results))
    stem = os.path.splitext(path)[0]
    draw_curves(results, f'{stem}-curves.png')


def draw_curves(results: Results, path: str) -> None:
    """PSNR by steps of all training, a panel for each task: means, and a band of one deviation."""
    from matplotlib.figure import Figure

    from jit_jax.output.charts import COLORS, FAINT, INK

    tasks = [task for task in TASKS if results.reference(task, 'scratch')]
    figure = Figure((3.4 * len(tasks), 3.3), dpi=150, layout='constrained')
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        for color, (arm, name) in zip(COLORS, ARMS.items()):
            lines = results.reference(task, arm)
            if lines:
                steps, mean, spread = curve(lines, 'psnr')
                axes.plot(steps, mean, color=color, label=name, marker='o', markersize=3)
                low, high = mean - spread, mean + spread
                axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
        axes.set_title(TASKS[task], loc='left', color=INK, fontsize=9)
        axes.set_xlabel('steps with the condition', color=INK, fontsize=8)
        axes.set_xscale('log')
        ticks = [point['step'] for point in results.reference(task, 'scratch')[0]['curve']]
        axes.set_xticks(ticks, ticks)
        axes.minorticks_off()
        axes.tick_params(colors=INK, labelsize=8)
        axes.grid(axis='y', color=FAINT)
        axes.spines[['top', 'right', 'left']].set_visible(False)
    panels[0].set_ylabel('PSNR, dB', color=INK, fontsize=8)
    names = {}  # and the curve of each, of whichever panel has it
    for axes in panels:
        for curve_, name in zip(*axes.get_legend_handles_labels(), strict=True):
            names[name] = curve_
    where = {'loc': 'outside lower center', 'ncols': 3, 'frameon': False, 'fontsize': 8}
    figure.legend(names.values(), names.keys(), labelcolor=INK, **where)
    figure.savefig(path)


def curve(lines: list[dict], score: str) -> tuple[list[int], np.ndarray, np.ndarray]:
    """(steps, means over seeds, deviations) of a score, where every line has it."""
    steps = [point['step'] for point in lines[0]['curve'] if score in point]
    found = np.array([values(lines, step, score) for step in steps])
    spread = found.std(1, ddof=1) if len(lines) > 1 else np.zeros(len(steps))
    return steps, found.mean(1), spread
