"""A self-contained HTML page: text, tables, PNG pictures inlined, and curves as SVG.

Specification: one UTF-8 file without scripts and without links to other files or hosts, so that it can be mailed or
archived; all text is escaped.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from titokctl.formats.atomic import write_bytes

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --paper: #fcfcfa; --rule: #d8d8d2; --soft: #63686e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e4; --paper: #16181a; --rule: #3a3e42; --soft: #9aa0a6; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
       max-width: 60rem; padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p, figcaption { color: var(--soft); } figure { margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--rule); text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; image-rendering: pixelated; border: 1px solid var(--rule); }
svg { width: 100%; max-width: 46rem; height: auto; }
"""
_COLOURS = ("#2f6db3", "#c2571a", "#3c8a4a", "#8b4a9c")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 720, 260, 76, 30


@dataclass(frozen=True)
class Curve:
    """A line in a plot: its name and points (x, y), sorted by x; or, unless `is_line`, the points alone."""

    name: str
    points: Sequence[tuple[float, float]]
    is_line: bool = True


@dataclass
class ReportPage:
    """A page that is built from top to bottom; `write` writes it atomically."""

    title: str
    parts: list[str] = field(default_factory=list)

    def heading(self, text: str) -> None:
        """Add the heading of a section."""
        self.parts.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str) -> None:
        """Add a paragraph of plain text."""
        self.parts.append(f"<p>{escape(text)}</p>")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table; its first column holds names."""
        head = "".join(f"<th>{escape(c)}</th>" for c in columns)
        body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
        self.parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")

    def picture(self, path: Path, caption: str) -> None:
        """Add a PNG file, inlined."""
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        source = f"data:image/png;base64,{data}"
        text = escape(caption)
        self.parts.append(f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>')

    def plot(self, curves: Sequence[Curve], x_name: str, y_name: str, marks: Sequence[tuple[float, str]] = ()) -> None:
        """Add a plot of curves over a common x axis; lines of fewer than two points are left out.

        Marks are values of x, such as the step at which a loss joins, and their names; those outside are left out.
        """
        drawn = [c for c in curves if len(c.points) > c.is_line]
        if drawn:
            legend = " ".join(
                f'<span style="color:{_colour(i)}">{escape(curve.name)}</span>' for i, curve in enumerate(drawn)
            )
            svg = _svg(drawn, x_name, y_name, marks)
            self.parts.append(f"<figure>{svg}<figcaption>{legend}</figcaption></figure>")

    def write(self, path: Path) -> None:
        """Write the page to `path`."""
        write_bytes(path, self.as_bytes())

    def as_bytes(self) -> bytes:
        """Return the page as UTF-8."""
        head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        head += f"<title>{escape(self.title)}</title>"
        body = f"<h1>{escape(self.title)}</h1>" + "\n".join(self.parts)
        page = (
            f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head><body>{body}</body></html>\n'
        )
        return page.encode()


def _svg(curves: Sequence[Curve], x_name: str, y_name: str, marks: Sequence[tuple[float, str]]) -> str:
    xs = [x for c in curves for x, _ in c.points]
    ys = [y for c in curves for _, y in c.points]
    low_x, high_x, low_y, high_y = min(xs), max(xs), min(ys), max(ys)
    span_x, span_y = (high_x - low_x) or 1.0, (high_y - low_y) or 1.0

    def position(x: float, y: float) -> str:
        across = _LEFT + (x - low_x) / span_x * (_WIDTH - _LEFT - 10)
        down = 10 + (high_y - y) / span_y * (_HEIGHT - _BOTTOM - 20)
        return f"{across:.1f},{down:.1f}"

    lines = []
    for i, curve in enumerate(curves):
        if not curve.is_line:
            for x, y in (position(x, y).split(",") for x, y in curve.points):
                lines.append(f'<circle cx="{x}" cy="{y}" r="2.5" fill="{_colour(i)}"/>')
            continue
        points = " ".join(position(x, y) for x, y in curve.points)
        lines.append(f'<polyline fill="none" stroke="{_colour(i)}" stroke-width="1.6" points="{points}"/>')
    for step, name in marks:
        if low_x <= step <= high_x:
            across = float(position(step, low_y).split(",")[0])
            dashes = 'stroke="currentColor" stroke-dasharray="3 4" opacity=".5"'
            lines.append(f'<path d="M{across:.1f} 8V{_HEIGHT - _BOTTOM}" fill="none" {dashes}/>')
            lines.append(_text(across + 4, _HEIGHT - _BOTTOM - 6, name, "start"))
    axes = [
        _text(_LEFT - 6, 16, f"{high_y:.4g}", "end"),
        _text(_LEFT - 6, _HEIGHT - _BOTTOM - 6, f"{low_y:.4g}", "end"),
        _text(_LEFT, _HEIGHT - 10, f"{low_x:,.0f}", "start"),
        _text(_WIDTH - 10, _HEIGHT - 10, f"{high_x:,.0f} {x_name}", "end"),
        _text(_LEFT + 8, 16, y_name, "start"),
    ]
    frame = f'<path d="M{_LEFT} 8V{_HEIGHT - _BOTTOM}H{_WIDTH - 8}" fill="none" stroke="currentColor" opacity=".4"/>'
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{frame}{"".join(lines)}{"".join(axes)}</svg>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" font-size="12" text-anchor="{anchor}" fill="currentColor">{escape(text)}</text>'


def _colour(i: int) -> str:
    return _COLOURS[i % len(_COLOURS)]
