"""docs/recipe-fields.md lists every field of every recipe, as the models have them. After a change of a model:

python tests/config/test_recipe_fields.py > docs/recipe-fields.md
"""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

import titokctl
from titokctl.config.recipe import AutoregressiveRecipe, FlowRecipe, MaskGitRecipe
from titokctl.config.tokenizer_recipe import STAGES

PAGE = Path(titokctl.__file__).resolve().parents[1] / "docs" / "recipe-fields.md"
RECIPES: dict[str, type[BaseModel]] = {f"stage: {stage}": model for stage, model in STAGES.items()} | {
    "generator, kind: maskgit (the default)": MaskGitRecipe,
    "generator, kind: autoregressive": AutoregressiveRecipe,
    "generator, kind: flow": FlowRecipe,
}
OPENING = """# Fields of recipes

A recipe is a YAML file, or the name of a shipped one (`titokctl recipes ls`). Every field can be set on the command
line: `--set training.steps=2000`, `--set optimizer.clip_norm=null`, `--set "training.log=[tensorboard]"`. Unknown
fields are errors; `titokctl recipes check FILE` reads a file without running it. `--dry-run` prints the whole recipe.

This page is made from the models by `python tests/config/test_recipe_fields.py > docs/recipe-fields.md`; a test
compares the two.
A field whose default is "required" must be in the file. Fields of a section are named `section.field`.
"""
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below",
          "multipleOf": "a multiple of"}  # fmt: skip
WORDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}


def page() -> str:
    """Return the page: each recipe's fields, then each section once."""
    parts, sections = [OPENING], {}
    for title, model in RECIPES.items():
        parts.append(f"## Recipe of a {title}\n\n{about(model)}\n\n{table(model)}")
        for section in below(model):
            sections[section.__name__] = section
    for name, section in sections.items():
        parts.append(f"## {name}\n\n{about(section)}\n\n{table(section)}")
    return "\n".join(f"{part.rstrip()}\n" for part in parts)


def below(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield the models of a model's sections, and those of their sections."""
    for field in model.model_fields.values():
        for found in models_in(field.annotation):
            yield found
            yield from below(found)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in models_in(part)]


def about(model: type[BaseModel]) -> str:
    paragraphs = inspect.getdoc(model).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def table(model: type[BaseModel]) -> str:
    fields = model.model_json_schema()["properties"]
    rows = ["| field | values | default |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        sections = " or ".join(
            f"[{found.__name__}](#{found.__name__.lower()})" for found in models_in(field.annotation)
        )
        values = f"section {sections}" if sections else in_words(fields[name])
        if sections and field.default is None:
            values += " or null"
        rows.append(f"| `{name}` | {values} | {default(field)} |")
    return "\n".join(rows)


def in_words(schema: dict[str, Any]) -> str:
    """Return the values that a JSON schema allows, in words."""
    if "anyOf" in schema:
        return " or ".join(map(in_words, schema["anyOf"]))
    if "const" in schema or "enum" in schema:
        return ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    if schema.get("type") == "array":
        items = schema.get("prefixItems") or [schema.get("items", {})]
        return "list of " + ", ".join(dict.fromkeys(in_words(item) for item in items))
    if schema.get("type") == "object":
        names = ", ".join(schema.get("propertyNames", {}).get("enum", ())) or "names"
        return f"mapping of {names} to {in_words(schema.get('additionalProperties', {}))}"
    words = WORDS.get(schema.get("type", ""), "text")
    bounds = [f"{text} {schema[key]:g}" for key, text in BOUNDS.items() if key in schema]
    return ", ".join([words, *bounds])


def default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        changed = value.model_dump(mode="json", exclude_defaults=True)
        return f"`{json.dumps(changed)}`" if changed else "its defaults"
    return f"`{json.dumps(value)}`"


def test_the_page_is_that_of_the_models():
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_field_of_every_recipe_is_on_it():
    text = page()
    for model in RECIPES.values():
        for section in (model, *below(model)):
            for name in section.model_fields:
                assert f"| `{name}` |" in text


if __name__ == "__main__":
    print(page(), end="")
