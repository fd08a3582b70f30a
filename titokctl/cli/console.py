"""Output of the command line: data on stdout, messages on stderr."""

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from titokctl.progress import Progress, QuietProgress, SilentProgress, StderrProgress
from titokctl.readable import plain, readable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_NARROWEST = 12  # characters of a column whose cells may be folded, beside columns whose cells may not


def say(text: str) -> None:
    """Print a message on stderr."""
    print(plain(text), file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print a warning on stderr, also with --quiet."""
    say(f"warning: {text}")


def error(message: str, hint: str = "") -> None:
    """Print an error and its hint on stderr, in colour on a terminal that supports it."""
    from rich.console import Console
    from rich.text import Text

    out = Console(stderr=True, highlight=False, soft_wrap=True)
    out.print(Text("error: ", style="bold red") + Text(plain(message)))
    if hint:
        out.print(Text("hint: ", style="bold cyan") + Text(plain(hint)))


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], note: str = "", whole: Sequence[str] = ()
) -> None:
    """Print a table on stdout; columns of numbers are right-aligned, and cells of the columns `whole` never folded."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells = [[plain(readable(cell, commas=False)) for cell in row] for row in rows]
    out = _stdout()
    kept = [max(len(row[i]) for row in [columns, *cells]) for i, name in enumerate(columns) if name in whole]
    out.width = max(out.width, sum(kept) + 3 * len(columns) + _NARROWEST * (len(columns) - len(kept)))
    grid = Table(box=box.SIMPLE_HEAD)
    for i, name in enumerate(columns):
        is_numbers = all(row[i][:1] in "-+0123456789" for row in cells)
        grid.add_column(name, justify="right" if is_numbers else "left", overflow="fold", no_wrap=name in whole)
    for row in cells:
        grid.add_row(*(Text(cell) for cell in row))
    _print_grid(out, title, grid, note)


def pairs(title: str, items: dict[str, Any]) -> None:
    """Print names and values on stdout, a line each."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE, show_header=False)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in items.items():
        grid.add_row(plain(name), Text(plain(readable(value, commas=False))))
    _print_grid(_stdout(), title, grid)


def _stdout() -> "Console":
    from rich.console import Console

    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 120)


def _print_grid(out: "Console", title: str, grid: "Table", note: str = "") -> None:
    """Print a grid between its title and a note, which as parts of it would be folded in the middle of a path."""
    from rich.text import Text

    if title:
        out.print(Text(plain(title), style="italic"), soft_wrap=True)
    out.print(grid)
    if note:
        out.print(Text(plain(note), style="dim"), soft_wrap=True)


def emit_json(value: Any) -> None:
    """Print `value` as JSON on stdout; dataclasses become objects, paths become strings."""

    def as_plain(value: Any) -> Any:
        return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)

    text = json.dumps(value, indent=1, ensure_ascii=False, default=as_plain)
    if any(not (c.isprintable() or c == "\n") for c in text):  # for a terminal; the values are the same
        text = json.dumps(value, indent=1, default=as_plain)
    print(text)


def progress(quiet: bool, is_main: bool = True) -> Progress:
    """Return the progress for a job; only the main process shows any."""
    if not is_main:
        return SilentProgress()
    return QuietProgress() if quiet else StderrProgress()


def result(value: Any, as_json: bool, title: str) -> None:
    """Print a job's result, a dataclass, as a table of its fields or as JSON."""
    fields = asdict(value)
    if as_json:
        emit_json(fields)
    else:
        flat = {k: v for k, v in fields.items() if not isinstance(v, dict)}
        nested = {k: v for inner in fields.values() if isinstance(inner, dict) for k, v in inner.items()}
        pairs(title, flat | nested)


def recipe(resolved: Any, plan: Any, lines: Iterable[str], as_json: bool) -> None:
    """Print the plan of a training run: its recipe as YAML, below `lines` as comments, or plan and recipe as JSON."""
    from titokctl.config.recipe_files import to_yaml

    if as_json:
        emit_json({"plan": plan, "recipe": resolved.model_dump(mode="json")})
        return
    print("\n".join(f"# {line}" for line in lines))
    print(to_yaml(resolved), end="")


def wrapped(text: str) -> None:
    """Print a paragraph on stdout, wrapped between words to fit the terminal."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else max(len(text), 1)
    print(textwrap.fill(text, width, subsequent_indent="  ", break_on_hyphens=False))
