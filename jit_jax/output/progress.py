"""The line that a person reads while a run trains."""


def progress_line(step: int, steps: int, values: dict[str, float], seconds_left: float) -> str:
    """`step 50/2200    loss 0.412   lr 1.2e-04     86.1 images/s  left 3.1 min`."""
    at = f'step {step}/{steps}'.ljust(len(f'step {steps}/{steps}'))
    return f'{at}  {shown(values)}  left {duration(seconds_left)}'


def shown(values: dict[str, float]) -> str:
    """The numbers of a training step that one watches; of other lines, such as an evaluation's,
    all.
    """
    parts = []
    if 'loss' in values:
        parts.append(f'loss {values["loss"]:<6.3g}')
    if 'learning_rate' in values:
        parts.append(f'lr {values["learning_rate"]:.1e}')
    if 'images_per_second' in values:
        parts.append(f'{three_digits(values["images_per_second"]):>7} images/s')
    return '  '.join(parts or [f'{name} {value:.4g}' for name, value in values.items()])


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
