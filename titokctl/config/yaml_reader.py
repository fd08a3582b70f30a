"""YAML of recipes: the safe loader, with 1e-4 as a number; duplicate keys and aliases are errors."""

import re
from pathlib import Path
from typing import Any

import yaml

from titokctl.errors import UsageError

_MAX_BYTES = 1 << 20
_VALID = "`titokctl recipes ls` lists valid recipes, `titokctl recipes show NAME` prints one"


class _Loader(yaml.SafeLoader):
    """The safe loader for YAML 1.1, with 1e-4 as a number as in YAML 1.2."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        # Recipes need no aliases, and a few lines of nested ones expand to gigabytes.
        if self.check_event(yaml.AliasEvent):
            line = self.peek_event().start_mark.line + 1
            raise yaml.YAMLError(f"an alias (*name) near line {line}: write the value out")
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[str, Any]:
    pairs = loader.construct_pairs(node, deep=True)
    line = node.start_mark.line + 1
    for i, (key, _) in enumerate(pairs):
        if not isinstance(key, str):
            raise yaml.YAMLError(f"the key {key!r} is not text (in the section at line {line})")
        if any(key == earlier for earlier, _ in pairs[:i]):
            raise yaml.YAMLError(f"duplicate key {key!r} (in the section at line {line})")
    return dict(pairs)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_value(text: str) -> Any:
    """Parse `text` as a value in a recipe. Raises ValueError with a message of one line when it is not YAML."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: no objects are built
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{where}{error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: dates such as 2020-99-99
        raise ValueError(" ".join(str(error).split())) from error


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises UsageError when it can't be read or isn't a mapping."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError(f"{path} is {path.stat().st_size:,} bytes, too large for a recipe", _VALID)
        data = read_value(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not valid YAML: {error}", _VALID) from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", _VALID) from error
    if not isinstance(data, dict):
        raise UsageError(f"{path} is not a recipe: expected lines `key: value`", _VALID)
    return data
