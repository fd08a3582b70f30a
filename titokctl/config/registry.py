"""Things found by name: ours, and those that installed packages add through entry points."""

from collections.abc import Collection, Mapping
from importlib.metadata import entry_points
from typing import Any

from titokctl.errors import UserError


def find(kind: str, name: str, built_in: Mapping[str, Any], group: str, error: type[UserError] = UserError) -> Any:
    """Return what is registered as `name`: an entry of `built_in`, else the entry point `name` of `group`.

    Args:
        kind: the word for it in the error message, e.g. "quantizer".
        error: the type of the error.

    Raises:
        UserError: nothing has that name; the hint lists the known names.
    """
    if name in built_in:
        return built_in[name]
    found = entry_points(group=group)
    for entry in found:
        if entry.name == name:
            return entry.load()
    names = ", ".join(known_names(built_in, group))
    raise error(f"unknown {kind} {name!r}", f"known here: {names} (entry points of {group} add more)")


def known_names(built_in: Collection[str], group: str) -> list[str]:
    """Return the names that `find` knows, sorted; nothing is loaded."""
    return sorted({*built_in, *entry_points(group=group).names})
