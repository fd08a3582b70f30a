"""`titokctl train-gen`: a token cache -> a generator in the runs folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from titokctl.config import recipe_files
from titokctl.config.recipe import GeneratorRecipe
from titokctl.data.tokens import TokenRows, held_out
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UserError
from titokctl.formats.metrics_log import MetricsLog
from titokctl.formats.run_folder import RunFolder
from titokctl.formats.token_cache import PLAIN, TokenCache
from titokctl.jobs.run_setup import training_run
from titokctl.models.fan_in import initialize_fan_in
from titokctl.models.initialization import initialize
from titokctl.models.maskgit.generator import MaskGit
from titokctl.progress import Progress
from titokctl.training.loop import Loop
from titokctl.training.masked_tokens import MaskedTokens
from titokctl.training.randomness import key
from titokctl.weights.hashes import weights_sha256
from titokctl.weights.store import save_generator

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class TrainedGenerator:
    """What a finished run is: its folder, its weights, and the last numbers of its log."""

    run: Path
    weights: Path
    weights_sha256: str
    metrics: dict[str, Any]


def train_generator(
    cache_path: Path,
    recipe_name: str | None,
    runs: Path,
    *,
    overrides: Sequence[str] = (),
    validation: Path | None = None,
    name: str | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    progress: Progress,
    stop: StopRequest,
) -> TrainedGenerator:
    """Train a generator, or go on with the run that the same arguments started, or return it when it is finished.

    Args:
        cache_path: a token cache.
        recipe_name: a recipe's name or path; None finds the one that fits the cache's K, V and number of classes.
        validation: a cache of held-out images by the same tokenizer, for the held-out loss.

    Raises: UserError when cache and recipe don't fit or the cache is smaller than a batch; Stopped after a signal.
    """
    cache = TokenCache.open(cache_path)
    recipe_name, recipe = resolve_recipe(cache, cache_path, recipe_name, overrides, progress)
    judged = _validation_cache(validation, cache)
    identity = "/".join(c.sha256 for c in (cache, judged) if c)
    inputs = lineage(cache, cache_path)
    with training_run(runs, "generator", Path(recipe_name).stem, recipe, inputs, identity, name, overwrite) as run:
        if run.is_finished:
            progress.say(f"{run.path} is finished already; --overwrite trains it again")
        else:
            progress.say(f"run: {run.path}")
            _train(run, recipe, cache, judged, device, progress, stop)
        return _result(run)


def lineage(cache: TokenCache, path: Path) -> dict[str, Any]:
    """What a generator's products must know of the cache: hashes, source and preprocessing."""
    made_by = {name: cache.attrs[name] for name in ("encoder_sha256", "weights_sha256", "source", "preprocessing")}
    return {"cache": str(path.absolute()), **made_by, "class_names": cache.class_names}


def resolve_recipe(
    cache: TokenCache, path: Path, name: str | None, overrides: Sequence[str], progress: Progress
) -> tuple[str, GeneratorRecipe]:
    """The named recipe, or the shipped one for the cache's K and V, checked against the cache.

    A recipe that was found takes its number of classes from the cache; a named one must have enough.
    """
    tokens, codes = cache.num_latent_tokens, cache.codebook_size
    classes = num_classes(cache)
    if name is None:
        name = _fitting_recipe(tokens, codes, classes, path)
        progress.say(f"recipe: {name} (K {tokens}, V {codes}, {classes} classes)")
        overrides = [f"model.num_classes={classes}", *overrides]
    recipe: GeneratorRecipe = recipe_files.load(name, "generator", overrides)
    _check_fit(recipe, name, tokens, codes, classes, cache, path)
    if classes == 0:
        progress.say("the cache has no labels: training an unconditional generator")
    return name, recipe


def num_classes(cache: TokenCache) -> int:
    """How many classes the labels of a cache speak of; 0 when there are no labels."""
    highest = int(np.max(cache.labels, initial=-1)) + 1
    return max(highest, len(cache.class_names)) if highest else 0


