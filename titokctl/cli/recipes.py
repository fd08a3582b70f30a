"""`titokctl recipes ls|show|cp|check`."""

from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import completion, console
from titokctl.cli.app import app
from titokctl.cli.options import Json, Overwrite, Quiet
from titokctl.cli.work import Surroundings, perform
from titokctl.errors import EXIT_FAILED

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A recipe as `ls` shows it, e.g. tokenizer/tiny.", autocompletion=completion.recipes
    ),
]


group = typer.Typer(no_args_is_help=True, help="List, show, copy and check recipes.")
app.add_typer(group, name="recipes")


@group.command(epilog="Example: titokctl recipes ls")
def ls(as_json: Json = False) -> None:
    """List the shipped recipes."""
    from titokctl.jobs.machine.recipes import ListRecipes

    recipes = perform(ListRecipes(), Surroundings(quiet=True))
    if as_json:
        console.emit_json(recipes)
    else:
        console.table("", ("kind", "name", "about"), [(r.kind, r.name, r.about) for r in recipes])


@group.command(epilog="Example: titokctl recipes show tokenizer/tiny")
def show(name: Name) -> None:
    """Print the file of a recipe."""
    import sys

    from titokctl.jobs.machine.recipes import ShowRecipe

    sys.stdout.write(perform(ShowRecipe(name), Surroundings(quiet=True)).decode("utf-8"))


@group.command(epilog="Example: titokctl recipes cp tokenizer/tiny my.yaml")
def cp(
    name: Name,
    target: Annotated[Path, typer.Argument(metavar="FILE", help="The copy, or a folder to copy it into.")],
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Copy a recipe to a file that you can edit."""
    from titokctl.jobs.machine.recipes import CopyRecipe

    written = perform(CopyRecipe(name, target, overwrite), Surroundings(quiet))
    if not quiet:
        console.say(f"copied {name} to {written}")


@group.command(epilog="Example: titokctl recipes check my.yaml")
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Recipe files.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List all errors in recipe files; exits with 1 if there are any."""
    from titokctl.jobs.machine.recipes import CheckRecipes

    checked = perform(CheckRecipes(files), Surroundings(quiet=True))
    if as_json:
        console.emit_json([{"path": str(c.path), "valid": not c.problem, "problem": c.problem} for c in checked])
    for result in checked:
        if result.problem and not as_json:
            console.error(result.problem, result.hint)
        elif not (quiet or as_json):
            console.say(f"{result.path} is valid")
    if any(result.problem for result in checked):
        raise typer.Exit(EXIT_FAILED)
