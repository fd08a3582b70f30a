"""Output of the command line: data on stdout, messages on stderr."""

import json
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titokctl.progress import Progress, QuietProgress, SilentProgress, StderrProgress, show
from titokctl.readable import plain, readable, width_of, wrapped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_BESIDE_A_CELL = 3  # characters that a table puts beside each cell, and one at its edge
_INDENT = 4


def say(text: str) -> None:
    """Print a message on stderr."""
    show(text, sys.stderr)


def warn(text: str) -> None:
    """Print a warning on stderr, also with --quiet."""
    say(f"warning: {text}")


def error(message: str, hint: str = "") -> None:
    """Print an error and its hint on stderr, in colour on a terminal that supports it."""
    from rich.console import Console
    from rich.text import Text

    out, width = Console(stderr=True, highlight=False, soft_wrap=True), width_of(sys.stderr)
    for label, style, text in (("error: ", "bold red", message), ("hint: ", "bold cyan", hint)):
        first, *others = wrapped(label + plain(text), width)
        if text:
            out.print(Text.assemble((label, style), "\n".join([first.removeprefix(label), *others])))


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], note: str = "", whole: Sequence[str] = ()
) -> None:
    """Print a table on stdout; columns of numbers are right-aligned.

    Cells are wrapped between words only, and those of the columns `whole` not at all. Where the lines would become
    wider than the terminal, each row is printed as its first cell and, below it, names and values of the others.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells = [[plain(readable(cell, commas=False)) for cell in row] for row in rows]
    out = _stdout()
    widths = _column_widths([columns, *cells], [name in whole for name in columns], out.width)
    if widths is None:
        _print_records(out, title, columns, cells, note)
        return
    grid = Table(box=box.SIMPLE_HEAD)
    for i, name in enumerate(columns):
        is_numbers = all(row[i][:1] in "-+0123456789" for row in cells)
        grid.add_column(name, justify="right" if is_numbers else "left", width=widths[i])
    for row in cells:
        grid.add_row(*(Text(cell) for cell in row))
    _print_grid(out, title, grid, note)


def _column_widths(rows: Sequence[Sequence[str]], is_whole: Sequence[bool], width: int) -> list[int] | None:
    """Return a width for each column that folds no word, in all at most `width`; None if there is none."""
    from rich.cells import cell_len

    columns = list(zip(*rows, strict=True))
    natural = [max(map(cell_len, column)) for column in columns]
    longest = [max((cell_len(word) for cell in column for word in cell.split()), default=0) for column in columns]
    least = [n if kept else w for n, w, kept in zip(natural, longest, is_whole, strict=True)]
    spare = width - 1 - _BESIDE_A_CELL * len(columns) - sum(least)
    if spare < 0:
        return None
    wanted = sum(natural) - sum(least)
    share = min(1.0, spare / wanted) if wanted else 1.0
    return [w + int((n - w) * share) for n, w in zip(natural, least, strict=True)]


def _print_records(
    out: "Console", title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], note: str
) -> None:
    """Print each row as its first cell and, indented below it, the names and values of its other cells."""
    _print_title(out, title)
    for first, *others in rows:
        out.print(f"\n {first}", soft_wrap=True)
        for name, cell in zip(columns[1:], others, strict=True):
            for line in wrapped(f"{name}: {cell}", out.width - _INDENT):
                out.print(" " * _INDENT + line, soft_wrap=True)
    out.print()
    _print_note(out, note)


def pairs(title: str, items: dict[str, Any]) -> None:
    """Print names and values on stdout: beside each other, or below each other where a word of the value is too long.

    Values are wrapped between words only.
    """
    out = _stdout()
    _print_title(out, title)
    column = max(map(len, items), default=0)
    print()
    for name, value in items.items():
        print("\n".join(_pair_lines(plain(name), plain(readable(value, commas=False)), column, out.width)))
    print()


def _pair_lines(name: str, value: str, column: int, width: int) -> list[str]:
    room = width - column - _INDENT
    lines = wrapped(value, room)
    if max(map(len, lines)) <= room:
        labels = [name] + [""] * (len(lines) - 1)
        return [f"  {label:{column}}  {line}".rstrip() for label, line in zip(labels, lines, strict=True)]
    return [f"  {name}", *(" " * _INDENT + line for line in wrapped(value, width - _INDENT))]


def _stdout() -> "Console":
    from rich.console import Console

    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 120)


def _print_grid(out: "Console", title: str, grid: "Table", note: str = "") -> None:
    """Print a grid between its title and a note, which as parts of it would be folded in the middle of a path."""
    _print_title(out, title)
    out.print(grid)
    _print_note(out, note)


def _print_title(out: "Console", title: str) -> None:
    _print_words(out, title, "italic")


def _print_note(out: "Console", note: str) -> None:
    _print_words(out, note, "dim")


def _print_words(out: "Console", text: str, style: str) -> None:
    """Print a text wrapped between words only, without an empty line for an empty text."""
    from rich.text import Text

    for line in wrapped(plain(text), out.width) if text else ():
        out.print(Text(line, style=style), soft_wrap=True)


def next_command(*words: object, shown: bool, runs_dir: Path | None = None) -> None:
    """Print on stderr which command usually follows, where messages are shown.

    Args:
        words: those of the command line; IMAGES stands for a folder that the user names.
        runs_dir: the runs folder of the command that has finished; None for the default one.
    """
    if not shown:
        return
    is_default = runs_dir is None or str(runs_dir) == os.environ.get("TITOKCTL_RUNS")
    runs = [] if is_default else ["--runs-dir", runs_dir]
    quoted = [shlex.quote(str(word)) for word in ("titokctl", *words, *runs)]
    print(_continued("next: ", [plain(word) for word in quoted], width_of(sys.stderr)), file=sys.stderr, flush=True)


def _continued(label: str, words: Sequence[str], width: int | None) -> str:
    """Return a command line that a shell takes as it is; in lines of at most `width` that end with backslashes."""
    lines = [label + words[0]]
    for word in words[1:]:
        if width is not None and len(f"{lines[-1]} {word} \\") > width:
            lines[-1] += " \\"
            lines.append(" " * _INDENT + word)
        else:
            lines[-1] += f" {word}"
    return "\n".join(lines)


def next_after_run(kind: str, run: Path, shown: bool, runs_dir: Path | None = None) -> None:
    """Print which command usually follows once there is a tokenizer or a generator that was not trained just now."""
    if kind == "generator":
        next_command("sample", "--generator", run, "-n", "16", shown=shown, runs_dir=runs_dir)
    elif kind == "tokenizer":
        next_command("tokenize", "IMAGES", "--tokenizer", run, "-o", "tokens.h5", shown=shown, runs_dir=runs_dir)


def emit_json(value: Any) -> None:
    """Print `value` as JSON on stdout; dataclasses become objects, paths become strings."""

    def as_plain(value: Any) -> Any:
        return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)

    print(json_text(value, indent=1, default=as_plain))


def json_text(value: Any, **options: Any) -> str:
    """Return JSON for a terminal, with escapes for what it would obey; `options` are those of `json.dumps`."""
    text = json.dumps(value, ensure_ascii=False, **options)
    return text if all(c.isprintable() or c == "\n" for c in text) else json.dumps(value, **options)


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


def paragraph(text: str) -> None:
    """Print a paragraph on stdout, wrapped between words to fit the terminal."""
    width = width_of(sys.stdout)
    print("\n  ".join(wrapped(text, None if width is None else width - 2)))
