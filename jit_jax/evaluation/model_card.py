"""A model card: what exported weights are, in Markdown, as the Hugging Face Hub shows it."""

import json
import os

from etils import epath

from jit_jax.evaluation import run_facts
from jit_jax.evaluation.page import sample_grids
from jit_jax.output.files import write_whole
from jit_jax.output.images import save_png

SHOWN = ('model', 'condition', 'images', 'step', 'time', 'loss')  # of the facts of a run
HEAD = """\
---
library_name: jit_jax
license: other
tags: [image-generation, pixel-space, jax, flax]
---
"""
LOAD = """\
## Load

```python
import jax, jit_jax

model, params = jit_jax.load('{place}')
images = jit_jax.sample(model, params, jax.random.key(0), num=16)  # uint8 [16, {shape}]
```

or `jit-jax sample --workdir={place} --num=16 --out=samples.png`.
"""


def write(out: str, workdir: str, config: dict, weights: str, step: int) -> str:
    """Writes the card of an export: README.md in a folder, or <name>.md beside <name>.safetensors.

    The newest grid of the run goes with it as a PNG, where there is one. Returns the card's path.
    Raises OSError.
    """
    if out.endswith('.safetensors'):
        stem = out.removesuffix('.safetensors')
        path, picture = f'{stem}.md', f'{stem}.png'
    else:
        path, picture = os.path.join(out, 'README.md'), os.path.join(out, 'samples.png')
    grids = sample_grids(workdir)
    shown = ''
    if grids:
        save_png(picture, grids[max(grids)])
        shown = os.path.basename(picture)
    write_whole(path, card(out, workdir, config, weights, step, shown).encode())
    return path


def card(out: str, workdir: str, config: dict, weights: str, step: int, picture: str) -> str:
    """The text. picture: the file with samples, beside the card; '' for none."""
    place = epath.Path(out).name
    model = config['model']
    parts = [HEAD, f'# {place.removesuffix(".safetensors")}\n']
    kind = 'weights as trained' if weights == 'params' else f'averaged weights, {weights}'
    parts.append(f'A just image transformer (JiT): {kind}, at step {step:,}.\n')
    if picture:
        parts.append(f'![samples]({picture})\n')
    facts = run_facts.facts(workdir, config)
    parts.append(table({name: facts[name] for name in SHOWN if name in facts}))
    numbers = {name: f'{value:.4g}' for name, value in run_facts.evaluation(workdir)}
    if numbers:
        parts += ['## Evaluation\n', table(numbers)]
    shape = f'{model["image_size"]}, {model["image_size"]}, {model["channels"]}'
    parts.append(LOAD.format(place=place, shape=shape))
    parts += ['## Config\n', f'```json\n{json.dumps(config, indent=1)}\n```\n']
    return '\n'.join(parts)


def table(rows: dict[str, str]) -> str:
    """A table of names and values in Markdown."""
    lines = ['| | |', '|---|---|']
    for name, value in rows.items():
        escaped = value.replace('|', '\\|')
        lines.append(f'| {name} | {escaped} |')
    return '\n'.join([*lines, ''])
