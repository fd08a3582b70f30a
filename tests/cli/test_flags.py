"""Commands and flags change only on purpose; each help fits 80 columns and has a valid example.

`flags.txt` holds one line per command. After an intended change:

    python tests/cli/test_flags.py > tests/cli/flags.txt
"""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from titokctl.cli import app as cli

FROZEN = Path(__file__).with_name("flags.txt")
# Short options, and how the long option beside each begins.
SHORT = {"-o": "--output", "-n": "--num-", "-q": "--quiet"}
# Options that a command has all of, or none.
TOGETHER = [{"--gpus", "--procs"}, {"--nodes", "--node-rank", "--rdzv-endpoint"}]
# These commands have no result to print as JSON.
WITHOUT_JSON = {"recipes show", "recipes cp"}


def commands() -> dict[str, Any]:
    """Return all commands by name, in the order of --help."""
    cli.register_commands()
    return dict(_below(typer.main.get_command(cli.app), ""))


def _below(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield name, command
        return
    for word, sub in command.commands.items():
        yield from _below(sub, f"{name} {word}".strip())


def options(command: Any) -> list[str]:
    return [name for p in command.params if p.param_type_name == "option" for name in (*p.opts, *p.secondary_opts)]


def line(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    taken = [(p.metavar or p.name.upper()) + ("..." if p.nargs == -1 else "") for p in arguments]
    return " ".join([f"{name}:", *taken, *sorted(options(command), key=lambda word: (word.lstrip("-"), word))])


def test_the_flags_are_frozen():
    assert [line(*item) for item in commands().items()] == FROZEN.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", commands())
def test_the_help_fits_80_columns_and_its_example_works(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.run([*name.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown, "nothing is cut"
    example = commands()[name].epilog.removeprefix("Example: titokctl ")
    assert example.startswith(name)
    commands()[name].make_context(name, shlex.split(example.removeprefix(name)))  # parses without running the command


@pytest.mark.parametrize("name", commands())
def test_options_have_consistent_names(name):
    command = commands()[name]
    mine = set(options(command))
    for short in sorted(mine & SHORT.keys()):
        assert any(word.startswith(SHORT[short]) for word in mine), f"{short} without {SHORT[short]}"
    assert not [word for word in mine if not word.startswith("--") and word not in SHORT]
    for group in TOGETHER:
        assert not mine & group or group <= mine
    assert ("--json" in mine) != (name in WITHOUT_JSON)
    assert "--output" not in mine or {"--overwrite", "--quiet"} <= mine or name in ("demo", "report")
    assert "--tokenizer" not in mine or "--runs-dir" in mine
    assert "--set" not in mine or "--recipe" in mine
    for parameter in command.params:
        if parameter.param_type_name == "option":
            assert parameter.help, f"{parameter.name} says nothing"
            assert parameter.help.endswith("."), f"{parameter.name}: {parameter.help}"
            assert "[" not in parameter.help, f"{parameter.name}: what stands in brackets is taken for markup"


if __name__ == "__main__":
    print("\n".join(line(*item) for item in commands().items()))
