"""Shell completions for arguments: recipes, released models, runs. None of them imports torch.

The functions are Typer's `autocompletion`: incomplete word -> words. If there are none, the shell completes file names.
"""

from pathlib import Path

import typer


def recipes(incomplete: str) -> list[str]:
    """Return all shipped recipes, as kind/name."""
    from titokctl.config.recipe_names import shipped

    return _fitting(shipped(), incomplete)


def tokenizer_recipes(incomplete: str) -> list[str]:
    """Return the recipes of train-tokenizer, by name."""
    return _recipes_of("tokenizer", incomplete)


def generator_recipes(incomplete: str) -> list[str]:
    """Return the recipes of train-gen, by name."""
    return _recipes_of("generator", incomplete)


def sampling_recipes(incomplete: str) -> list[str]:
    """Return the recipes of sample, by name."""
    return _recipes_of("sampling", incomplete)


def models(incomplete: str) -> list[str]:
    """Return all released models."""
    from titokctl.weights.known import BY_NAME

    return _fitting(list(BY_NAME), incomplete)


def tokenizers(context: typer.Context, incomplete: str) -> list[str]:
    """Return trained tokenizers, then released ones."""
    return _of_kind("tokenizer", context, incomplete)


def generators(context: typer.Context, incomplete: str) -> list[str]:
    """Return trained generators, then released ones."""
    return _of_kind("generator", context, incomplete)


def proxies(context: typer.Context, incomplete: str) -> list[str]:
    """Return trained VQGANs, then the released one."""
    return _of_kind("proxy", context, incomplete)


def runs(context: typer.Context, incomplete: str) -> list[str]:
    """Return all runs of the runs folder as kind/name, and the incomplete name's matches that only one run has."""
    from titokctl.formats.run_folder import KINDS

    found = [(kind, path.name) for kind in KINDS for path in _folders(kind, context)]
    names = [name for _, name in found]
    short = [name for name in names if incomplete and names.count(name) == 1]
    return _fitting([*(f"{kind}/{name}" for kind, name in found), *short], incomplete)


def _recipes_of(kind: str, incomplete: str) -> list[str]:
    from titokctl.config.recipe_names import shipped

    return _fitting([name.split("/")[1] for name in shipped(kind)], incomplete)


def _of_kind(kind: str, context: typer.Context, incomplete: str) -> list[str]:
    from titokctl.weights.known import of_kind

    folders = _folders(kind, context)
    short = [folder.name for folder in folders] if incomplete else []  # what is taken as well, once it is begun
    names = [*map(str, folders), *short, *(known.name for known in of_kind(kind))]
    return _fitting(names, incomplete)


def _folders(kind: str, context: typer.Context) -> list[Path]:
    from titokctl.formats.run_folder import runs_root

    root = runs_root(context.params.get("runs_dir"))
    return sorted(path.parent for path in (root / kind).glob("*/run.json"))


def _fitting(names: list[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
