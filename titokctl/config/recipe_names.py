"""Names and paths of the shipped recipes; separate from `recipe_files`, so that shell completion imports no models."""

from pathlib import Path

KINDS = ("tokenizer", "generator", "sampling")


def recipes_folder() -> Path:
    """The shipped recipes: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def shipped(kind: str | None = None) -> list[str]:
    """Names of all shipped recipes (of one kind), kind/name, sorted."""
    root = recipes_folder()
    found = (p for each in KINDS if kind in (None, each) for p in (root / each).glob("*.yaml"))
    return sorted(p.relative_to(root).with_suffix("").as_posix() for p in found)
