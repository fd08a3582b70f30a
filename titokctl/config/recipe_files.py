"""Finding, reading and overriding recipes. All problems of a recipe are reported at once.

A recipe is named (`tiny`, `tokenizer/tiny`) or given as a path. Order of precedence: default < recipe < --set.
"""

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from titokctl.config.recipe import recipe_model
from titokctl.config.recipe_names import KINDS, recipes_folder, shipped
from titokctl.config.sampling import SamplingConfig
from titokctl.config.tokenizer_recipe import STAGES
from titokctl.config.yaml_reader import read_mapping, read_value
from titokctl.errors import UsageError

_TAKEN_BY = {"tokenizer": "train-tokenizer", "generator": "train-gen", "sampling": "sample"}
_FIELDS = "`titokctl recipes show NAME` lists the fields of a shipped recipe, `titokctl recipes ls` the names"
M = TypeVar("M", bound=BaseModel)


def find(name: str, kind: str | None = None) -> Path:
    """The file of a recipe given by path or by name; `kind` settles names that stand under several kinds.

    Raises UsageError when there is none, with the nearest names.
    """
    as_path = Path(name)
    if as_path.suffix in {".yaml", ".yml"} or as_path.is_file():
        if not as_path.is_file():
            raise UsageError(f"recipe file not found: {name}", "`titokctl recipes ls` lists the shipped recipes")
        return as_path
    fitting = [s for s in shipped() if s == name] or [s for s in shipped(kind) if s.split("/")[1] == name]
    if len(fitting) == 1:
        return recipes_folder() / f"{fitting[0]}.yaml"
    if fitting:
        raise UsageError(f"the recipe name {name!r} is ambiguous", f"name one of: {', '.join(fitting)}")
    known = shipped(kind)
    near = difflib.get_close_matches(name, {*known, *(s.split("/")[1] for s in known)}, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"shipped: {', '.join(known) or 'none'}"
    raise UsageError(f"no recipe named {name!r}", hint)


def load(name: str, kind: str, overrides: Iterable[str] = ()) -> Any:
    """The recipe `name` of `kind` ("tokenizer", "generator", "sampling") with `a.b=value` overrides applied.

    Raises UsageError that lists every problem with the path of its field and the nearest known name.
    """
    path = find(name, kind)
    data = read_mapping(path)
    found = _kind_of(data, path)
    if found != kind:
        raise UsageError(f"{path} is a {found} recipe, not a {kind} recipe", f"`titokctl {_TAKEN_BY[found]}` takes it")
    changed = [apply_override(data, item) for item in overrides]
    return validate(_model_of(kind, data), data, str(path), changed)


def check(path: Path) -> BaseModel:
    """Read and validate a recipe file of whichever kind it says it is."""
    data = read_mapping(path)
    return validate(_model_of(_kind_of(data, path), data), data, where=str(path))


def _kind_of(data: dict[str, Any], path: Path) -> str:
    """The kind of the recipe in `path`; sampling settings are flat and say none."""
    if "kind" not in data and "model" in data:
        raise UsageError(f"{path} does not say its kind", "begin it with kind: tokenizer or kind: generator")
    kind = data.get("kind", "sampling")
    if not isinstance(kind, str) or kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, n=1)
        return near[0] if near else "generator" if "views" in data else "tokenizer"
    return kind


def _model_of(kind: str, data: dict[str, Any]) -> type[BaseModel]:
    """Return the model that checks a recipe of `kind`; for an unknown stage, that of the nearest known one."""
    if kind == "tokenizer":
        stage = str(data.get("stage"))
        return STAGES[next(iter(difflib.get_close_matches(stage, STAGES, n=1)), "single")]
    return recipe_model(data.get("model"), UsageError) if kind == "generator" else SamplingConfig


def apply_override(data: dict[str, Any], item: str) -> str:
    """Set one field of `data` from "a.b=value"; the value is read as YAML (1e-4, true, [0.9, 0.99], null).

    Returns the field, "a.b".
    """
    field, equals, text = item.partition("=")
    keys = field.strip().split(".")
    if not equals or not all(keys):
        raise UsageError(f"--set {item!r} is not of the form field.name=value", "e.g. --set training.steps=2000")
    try:
        value = read_value(text)
    except ValueError as error:
        raise UsageError(f"--set {field}: cannot read the value {text!r}: {error}") from error
    for key in keys[:-1]:
        inner = data.setdefault(key, {})
        if not isinstance(inner, dict):
            raise UsageError(f"--set {field}: {key} is a value, not a section")
        data = inner
    data[keys[-1]] = value
    return ".".join(keys)


def validate(model: type[M], data: dict[str, Any], where: str, changed: Iterable[str] = ()) -> M:
    """`data` as `model`. Raises UsageError naming every wrong field; `changed` are those the command line set."""
    try:
        # Through JSON, so that strict types still accept a list where a tuple is meant.
        return model.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        errors = error.errors(include_url=False)
        problems = [_describe(model, data, e) for e in errors]
        fields = [".".join(map(str, e["loc"])) for e in errors]
        if all(any(f"{field}.".startswith(f"{c}.") for c in changed) for field in fields):
            where = f"what the command line changes in {where}"
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "\n".join(f"  {p}" for p in problems)
        raise UsageError(f"{where} has {count}:\n{lines}", _FIELDS) from error


def to_yaml(recipe: BaseModel) -> str:
    """A resolved recipe as YAML, every field spelled out."""
    return yaml_of(recipe.model_dump(mode="json"))


def yaml_of(settings: Any) -> str:
    """Return settings, JSON values, as YAML with a line for each small section."""
    return yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=100)


def _describe(model: type[BaseModel], data: dict[str, Any], error: Any) -> str:
    location = [str(part) for part in error["loc"]]
    path = ".".join(location) or "recipe"
    if error["type"] == "extra_forbidden":
        near = _nearest_field(model, location)
        return f"{path}: unknown field" + (f"; did you mean {near}?" if near else "")
    if error["type"] == "missing":
        return f"{path}: missing"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if location == ["stage"]:
        message = f"one of {', '.join(STAGES)}"
    expected = message if error["type"] == "value_error" else f"should be {message}, not {_short(error['input'])}"
    return f"{path}: {expected}"


def _nearest_field(model: type[BaseModel], location: list[str]) -> str:
    """The field that was probably meant: the same name in another section, else a like name in this one."""
    *section, name = location
    elsewhere = [f"{other}.{name}" for other in model.model_fields if name in _fields_at(model, [other])]
    near = difflib.get_close_matches(name, _fields_at(model, section), n=1, cutoff=0.5)
    return (elsewhere or near or [""])[0]


def _fields_at(model: type[BaseModel], location: list[str]) -> list[str]:
    """Names of the fields of the section at `location`."""
    current: Any = model
    for part in location:
        field = current.model_fields.get(part)
        options = getattr(field.annotation, "__args__", (field.annotation,)) if field else ()
        current = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
        if current is None:
            return []
    return list(current.model_fields)


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:37] + "..."
