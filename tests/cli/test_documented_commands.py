"""Every `titokctl ...` in the documentation and in the headers of recipes is a valid command line."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from titokctl.cli import app as cli

ROOT = Path(cli.__file__).resolve().parents[2]
FENCE = re.compile(r"^```(?:sh|bash|console)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
IN_A_HEADER = re.compile(r"^# +(?:Command: )?(titokctl .+)$", re.MULTILINE)


def shown() -> list[str]:
    """Return the command lines in code blocks of the documentation and in the headers of recipes."""
    found = []
    pages = ["README.md", "CONTRIBUTING.md", "docs/*.md", "examples/*/README.md"]
    for page in sorted(path for pattern in pages for path in ROOT.glob(pattern)):
        for block in FENCE.findall(page.read_text(encoding="utf-8")):
            joined = re.sub(r"\\\n\s*", "", block)
            lines = (line.strip().removeprefix("$ ").removeprefix(".venv/bin/") for line in joined.splitlines())
            found += [line for line in lines if line.startswith("titokctl ")]
    for recipe in sorted((ROOT / "recipes").glob("*/*.yaml")):
        found += IN_A_HEADER.findall(recipe.read_text(encoding="utf-8"))
    machines = (ROOT / "recipes" / "clusters" / "machines.txt").read_text(encoding="utf-8").splitlines()
    found += [line for line in machines if line.startswith("titokctl ")]
    return sorted(set(found))


def test_there_are_some():
    assert len(shown()) >= 6


@pytest.mark.parametrize("line", shown())
def test_the_command_line_is_valid(line: str):
    cli.register_commands()
    words = shlex.split(line, comments=True)[1:]
    command, context = typer.main.get_command(cli.app), None
    name = "titokctl"
    while True:
        # Parses and checks the arguments without running the command.
        context = command.make_context(name, words, parent=context)
        if not hasattr(command, "commands"):
            return
        rest = [*getattr(context, "_protected_args", ()), *context.args]
        if not rest and command.invoke_without_command:
            return
        assert rest, f"{line}: no command after {name}"
        name, words = rest[0], rest[1:]
        assert name in command.commands, f"{line}: there is no {name}"
        command = command.commands[name]
