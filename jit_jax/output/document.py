"""An HTML page in one file: its pictures are in it, and beside it as PNGs."""

import base64
import html
import json
import os

import numpy as np
from etils import epath

from jit_jax.output import files
from jit_jax.output.images import save_png

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #2a2f38; --faint: #687080;
  --line: #e4e7ec; --box: #f6f7f9; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181d; --ink: #dde1e8;
  --faint: #98a1b0; --line: #2d333d; --box: #1d2229; }
  img.chart { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen; }
  img.squares { border-radius: 4px; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1120px; margin: 1.5em auto; padding: 0 1em; }
h1, h2 { font-weight: 600; overflow-wrap: anywhere; line-height: 1.25; }
h2 { margin: 2em 0 .6em; border-bottom: 1px solid var(--line); padding-bottom: .2em; }
p, figcaption { color: var(--faint); font-size: 13px; overflow-wrap: anywhere; max-width: 75ch; }
figure { margin: 0; min-width: 0; }
img { display: block; max-width: 100%; height: auto; }
img.squares { image-rendering: pixelated; }
.row { display: grid; gap: 1em 1.5em; align-items: start; margin: .6em 0; }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); }
.stages { grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
.pair { grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); }
.scroll { overflow-x: auto; }
.scroll img { max-width: none; }
table { border-collapse: collapse; font-size: 14px; }
td, th { text-align: left; vertical-align: top; padding: .25em 1.2em .25em 0;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th { font-weight: 500; color: var(--faint); white-space: nowrap; }
thead th { color: var(--ink); white-space: normal; }
pre { background: var(--box); padding: 1em; overflow: auto; font-size: 12px; }
summary { cursor: pointer; }
"""


class Document:
    """A page on its way. `folder` gets index.html and the pictures."""

    def __init__(self, folder: str):
        self.folder, self.parts = folder, []

    def section(self, title: str, note: str = '') -> None:
        """Begins a part of the page."""
        self.parts.append(f'<h2>{html.escape(title)}</h2>')
        self.note(note)

    def note(self, text: str) -> None:
        """Adds a paragraph; '' adds none."""
        if text:
            self.parts.append(f'<p>{html.escape(text)}</p>')

    def begin_row(self, kind: str) -> None:
        """Pictures until `end_row` lie side by side: 'charts', 'stages' or 'pair'."""
        self.parts.append(f'<div class="row {kind}">')

    def end_row(self) -> None:
        self.parts.append('</div>')

    def picture(
        self,
        name: str,
        image: np.ndarray,
        caption: str = '',
        *,
        width: int,
        kind: str = 'squares',
        scrolls: bool = False,
    ) -> None:
        """Adds a picture, uint8 [h, w, 3], `width` pixels wide where there is room.

        kind: 'squares', whose pixels stay squares; 'chart', which turns dark on a dark page.
        scrolls: where there is less room, it scrolls in a box of its own and keeps its width, so
        that its words can be read.
        """
        path = os.path.join(self.folder, f'{name}.png')
        save_png(path, image)
        content = base64.b64encode(epath.Path(path).read_bytes()).decode()
        below = f'<figcaption>{html.escape(caption)}</figcaption>' if caption else ''
        figure = '<figure class="scroll">' if scrolls else '<figure>'
        self.parts.append(
            f'{figure}<img alt="{html.escape(name)}" class="{kind}" width="{width}" '
            f'src="data:image/png;base64,{content}">{below}</figure>'
        )

    def table(self, rows: list[list[str]], heads: list[str] | None = None) -> None:
        """Adds a table; the first cell of a row is its name."""
        parts = ['<div class="scroll"><table>']
        if heads:
            cells = ''.join(f'<th>{html.escape(head)}</th>' for head in heads)
            parts.append(f'<thead><tr>{cells}</tr></thead>')
        for name, *values in rows:
            cells = ''.join(f'<td>{html.escape(value)}</td>' for value in values)
            parts.append(f'<tr><th>{html.escape(name)}</th>{cells}</tr>')
        self.parts.append(''.join([*parts, '</table></div>']))

    def details(self, title: str, values: dict) -> None:
        """Adds values that open with a click."""
        text = html.escape(json.dumps(values, indent=1))
        self.parts.append(
            f'<details><summary>{html.escape(title)}</summary><pre>{text}</pre></details>'
        )

    def save(self, title: str, about: str = '') -> str:
        """Writes index.html and returns its path."""
        title = html.escape(title)
        below = f'<p>{html.escape(about)}</p>' if about else ''
        text = (
            '<!doctype html><html lang="en"><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<title>{title}</title><style>{STYLE}</style>'
            f'<h1>{title}</h1>{below}{"".join(self.parts)}</html>'
        )
        path = os.path.join(self.folder, 'index.html')
        files.write_whole(path, text.encode())
        return path
