"""HTML page with text, tables, curves and playing videos, without scripts or network access."""

import dataclasses
import html
import math
import pathlib
import urllib.parse
from collections.abc import Callable, Mapping, Sequence

from motionaura_jax.data.media import write_text

Points = Sequence[tuple[float, float]]

_COLORS = ("#0b6e99", "#c2410c", "#4d7c0f", "#7c3aed", "#be123c")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _RIGHT = 460, 258, 54, 34, 12
_TOP = 44  # holds the title and, below it, the labels of the lines
_LOGARITHMIC = 20  # ratio of the largest value to the smallest
_MARKED = 20  # lines of so few points show each of them

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1917; --soft: #6b645f; --line: #d6d3d1; --ground: #fafaf9; --card: #fff;
        --accent: #0b6e99; --good: #3f6212; --bad: #b91c1c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7e5e4; --soft: #a8a29e; --line: #44403c; --ground: #1c1917; --card: #292524;
          --accent: #38bdf8; --good: #a3e635; --bad: #f87171; }
  svg .c0 { stroke: #38bdf8; } svg .c1 { stroke: #fb923c; } svg .c2 { stroke: #a3e635; }
  svg .c3 { stroke: #c4b5fd; } svg .c4 { stroke: #fb7185; }
  svg tspan.c0 { fill: #38bdf8; stroke: none; } svg tspan.c1 { fill: #fb923c; stroke: none; }
  svg tspan.c2 { fill: #a3e635; stroke: none; } svg tspan.c3 { fill: #c4b5fd; stroke: none; }
  svg tspan.c4 { fill: #fb7185; stroke: none; }
}
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--ground);
       max-width: 74rem; margin: 2.5rem auto 5rem; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; line-height: 1.25; }
h2 { font-size: 1.25rem; margin: 3rem 0 .3rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { max-width: 46rem; margin: .5rem 0; } .soft, figcaption, svg text { color: var(--soft); fill: var(--soft); }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .3rem 1rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; font-size: .9rem; }
.grid { display: flex; flex-wrap: wrap; gap: 1rem; margin: .8rem 0; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem; }
figcaption { font-size: .85rem; line-height: 1.4; margin-top: .4rem; max-width: 15.5rem; }
.note { display: block; } .good { color: var(--good); } .bad { color: var(--bad); }
.clip { overflow: hidden; width: 15.5rem; border-radius: .25rem; background: var(--line); }
.clip video { display: block; width: 100%; image-rendering: auto; }
.clip.left video, .clip.right video { width: 200%; } .clip.right video { margin-left: -100%; }
.rows .clip { width: 8.5rem; } .rows td, .rows th { border: 0; padding: .25rem .6rem .25rem 0; font-weight: 400;
       font-size: .85rem; line-height: 1.35; max-width: 8.5rem; }
.rows th:first-child { color: var(--soft); white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); gap: 1rem; margin: .8rem 0; }
figure svg { width: 100%; height: auto; display: block; } figure svg text { font-size: 13px; }
nav a { color: var(--accent); margin-right: 1.2rem; }
.progress { margin: .8rem 0; max-width: 46rem; } .progress p { margin: 0 0 .25rem; }
.track { height: .5rem; border-radius: .25rem; background: var(--line); overflow: hidden; }
.track div { height: 100%; background: var(--accent); }
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """Video on a page.

    Attributes:
      path: relative to the page.
      caption: text below the video.
      note: second line of the caption; green if `good`, red if not, gray for None.
      half: "left" or "right" shows only this half of the frames.
    """

    path: str
    caption: str = ""
    note: str = ""
    good: bool | None = None
    half: str = ""


class Page:
    """Page built section by section; `write` puts it in one file next to its videos.

    Args:
      refresh: seconds after which a browser loads the page again; 0 for never.
    """

    def __init__(self, title: str, lead: str, *, refresh: int = 0):
        self._title, self._refresh = title, refresh
        self._parts: list[str] = []
        self._head = f'<h1>{html.escape(title)}</h1>\n<p class="soft">{html.escape(lead)}</p>'
        self._sections: list[str] = []

    def heading(self, text: str, level: int = 2) -> None:
        """Start a section; the page begins with links to those of level 2."""
        name = f' id="section{len(self._sections)}"' if level == 2 else ""
        self._parts.append(f"<h{level}{name}>{html.escape(text)}</h{level}>")
        if level == 2:
            self._sections.append(text)

    def paragraph(self, text: str, *, soft: bool = False) -> None:
        """Add plain text."""
        opening = '<p class="soft">' if soft else "<p>"
        self._parts.append(f"{opening}{html.escape(text)}</p>")

    def progress(self, text: str, share: float) -> None:
        """Add a bar that is filled to `share`, from 0 to 1, below a line of text."""
        width = 100 * min(max(share, 0.0), 1.0)
        self._parts.append(
            f'<div class="progress"><p>{html.escape(text)}</p>'
            f'<div class="track"><div style="width: {width:.1f}%"></div></div></div>'
        )

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add a table; `str` formats its cells."""
        cells = ["".join(f"<th>{html.escape(name)}</th>" for name in header)]
        cells += ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows]
        rows_of_cells = "".join(f"<tr>{row}</tr>" for row in cells)
        self._parts.append(f'<div class="scroll"><table>{rows_of_cells}</table></div>')

    def videos(self, clips: Sequence[Clip]) -> None:
        """Add videos that play in a loop."""
        figures = [f"<figure>{_video(clip)}<figcaption>{_caption(clip)}</figcaption></figure>" for clip in clips]
        self._parts.append(f'<div class="grid">{"".join(figures)}</div>')

    def video_rows(self, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Clip]]]) -> None:
        """Add a table of videos: a caption above each column, and a name left of each row."""
        cells = ["<th></th>" + "".join(f"<th>{html.escape(name)}</th>" for name in columns)]
        cells += [
            f"<th>{html.escape(name)}</th>" + "".join(f"<td>{_video(clip)}</td>" for clip in clips)
            for name, clips in rows
        ]
        rows_of_cells = "".join(f"<tr>{row}</tr>" for row in cells)
        self._parts.append(f'<div class="scroll"><table class="rows">{rows_of_cells}</table></div>')

    def curves(self, charts: Mapping[str, Mapping[str, Points]]) -> None:
        """Add one chart per title, with one line per label; non-finite points are left out."""
        drawn = [f"<figure>{curve(title, lines)}</figure>" for title, lines in charts.items()]
        self._parts.append(f'<div class="charts">{"".join(drawn)}</div>')

    def write(self, path: pathlib.Path) -> None:
        """Write the page atomically."""
        head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        if self._refresh:
            head += f'<meta http-equiv="refresh" content="{self._refresh}">'
        links = (f'<a href="#section{index}">{html.escape(name)}</a>' for index, name in enumerate(self._sections))
        body = "\n".join([self._head, f"<nav>{''.join(links)}</nav>", *self._parts])
        title = html.escape(self._title)
        write_text(
            path,
            f'<!doctype html>\n<html lang="en"><head>{head}<title>{title}</title><style>{_STYLE}</style></head>\n'
            f"<body>\n{body}\n</body></html>\n",
        )


def _video(clip: Clip) -> str:
    source = html.escape(urllib.parse.quote(clip.path), quote=True)
    label = f' aria-label="{html.escape(clip.caption, quote=True)}"' if clip.caption else ""
    style = f"clip {clip.half}".strip()
    return f'<div class="{style}"><video src="{source}"{label} autoplay loop muted playsinline></video></div>'


def _caption(clip: Clip) -> str:
    style = {True: "note good", False: "note bad", None: "note"}[clip.good]
    note = f'<span class="{style}">{html.escape(clip.note)}</span>' if clip.note else ""
    return html.escape(clip.caption) + note


def curve(title: str, lines: Mapping[str, Points]) -> str:
    """Plot lines over shared axes as SVG; the axis of positive values that span a factor of 20 is logarithmic."""
    finite = {label: [p for p in points if all(map(math.isfinite, p))] for label, points in lines.items()}
    every = [point for points in finite.values() for point in points]
    parts = [f'<text x="{_LEFT}" y="16" font-weight="600">{html.escape(title)}</text>']
    if not every:
        parts.append(f'<text x="{_LEFT}" y="{_HEIGHT / 2}">nothing was logged</text>')
        return _svg(parts)
    x_scale = _scale([x for x, _ in every], _LEFT, _WIDTH - _RIGHT)
    low, high = min(y for _, y in every), max(y for _, y in every)
    y_scale = _scale([low, high], _HEIGHT - _BOTTOM, _TOP, logarithmic=0 < _LOGARITHMIC * low < high)
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
        look = f'class="c{index % 5}" stroke="{_COLORS[index % 5]}"'
        pixels = [f"{x_scale(x):.1f},{y_scale(y):.1f}" for x, y in points]
        parts.append(f'<polyline {look} points="{" ".join(pixels)}" fill="none" stroke-width="1.8"/>')
        if len(pixels) <= _MARKED:
            # A line of zero length with round ends is a dot.
            dots = "".join(f"M{pixel}h0" for pixel in pixels)
            parts.append(f'<path {look} d="{dots}" stroke-width="5" stroke-linecap="round"/>')
    if len(finite) > 1:
        names = (
            f'<tspan class="c{i % 5}" fill="{_COLORS[i % 5]}">{html.escape(n)}</tspan>' for i, n in enumerate(finite)
        )
        parts.append(f'<text x="{_LEFT}" y="34">{"&#160; &#160;".join(names)}</text>')
    return _svg(parts)


class _scale:
    """Linear or logarithmic map from values to pixels, with round tick values."""

    def __init__(self, values: Sequence[float], start: float, stop: float, *, logarithmic: bool = False):
        low, high = min(values), max(values)
        self._map: Callable[[float], float] = math.log10 if logarithmic else float
        self._start, self._length = start, stop - start
        if logarithmic:
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            factors = (1, 2, 5) if len(powers) < 4 else (1,)
            ticks = [factor * 10.0**power for power in powers for factor in factors]
            self.ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        else:
            if high == low:
                low, high = low - 0.5, high + 0.5
            step = 10 ** math.floor(math.log10((high - low) / 3))
            step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 5)
            first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
            self.ticks = [round(index * step, 12) for index in range(first, last + 1)]
        self._low, self._span = self._map(low), self._map(high) - self._map(low)

    def __call__(self, value: float) -> float:
        return self._start + (self._map(value) - self._low) / self._span * self._length


def _svg(parts: Sequence[str]) -> str:
    # The font and colors suit a picture outside a page, on a light or dark background; a page sets its own.
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" font-size="11" font-family="sans-serif" '
        f'fill="#8a837e" role="img" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )
