"""Numbers, JSON values and sentences in the form in which people read them."""

import os
import textwrap
from collections.abc import Sequence
from typing import Any, TextIO

_THOUSAND = 1000


def counted(n: int, unit: str) -> str:
    """Return a number with its unit, which is given in the plural: 1,200 images, 1 image, 1 process."""
    one = unit.removesuffix("es") if unit.endswith(("sses", "ches")) else unit.removesuffix("s")
    return f"{n:,} {one if n == 1 else unit}"


def first_few(parts: Sequence[str], shown: int, separator: str = ", ") -> str:
    """Return the first `shown` parts, joined, and how many more there are: "a, b and 7 more", "a; b; and 7 more"."""
    named = separator.join(parts[:shown])
    if len(parts) <= shown:
        return named
    return f"{named}{' ' if separator == ', ' else separator}and {len(parts) - shown:,} more"


def duration(seconds: float) -> str:
    """Return a time in at most two units: 8 s, 3 min 05 s, 2 h 10 min, 4 d 3 h."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    if s < 86400:
        return f"{s // 3600} h {s % 3600 // 60:02d} min"
    return f"{s // 86400} d {s % 86400 // 3600} h"


def size(num_bytes: float) -> str:
    """Return bytes in decimal units: 812 B, 3.4 kB, 1.2 GB."""
    value, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < _THOUSAND:
            break
        value, unit = value / _THOUSAND, larger
    return f"{value:.3g} {unit}"


def readable(value: Any, commas: bool = True, shown: int | None = None) -> str:
    """Return a JSON value as text: yes and no, five digits of a float, - for nothing.

    Args:
        commas: separate the thousands of integers; False where some of them are seeds or row numbers.
        shown: how many items of a list to show; None for all.
    """
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}" if commas else str(value)
    if isinstance(value, float):
        return f"{value:.5g}" if abs(value) < _THOUSAND else f"{value:,.1f}"
    if isinstance(value, list | tuple):
        items = [readable(item, commas, shown) for item in value]
        return first_few(items, len(items) if shown is None else shown) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {readable(inner, commas, shown)}" for name, inner in value.items()) or "none"
    return str(value)


def width_of(stream: TextIO) -> int | None:
    """Return the columns of the terminal that `stream` writes to, or COLUMNS if that is set; None for no terminal."""
    if not stream.isatty():
        return None
    if os.environ.get("COLUMNS", "").isdecimal():
        return int(os.environ["COLUMNS"]) or None
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):
        return None


def wrapped(text: str, width: int | None) -> list[str]:
    """Return the text in lines of at most `width`, broken between words; longer words have a line of their own."""
    if width is None:
        return text.split("\n")
    return [
        line
        for part in text.split("\n")
        for line in textwrap.wrap(part, max(width, 1), break_long_words=False, break_on_hyphens=False) or [""]
    ]


def plain(text: str) -> str:
    """Return the text with escapes for what a terminal would obey or can't show: names in files may hold anything."""
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)
