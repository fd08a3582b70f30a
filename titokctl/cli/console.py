"""What the command line says: data on stdout, talk on stderr."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from titokctl.progress import Progress, SilentProgress, StderrProgress


def say(text: str) -> None:
    """A remark for the person, on stderr."""
    print(text, file=sys.stderr, flush=True)


def error(message: str, hint: str = "") -> None:
    """One sentence, and what to do about it. Colour only on a terminal that wants it."""
    from rich.console import Console
    from rich.text import Text

    out = Console(stderr=True, highlight=False, soft_wrap=True)
    out.print(Text("error: ", style="bold red") + Text(message))
    if hint:
        out.print(Text("hint: ", style="bold cyan") + Text(hint))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], note: str = "") -> None:
    """A table on stdout; columns of numbers are right-aligned, the first is the name."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    out = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    grid = Table(
        title=title or None, title_justify="left", caption=note or None, caption_justify="left", box=box.SIMPLE_HEAD
    )
    for i, name in enumerate(columns):
        grid.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        grid.add_row(*(str(cell) for cell in row))
    out.print(grid)


def pairs(title: str, items: dict[str, Any]) -> None:
    """Names and values, a line each, on stdout."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table(title=title or None, title_justify="left", box=box.SIMPLE, show_header=False)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in items.items():
        grid.add_row(name, str(value))
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(grid)


def emit_json(value: Any) -> None:
    """`value` as JSON on stdout, for programs."""
    print(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def progress(quiet: bool) -> Progress:
    """The progress a command gives its job."""
    return SilentProgress() if quiet else StderrProgress()
