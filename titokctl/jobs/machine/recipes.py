"""The shipped recipes, for people: list, show, copy, and check files of one's own."""

from dataclasses import dataclass
from pathlib import Path

from titokctl.config import recipe_files
from titokctl.errors import UsageError
from titokctl.formats.atomic import write_bytes


@dataclass(frozen=True)
class ListedRecipe:
    """One shipped recipe: `name` is what commands take, `about` the first line of the file's header."""

    kind: str
    name: str
    about: str


@dataclass(frozen=True)
class CheckedFile:
    """What is wrong with a recipe file, and what to do about it; "" when nothing is."""

    path: Path
    problem: str
    hint: str


def list_recipes() -> list[ListedRecipe]:
    """All shipped recipes, sorted by kind and name."""
    return [
        ListedRecipe(kind=name.split("/")[0], name=name, about=_first_line(recipe_files.find(name)))
        for name in recipe_files.shipped()
    ]


def read_recipe(name: str) -> bytes:
    """The file of the recipe `name` as it is. Raises UsageError when there is none."""
    return recipe_files.find(name).read_bytes()


def copy_recipe(name: str, target: Path, overwrite: bool = False) -> Path:
    """Copy the recipe `name` to the file `target`, or into it when it is a folder, and return where it lies.

    Raises UsageError when there is no such recipe, when the folder is missing, or when the file exists and `overwrite`
    is not set.
    """
    source = recipe_files.find(name)
    target = target / source.name if target.is_dir() else target
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists", "choose another name, or replace it with --overwrite")
    if not target.parent.is_dir():
        raise UsageError(f"the folder {target.parent} does not exist", f"make it first: mkdir -p {target.parent}")
    write_bytes(target, source.read_bytes())
    return target


def check_recipes(paths: list[Path]) -> list[CheckedFile]:
    """Check every file completely; the order is that of `paths`. Raises UsageError when one is no file."""
    for path in paths:
        if not path.is_file():
            raise UsageError(f"recipe file not found: {path}", "`titokctl recipes ls` lists the shipped recipes")
    return [CheckedFile(path, *_problem(path)) for path in paths]


def _problem(path: Path) -> tuple[str, str]:
    try:
        recipe_files.check(path)
    except UsageError as error:
        return error.message, error.hint
    return "", ""


def _first_line(path: Path) -> str:
    """The first line of the comment that opens the file, without its mark."""
    with path.open(encoding="utf-8") as lines:
        first = next(lines, "")
    return first.lstrip("#").strip() if first.startswith("#") else ""
