"""Every command line of the documentation and of the headers of recipes is valid, and is run by a test or listed."""

import re
import shlex

import documented
import pytest
import typer
from command_line import ROOT

from titokctl.cli import app as cli

IN_A_HEADER = re.compile(r"^# +(?:Command: )?(titokctl .+)$", re.MULTILINE)
LINES = [line for page in documented.PAGES for line in documented.lines_of(page)]


def shown() -> list[str]:
    """Return the command lines in code blocks of the documentation and in the headers of recipes."""
    found = [line.text for line in LINES if line.in_block and line.is_plain]
    for recipe in sorted((ROOT / "recipes").glob("*/*.yaml")):
        found += IN_A_HEADER.findall(recipe.read_text(encoding="utf-8"))
    machines = (ROOT / "recipes" / "clusters" / "machines.txt").read_text(encoding="utf-8").splitlines()
    found += [line for line in machines if line.startswith("titokctl ")]
    return sorted(set(found))


def as_run() -> list[str]:
    """Return the command lines that test_documented_pages.py runs."""
    return sorted({documented.as_run(line) for page in documented.PAGES for line in documented.executed(page)})


def test_there_are_some():
    assert len(shown()) > 100
    assert len(as_run()) > 80


def test_every_line_is_run_or_is_listed_with_the_reason():
    """A line that begins with another program can't be run on its page; a listed line is one of a page."""
    unknown = [line for line in LINES if line.text not in documented.NOT_RUN and not line.is_plain]
    assert not unknown, "list them in NOT_RUN of tests/documented.py"
    texts = {line.text for line in LINES}
    assert not set(documented.NOT_RUN) - texts, "no page has these lines any more"
    assert not set(documented.DRY_RUN) - texts, "no page has these lines any more"
    assert all(documented.NOT_RUN.values())
    assert all(documented.DRY_RUN.values())


def test_each_change_changes_a_line():
    for change in documented.CHANGES:
        others = tuple(one for one in documented.CHANGES if one is not change)
        assert any(documented.as_run(line) != documented.as_run(line, others) for line in LINES), change


@pytest.mark.parametrize("line", sorted({*shown(), *as_run()}))
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