def _fitting_recipe(tokens: int, codes: int, classes: int, path: Path) -> str:
    """The shipped recipe for K and V; the one with the same number of classes first, then the smallest model."""
    found = {}
    for name in recipe_files.shipped():
        if name.startswith("generator/"):
            model = recipe_files.load(name, "generator").model
            if (model.num_latent_tokens, model.codebook_size) == (tokens, codes):
                found[name] = (model.num_classes != classes, model.width * model.num_layers)
    if not found:
        raise UserError(
            f"no shipped generator recipe has the {tokens} tokens and {codes} codes of {path}",
            "copy one with `titokctl recipes cp`, change model.num_latent_tokens and model.codebook_size, "
            "and name it with --recipe",
        )
    return min(found, key=lambda name: found[name])


def _check_fit(
    recipe: GeneratorRecipe, name: str, tokens: int, codes: int, classes: int, cache: TokenCache, path: Path
) -> None:
    model = recipe.model
    wrong = [
        f"{field}: the recipe says {ours}, the cache has {theirs}"
        for field, ours, theirs in (
            ("model.num_latent_tokens", model.num_latent_tokens, tokens),
            ("model.codebook_size", model.codebook_size, codes),
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
        raise UserError(f"recipe {name} does not fit {path}:\n{lines}", "change the recipe's fields with --set")
    if len(cache) < recipe.training.global_batch_size:
        raise UserError(
            f"{path} has {len(cache):,} rows, fewer than one global batch of {recipe.training.global_batch_size:,}",
            f"use a smaller batch: --set training.global_batch_size={max(1, len(cache) // 2)}",
        )


def _validation_cache(path: Path | None, trained: TokenCache) -> TokenCache | None:
    if path is None:
        return None
    cache = TokenCache.open(path)
    if cache.header.encoder_sha256 != trained.header.encoder_sha256:
        raise UserError(
            f"{path} was made by another tokenizer than the training cache", "tokenize it with the same one"
        )
    return cache


def _train(
    run: RunFolder,
    recipe: GeneratorRecipe,
    cache: TokenCache,
    judged: TokenCache | None,
    device: str,
    progress: Progress,
    stop: StopRequest,
) -> None:
    rows, kept = _rows(recipe, cache, judged, device)
    torch.manual_seed(key(recipe.training.seed, "initialization"))
    generator = MaskGit(recipe.model)
    initialize_fan_in(generator) if recipe.initialization == "fan-in" else initialize(generator)
    task = MaskedTokens(generator.to(device).train(), recipe, rows, kept)
    Loop(task, recipe.training, run.path, f"train-gen {run.name}", progress, stop).run()
    trained = task.averaged().cpu()
    extra = {"inputs": json.dumps(run.inputs), "sampling": recipe.sampling.model_dump_json()}
    save_generator(run.path / WEIGHTS, trained, extra)
    run.finish(WEIGHTS, {"weights_sha256": weights_sha256(trained)})


def _rows(
    recipe: GeneratorRecipe, cache: TokenCache, judged: TokenCache | None, device: str
) -> tuple[TokenRows, TokenRows | None]:
    """Training rows, and rows for the held-out loss: another cache, or a share of this one."""
    if judged is not None:
        return TokenRows(cache, recipe.views, None, device), TokenRows(judged, (PLAIN,), None, device)
    if recipe.val_fraction == 0:
        return TokenRows(cache, recipe.views, None, device), None
    kept = held_out(cache.keys, recipe.val_fraction)
    train = TokenRows(cache, recipe.views, np.flatnonzero(~kept), device)
    return train, TokenRows(cache, (PLAIN,), np.flatnonzero(kept), device) if kept.any() else None


def _result(run: RunFolder) -> TrainedGenerator:
    metrics = MetricsLog(run.path / "metrics.jsonl").newest_values()
    return TrainedGenerator(run.path, run.product_path, run.hashes["weights_sha256"], metrics)
