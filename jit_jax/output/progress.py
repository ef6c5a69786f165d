"""The lines that a person reads while a run trains."""

COLUMNS = 3  # of what an evaluation found


def progress_line(step: int, steps: int, values: dict[str, float], seconds_left: float) -> str:
    """`step 50/2200    loss 0.412   lr 1.2e-04     86.1 images/s  left 3.1 min`."""
    at = f'step {step}/{steps}'.ljust(len(f'step {steps}/{steps}'))
    return f'{at}  {shown(values)}  left {duration(seconds_left)}'


def table(step: int, values: dict[str, float]) -> str:
    """What an evaluation found after a step, in columns below a heading."""
    cells = {name.removeprefix('evaluate/'): f'{value:.4g}' for name, value in values.items()}
    widths = [max(map(len, texts)) for texts in (cells, cells.values())]
    lines = [f'measured at step {step}:']
    for i, (name, value) in enumerate(cells.items()):
        if i % COLUMNS == 0:
            lines.append('')
        lines[-1] += f'  {name:{widths[0]}} {value:{widths[1]}}'
    return '\n'.join(line.rstrip() for line in lines)


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
