"""Find the recipe for a token cache, and check that the two fit."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from titokctl.config import recipe_files
from titokctl.config.models import MASKGIT, GeneratorSizes, kind_of
from titokctl.config.recipe import GeneratorRecipe
from titokctl.data.sources.imagenet import say_class_order
from titokctl.errors import UserError
from titokctl.formats.token_cache import CacheHeader, TokenCache, labelled_rows
from titokctl.progress import Progress
from titokctl.readable import counted
from titokctl.weights.store import skeleton

_SHOWN = 5  # classes without rows


def resolve_recipe(
    cache: TokenCache, path: Path, name: str | None, overrides: Sequence[str], progress: Progress
) -> tuple[str, GeneratorRecipe]:
    """Return the named recipe, or the shipped one for the cache's K and V, checked against the cache.

    The number of classes is that of the cache, unless `overrides` set it: further classes of the recipe would never be
    trained, and could still be drawn. Without labels the generator has no classes in any case.
    """
    tokens = cache.num_latent_tokens
    classes = num_classes(cache)
    if name is None:
        name = _fitting_recipe(cache, classes, path)
        values = f"V {cache.codebook_size}" if cache.is_discrete else f"C {cache.header.token_size}"
        progress.say(f"recipe: {name} (K {tokens}, {values}, {classes} classes)")
    elif classes and not any(one.split("=")[0].strip() in ("model", "model.num_classes") for one in overrides):
        own = recipe_files.load(name, "generator", overrides).model.num_classes
        if own != classes:
            progress.say(
                f"model.num_classes: {classes:,}, from {path}; --set model.num_classes={own} keeps the recipe's"
            )
    from_cache = f"model.num_classes={classes}"
    overrides = [from_cache, *overrides] if classes else [*overrides, from_cache]
    recipe: GeneratorRecipe = recipe_files.load(name, "generator", overrides)
    _check_fit(recipe, name, classes, cache, path)
    say_class_order(cache.class_names, recipe.model, progress.say)
    if classes == 0:
        progress.say("the cache has no labels: training an unconditional generator")
    _warn_of_untrained(cache, recipe.model.num_classes, path, progress)
    return name, recipe


def _warn_of_untrained(cache: TokenCache, classes: int, path: Path, progress: Progress) -> None:
    """Warn of classes without a row: they can be drawn, and show noise."""
    missing = np.flatnonzero(labelled_rows(cache.labels, classes)[:classes] == 0)
    if not len(missing):
        return
    needed = num_classes(cache)
    shown = ", ".join(map(str, missing[:_SHOWN])) + (", ..." if len(missing) > _SHOWN else "")
    smaller = f"; --set model.num_classes={needed} leaves out those above" if needed < classes else ""
    progress.say(
        f"warning: no rows in {path} for {len(missing):,} of the {classes:,} classes ({shown}), so the generator does "
        f"not learn them, and sample leaves them out{smaller}"
    )


def num_classes(cache: TokenCache) -> int:
    """Return the number of classes that the labels of a cache need; 0 without labels."""
    highest = int(np.max(cache.labels, initial=-1)) + 1
    return max(highest, len(cache.class_names)) if highest else 0


def _values(model: GeneratorSizes | CacheHeader) -> tuple[int, int]:
    """Return V, 0 for latents, and C, 0 for ids."""
    return model.codebook_size or 0, getattr(model, "token_size", 0)


def _values_in_words(cache: TokenCache) -> str:
    codes, size = _values(cache.header)
    return f"{codes} codes" if codes else f"latents of {size} numbers"


def _fitting_recipe(cache: TokenCache, classes: int, path: Path) -> str:
    """Return the shipped recipe for K, V and image size, or for K, C and image size where the rows are latents.

    MaskGIT comes before other kinds, then equal numbers of classes, then the smallest model.
    """
    tokens, values, size = cache.num_latent_tokens, _values(cache.header), cache.header.image_size
    found = {}
    for name in recipe_files.shipped("generator"):
        recipe = recipe_files.load(name, "generator")
        model = recipe.model
        if (model.num_latent_tokens, _values(model), recipe.image_size or size) == (tokens, values, size):
            is_other = kind_of(model) != MASKGIT
            found[name] = (is_other, model.num_classes != classes, model.width * model.num_layers)
    if not found:
        raise UserError(
            f"no shipped generator recipe has the {tokens} tokens and {_values_in_words(cache)} of {path} ({size} px)",
            f"copy one with `titokctl recipes cp`, change model.num_latent_tokens and model."
            f"{'codebook_size' if cache.is_discrete else 'token_size'}, and name it with --recipe",
        )
    return min(found, key=lambda name: found[name])


def _check_fit(recipe: GeneratorRecipe, name: str, classes: int, cache: TokenCache, path: Path) -> None:
    model, header = recipe.model, cache.header
    (codes, channels), (own_codes, own_channels) = _values(header), _values(model)
    if (codes > 0) != (own_codes > 0):
        theirs, ours = ("ids", "latents") if codes else ("latents", "ids")
        raise UserError(
            f"recipe {name} trains a generator of {ours}, and {path} holds {theirs}",
            f"leave out --recipe, or take a recipe for {theirs}, such as {'tiny' if codes else 'tiny-flow'}",
        )
    skeleton("generator", model)  # refuses an unknown architecture
    wrong = [
        f"{field}: the recipe says {ours}, the cache has {theirs}"
        for field, ours, theirs in (
            ("model.num_latent_tokens", model.num_latent_tokens, header.num_latent_tokens),
            ("model.codebook_size", own_codes, codes),
            ("model.token_size", own_channels, channels),
            ("image_size", recipe.image_size or cache.header.image_size, cache.header.image_size),
        )
        if ours != theirs
    ]
    if classes > model.num_classes:
        wrong.append(f"model.num_classes: the recipe says {model.num_classes}, the cache's labels need {classes}")
    missing = [view for view in recipe.views if view not in cache.views]
    if missing:
        wrong.append(f"views: the recipe wants {', '.join(missing)}, the cache has {', '.join(cache.views)}")
    if wrong:
        lines = "\n".join(f"  {line}" for line in wrong)
        there = ", ".join(view for view in recipe.views if view in cache.views) or "plain"
        hint = "change the recipe's fields with --set" + (f', such as --set "views=[{there}]"' if missing else "")
        raise UserError(f"recipe {name} does not fit {path}:\n{lines}", hint)
    if len(cache) < recipe.training.global_batch_size:
        batch = recipe.training.global_batch_size
        raise UserError(
            f"{path} has {counted(len(cache), 'rows')}, fewer than one global batch of {batch:,}",
            f"use a smaller batch: --set training.global_batch_size={max(1, len(cache) // 2)}",
        )
