"""`titokctl recipes`: list, show and copy the shipped recipes, and check other recipe files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from titokctl.config import recipe_files
from titokctl.context import Context
from titokctl.errors import UsageError, UserError
from titokctl.formats.atomic import write_bytes
from titokctl.formats.replacing import RECIPE, check_free, is_of_kind
from titokctl.formats.unfinished import finished_already


@dataclass(frozen=True)
class ListedRecipe:
    """A shipped recipe: `name` is what commands take, `about` the first line of the file's header."""

    kind: str
    name: str
    about: str


@dataclass(frozen=True)
class CheckedFile:
    """An error in a recipe file, and how to correct it; both empty for a valid file."""

    path: Path
    problem: str
    hint: str


@dataclass(frozen=True)
class ListRecipes:
    """List all shipped recipes, sorted by kind and name."""

    def run(self, context: Context) -> list[ListedRecipe]:
        """Return the list."""
        return [
            ListedRecipe(kind=name.split("/")[0], name=name, about=_first_line(recipe_files.find(name)))
            for name in recipe_files.shipped()
        ]


@dataclass(frozen=True)
class ShowRecipe:
    """Read the file of the shipped recipe `name`."""

    name: str

    def run(self, context: Context) -> bytes:
        """Return its bytes. Raises UsageError for an unknown name."""
        return recipe_files.find(self.name).read_bytes()


@dataclass(frozen=True)
class CopyRecipe:
    """Copy the shipped recipe `name` to the file `target`, or into the folder `target`."""

    name: str
    target: Path
    overwrite: bool = False

    def run(self, context: Context) -> Path:
        """Copy it, and return the path of the copy, which needs no record of its origin: its bytes are the recipe's.

        Raises UserError for an existing file that differs, and UsageError for an unknown name or a missing folder.
        """
        source = recipe_files.find(self.name)
        target = self.target / source.name if self.target.is_dir() else self.target
        if is_of_kind(target, RECIPE) and target.read_bytes() == source.read_bytes():
            context.say(finished_already(target))
            return target
        if target.is_file() and not self.overwrite:
            raise UserError(
                f"{target} exists already and is not a copy of {self.name}",
                "choose another file, or replace it with --overwrite",
            )
        check_free(target, self.overwrite, RECIPE)
        if not target.parent.is_dir():
            raise UsageError(f"the folder {target.parent} does not exist", f"make it first: mkdir -p {target.parent}")
        write_bytes(target, source.read_bytes())
        return target


@dataclass(frozen=True)
class CheckRecipes:
    """Check the recipe files `paths`."""

    paths: Sequence[Path]

    def run(self, context: Context) -> list[CheckedFile]:
        """Return what is wrong with each. Raises UsageError when a file doesn't exist."""
        for path in self.paths:
            if not path.is_file():
                raise UsageError(f"recipe file not found: {path}", "`titokctl recipes ls` lists the shipped recipes")
        return [CheckedFile(path, *_problem(path)) for path in self.paths]


def _problem(path: Path) -> tuple[str, str]:
    try:
        recipe_files.check(path)
    except UsageError as error:
        return error.message, error.hint
    return "", ""


def _first_line(path: Path) -> str:
    """Return the first line of the comment that opens the file, without the comment sign."""
    with path.open(encoding="utf-8") as lines:
        first = next(lines, "")
    return first.lstrip("#").strip() if first.startswith("#") else ""
