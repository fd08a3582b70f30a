"""What the command line says: data on stdout, talk on stderr."""

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

from titokctl.progress import Progress, QuietProgress, SilentProgress, StderrProgress


def say(text: str) -> None:
    """A remark for the person, on stderr."""
    print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print a warning on stderr, also with --quiet."""
    say(f"warning: {text}")


def error(message: str, hint: str = "") -> None:
    """One sentence, and what to do about it. Colour only on a terminal that wants it."""
    from rich.console import Console
    from rich.text import Text

    out = Console(stderr=True, highlight=False, soft_wrap=True)
    out.print(Text("error: ", style="bold red") + Text(message))
    if hint:
        out.print(Text("hint: ", style="bold cyan") + Text(hint))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], note: str = "") -> None:
    """A table on stdout; columns that hold only numbers are right-aligned."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[_readable(cell) for cell in row] for row in rows]
    out = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 120)
    grid = Table(
        title=title or None, title_justify="left", caption=note or None, caption_justify="left", box=box.SIMPLE_HEAD
    )
    for i, name in enumerate(columns):
        is_numbers = all(row[i][:1] in "-+0123456789" for row in cells)
        grid.add_column(name, justify="right" if is_numbers else "left", overflow="fold")
    for row in cells:
        grid.add_row(*(Text(cell) for cell in row))
    out.print(grid)


def pairs(title: str, items: dict[str, Any]) -> None:
    """Names and values, a line each, on stdout."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=title or None, title_justify="left", box=box.SIMPLE, show_header=False)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in items.items():
        grid.add_row(name, Text(_readable(value)))
    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 120).print(grid)


def emit_json(value: Any) -> None:
    """`value` as JSON on stdout, for programs; a dataclass as its fields, paths as text."""

    def plain(value: Any) -> Any:
        return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)

    print(json.dumps(value, indent=1, ensure_ascii=False, default=plain))


def progress(quiet: bool, is_main: bool = True) -> Progress:
    """The progress a command gives its job; of several processes one talks."""
    if not is_main:
        return SilentProgress()
    return QuietProgress() if quiet else StderrProgress()


def result(value: Any, as_json: bool, title: str) -> None:
    """A job's result dataclass on stdout: a table of its fields, or JSON."""
    fields = asdict(value)
    if as_json:
        emit_json(fields)
    else:
        flat = {k: v for k, v in fields.items() if not isinstance(v, dict)}
        nested = {k: v for inner in fields.values() if isinstance(inner, dict) for k, v in inner.items()}
        pairs(title, flat | nested)


def _readable(value: Any) -> str:
    """A field for people; whole numbers stay as they are, since some of them are seeds and rows."""
    if isinstance(value, float):
        return f"{value:.5g}"
    return in_words(value) if value is None or isinstance(value, bool | list | tuple | dict) else str(value)


def recipe(resolved: Any, plan: Any, lines: Iterable[str], as_json: bool) -> None:
    """The plan of a training run: its recipe as YAML with `lines` as comments above, so that the output is a recipe.

    As JSON, `plan` and recipe.
    """
    from titokctl.config.recipe_files import to_yaml

    if as_json:
        emit_json({"plan": plan, "recipe": resolved.model_dump(mode="json")})
        return
    print("\n".join(f"# {line}" for line in lines))
    print(to_yaml(resolved), end="")


def in_words(value: Any) -> str:
    """A JSON value for people: numbers with commas, yes and no, lists with commas, - where there is nothing."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if value < 1 else f"{value:,.1f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(in_words, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {in_words(inner)}" for name, inner in value.items()) or "none"
    return str(value)


def wrapped(text: str) -> None:
    """A paragraph on stdout, broken between words where a terminal would break it anywhere."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else max(len(text), 1)
    print(textwrap.fill(text, width, subsequent_indent="  ", break_on_hyphens=False))


def size(num_bytes: int) -> str:
    """Bytes for people: 812 B, 3.4 kB, 1.2 GB."""
    value, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"
