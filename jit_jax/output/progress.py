"""The lines that a person reads while a run trains."""

MOST = 2  # numbers of generated images in a line
WATCHED = {  # of what an evaluation found, the first of these
    'fid': 'FID {:.4g}',
    'psnr': 'PSNR {:.2f} dB',
    'readable': '{:.1%} readable',
    'ssim': 'SSIM {:.3f}',
    'classifier_distance': 'classifier distance {:.3g}',
}


def progress_line(step: int, steps: int, values: dict[str, float], seconds_left: float) -> str:
    """`step 50/2200    loss 0.412   lr 1.2e-04     86.1 images/s  left 3.1 min`."""
    at = f'step {step}/{steps}'.ljust(len(f'step {steps}/{steps}'))
    return f'{at}  {shown(values)}  left {duration(seconds_left)}'


def times_left(every: int, step: int, steps: int) -> int:
    """How often that still comes which comes after each `every` steps, 0 for never, and after the
    last: of `step` itself too, whose line is written before.
    """
    if not every:
        return 0
    return steps // every - (step - 1) // every + (steps % every > 0)


def measured(step: int, values: dict[str, float]) -> str:
    """What an evaluation found after a step, in a line: the few numbers that one watches.

    `measured at step 550: held-out loss 0.213, 78.1 % readable, classifier distance 31.4`, with
    where the others are. The loss is the mean of those at times of equal parts of [0, 1].
    """
    found = {name.removeprefix('evaluate/'): value for name, value in values.items()}
    losses = [value for name, value in found.items() if name.startswith('v_loss_t')]
    parts = [f'held-out loss {sum(losses) / len(losses):.3g}'] if losses else []
    known = [words.format(found[name]) for name, words in WATCHED.items() if name in found]
    if not parts and not known:  # none of these: the first ones there are
        known = [f'{name} {value:.4g}' for name, value in found.items()]
    parts += known[:MOST]
    rest = '; all numbers are in metrics.jsonl' if len(found) > len(parts) else ''
    return f'measured at step {step}: {", ".join(parts)}{rest}'


def shown(values: dict[str, float]) -> str:
    """The numbers of a training step that one watches."""
    parts = []
    if 'loss' in values:
        parts.append(f'loss {values["loss"]:<6.3g}')
    if 'learning_rate' in values:
        parts.append(f'lr {values["learning_rate"]:.1e}')
    if 'images_per_second' in values:
        parts.append(f'{three_digits(values["images_per_second"]):>7} images/s')
    return '  '.join(parts)


def three_digits(value: float) -> str:
    """At least three digits, without an exponent: 5.00, 86.1, 12346."""
    return f'{value:.{2 if value < 10 else 1 if value < 100 else 0}f}'


def duration(seconds: float) -> str:
    """`40 s`, `3.1 min` or `2.5 h`."""
    if seconds < 60:
        return f'{seconds:.0f} s'
    if seconds < 3600:
        return f'{seconds / 60:.1f} min'
    return f'{seconds / 3600:.1f} h'
