"""HTML page with text, tables, curves and playing videos, without scripts or network access."""

import html
import math
import pathlib
import urllib.parse
from collections.abc import Mapping, Sequence

from motionaura_jax.data.media import write_text

Points = Sequence[tuple[float, float]]

_COLORS = ("#0b6e99", "#c2410c", "#4d7c0f", "#7c3aed", "#be123c")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _RIGHT = 460, 258, 54, 34, 12
_TOP = 44  # holds the title and, below it, the labels of the lines

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1917; --soft: #78716c; --line: #d6d3d1; --ground: #fafaf9; --card: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7e5e4; --soft: #a8a29e; --line: #44403c; --ground: #1c1917; --card: #292524; }
}
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--ground);
       max-width: 64rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.4rem; }
p { max-width: 44rem; } .soft, figcaption, svg text { color: var(--soft); fill: var(--soft); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; }
.grid { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem; }
figcaption { font-size: .85rem; margin-top: .4rem; max-width: 16rem; }
video { display: block; width: 16rem; image-rendering: auto; border-radius: .25rem; }
"""


class Page:
    """Page built section by section; `write` puts it in one file next to its videos."""

    def __init__(self, title: str, lead: str):
        self._title = title
        self._parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="soft">{html.escape(lead)}</p>']

    def heading(self, text: str) -> None:
        """Start a section."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def paragraph(self, text: str) -> None:
        """Add plain text."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add a table; `str` formats its cells."""
        cells = ["".join(f"<th>{html.escape(name)}</th>" for name in header)]
        cells += ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows]
        self._parts.append("<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>")

    def videos(self, items: Sequence[tuple[str, str]]) -> None:
        """Add `(caption, relative path)` videos that play in a loop."""
        figures = [
            f'<figure><video src="{html.escape(urllib.parse.quote(path), quote=True)}" autoplay loop muted playsinline></video>'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            for caption, path in items
        ]
        self._parts.append(f'<div class="grid">{"".join(figures)}</div>')

    def curves(self, charts: Mapping[str, Mapping[str, Points]]) -> None:
        """Add one chart per title, with one line per label; non-finite points are left out."""
        drawn = [f"<figure>{curve(title, lines)}</figure>" for title, lines in charts.items()]
        self._parts.append(f'<div class="grid">{"".join(drawn)}</div>')

    def write(self, path: pathlib.Path) -> None:
        """Write the page atomically."""
        head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        body = "\n".join(self._parts)
        title = html.escape(self._title)
        write_text(
            path,
            f'<!doctype html>\n<html lang="en"><head>{head}<title>{title}</title><style>{_STYLE}</style></head>\n'
            f"<body>\n{body}\n</body></html>\n",
        )


def curve(title: str, lines: Mapping[str, Points]) -> str:
    """Plot lines over shared axes as SVG."""
    finite = {label: [p for p in points if all(map(math.isfinite, p))] for label, points in lines.items()}
    every = [point for points in finite.values() for point in points]
    parts = [f'<text x="{_LEFT}" y="16" font-weight="600">{html.escape(title)}</text>']
    if not every:
        parts.append(f'<text x="{_LEFT}" y="{_HEIGHT / 2}">nothing was logged</text>')
        return _svg(parts)
    x_scale = _scale([x for x, _ in every], _LEFT, _WIDTH - _RIGHT)
    y_scale = _scale([y for _, y in every], _HEIGHT - _BOTTOM, _TOP)
    for value in x_scale.ticks:
        x = x_scale(value)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{value:g}</text>')
    for value in y_scale.ticks:
        y = y_scale(value)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8a837e" stroke-opacity="0.4"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for index, points in enumerate(finite.values()):
        color = _COLORS[index % len(_COLORS)]
        path = " ".join(f"{x_scale(x):.1f},{y_scale(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"/>')
    if len(finite) > 1:
        names = (
            f'<tspan style="fill:{_COLORS[i % len(_COLORS)]}">{html.escape(n)}</tspan>' for i, n in enumerate(finite)
        )
        parts.append(f'<text x="{_LEFT}" y="34">{"&#160; &#160;".join(names)}</text>')
    return _svg(parts)


class _scale:
    """Linear map from values to pixels, with round tick values."""

    def __init__(self, values: Sequence[float], start: float, stop: float):
        low, high = min(values), max(values)
        if high == low:
            low, high = low - 0.5, high + 0.5
        step = 10 ** math.floor(math.log10((high - low) / 3))
        step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 5)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        self.ticks = [round(index * step, 12) for index in range(first, last + 1)]
        self._low, self._span, self._start, self._length = low, high - low, start, stop - start

    def __call__(self, value: float) -> float:
        return self._start + (value - self._low) / self._span * self._length


def _svg(parts: Sequence[str]) -> str:
    # The font and colors suit a picture outside a page, on a light or dark background; a page sets its own.
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" font-size="11" font-family="sans-serif" '
        f'fill="#8a837e" role="img" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )
