"""`titokctl train-gen`: a token cache -> a generator in the runs folder."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from titokctl.config.recipe import GeneratorRecipe
from titokctl.data.tokens import TokenRows, held_out
from titokctl.distributed.group import Group, single_group
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UserError
from titokctl.formats.metrics_log import MetricsLog
from titokctl.formats.run_folder import RunFolder, open_run
from titokctl.formats.token_cache import PLAIN, TokenCache
from titokctl.jobs.train.generator_plan import GeneratorPlan, measure, operations_per_image, plan_run
from titokctl.jobs.train.generator_preview import make_preview
from titokctl.jobs.train.generator_recipe import num_classes, resolve_recipe
from titokctl.models import generator_kinds
from titokctl.models.fan_in import initialize_fan_in
from titokctl.models.generator import Generator
from titokctl.models.initialization import initialize
from titokctl.progress import Progress
from titokctl.training.generator_task import GeneratorTask
from titokctl.training.loop import Loop
from titokctl.training.randomness import key
from titokctl.training.run_setup import RunPlan, check_division, check_place, plan_training_run, training_run
from titokctl.training.speed import training_cost
from titokctl.weights.hashes import weights_sha256
from titokctl.weights.store import save_generator

WEIGHTS = "weights.safetensors"
_CHECKED_BYTES = 4 << 30  # larger caches would wait for it: `titokctl verify` checks them


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
    tokenizer: str | None = None,
    device: str = "cpu",
    progress: Progress,
    stop: StopRequest,
    group: Group | None = None,
) -> TrainedGenerator:
    """Train a generator, or go on with the run that the same arguments started, or return it when it is finished.

    Args:
        cache_path: a token cache.
        recipe_name: a recipe's name or path; None finds the one that fits the cache's K, V and number of classes.
        validation: a cache of held-out images by the same tokenizer, for the held-out loss.
        tokenizer: what made the cache, for pictures on the way; None looks for it by its hash and does without.
        group: the processes that train together; None means this one. Each returns the same.

    Raises: UserError when cache and recipe don't fit or the cache is smaller than a batch; Stopped after a signal.
    """
    group = group or single_group()
    cache = TokenCache.open(cache_path, check_ids=group.is_main)
    if group.is_main:
        check_place(runs / "generator")
    if group.is_main and cache.num_bytes <= _CHECKED_BYTES:
        cache.check_rows()
    recipe_name, recipe = resolve_recipe(cache, cache_path, recipe_name, overrides, progress)
    check_division(recipe.training, group.world_size)
    judged = _validation_cache(validation, cache, recipe)
    rows = training_rows(recipe, cache, judged, device)
    preview = make_preview(tokenizer, cache, cache_path, recipe, runs, device, progress) if group.is_main else None
    identity = "/".join(c.sha256 for c in (cache, judged) if c)
    inputs = lineage(cache, cache_path)
    stem = Path(recipe_name).stem
    with training_run(runs, "generator", stem, recipe, inputs, identity, name, overwrite, progress.say, group) as run:
        if not run.is_finished:
            task = build_task(recipe, rows, device, group, preview(run.path) if preview else None)
            _train(run, task, device, progress, stop)
        group.barrier()
        return _result(open_run(run.path))


def plan_training(
    cache_path: Path,
    recipe_name: str | None,
    runs: Path,
    *,
    overrides: Sequence[str] = (),
    validation: Path | None = None,
    name: str | None = None,
    overwrite: bool = False,
    processes: int = 1,
    measured: bool = False,
    device: str = "cpu",
    progress: Progress,
    group: Group | None = None,
) -> tuple[GeneratorRecipe, GeneratorPlan, RunPlan]:
    """The resolved recipe, what a run of it would take, and which run that would be; nothing is written.

    Args:
        runs, validation, name, overwrite: as `train_generator` takes them.
        processes: how many would share the work; with a group of several, they are these.
        measured: train 20 steps for the time that the whole run would take.

    Raises UserError where `train_generator` would.
    """
    group = group or single_group()
    cache = TokenCache.open(cache_path, check_ids=group.is_main)
    if group.is_main:
        check_place(runs / "generator")
    recipe_name, recipe = resolve_recipe(cache, cache_path, recipe_name, overrides, progress)
    check_division(recipe.training, processes)
    judged = _validation_cache(validation, cache, recipe)
    rows = training_rows(recipe, cache, judged, device)
    identity = "/".join(c.sha256 for c in (cache, judged) if c)
    run = plan_training_run(runs, "generator", Path(recipe_name).stem, recipe, identity, name, overwrite)
    plan = plan_run(recipe, recipe_name, rows[0].count, cache.ids.itemsize, processes)
    if measured:
        rate = measure(build_task(recipe, rows, device, group))
        plan = replace(plan, images_per_s=rate, seconds=plan.images / rate)
    return recipe, plan, run


def lineage(cache: TokenCache, path: Path) -> dict[str, Any]:
    """What a generator's products must know of the cache: hashes, source, preprocessing, terms if there are any."""
    made_by = {name: cache.attrs[name] for name in ("encoder_sha256", "weights_sha256", "source", "preprocessing")}
    terms = {"terms": cache.header.terms} if cache.header.terms else {}
    return {"cache": str(path.absolute()), **made_by, "class_names": cache.class_names, **terms}


def _validation_cache(path: Path | None, trained: TokenCache, recipe: GeneratorRecipe) -> TokenCache | None:
    if path is None:
        return None
    if recipe.val_fraction:
        raise UserError(
            f"{path} and val_fraction {recipe.val_fraction} both name what is held out",
            "leave out --val, or --set val_fraction=0",
        )
    cache = TokenCache.open(path)
    theirs, ours = cache.header.encoder_sha256, trained.header.encoder_sha256
    if theirs != ours:
        raise UserError(
            f"{path} was made by another tokenizer than {trained.path}: encoder {theirs[:12]}, not {ours[:12]}",
            "tokenize it with the same one",
        )
    needed, classes = num_classes(cache), recipe.model.num_classes
    if needed > classes > 0:
        raise UserError(
            f"model.num_classes: the recipe says {classes}, the labels of {path} need {needed}",
            "validate on images of the classes that are trained, or raise model.num_classes with --set",
        )
    return cache


def build_task(
    recipe: GeneratorRecipe,
    rows: tuple[TokenRows, TokenRows | None],
    device: str,
    group: Group,
    preview: Callable[[Generator, int], None] | None = None,
) -> GeneratorTask:
    """A freshly initialised generator and all that trains it."""
    torch.manual_seed(key(recipe.training.seed, "initialization"))
    generator = generator_kinds.build(recipe.model)
    initialize_fan_in(generator) if recipe.initialization == "fan-in" else initialize(generator)
    return GeneratorTask(generator.to(device).train(), recipe, *rows, group, preview)


def training_rows(
    recipe: GeneratorRecipe, cache: TokenCache, judged: TokenCache | None, device: str
) -> tuple[TokenRows, TokenRows | None]:
    """Training rows, and rows for the held-out loss: another cache, or a share of this one.

    Raises UserError when `val_fraction` leaves too few rows on either side.
    """
    if judged is not None:
        return TokenRows(cache, recipe.views, None, device), TokenRows(judged, (PLAIN,), None, device)
    if recipe.val_fraction == 0:
        return TokenRows(cache, recipe.views, None, device), None
    kept, batch = held_out(cache.keys, recipe.val_fraction), recipe.training.global_batch_size
    judging = np.count_nonzero(kept)
    if not judging or len(kept) - judging < batch:
        raise UserError(
            f"val_fraction {recipe.val_fraction} keeps {judging:,} of the {len(kept):,} rows of {cache.path} from "
            f"training; at least 1 must be kept, and one global batch of {batch:,} left",
            "change --set val_fraction=..., or --set training.global_batch_size=...",
        )
    train = TokenRows(cache, recipe.views, np.flatnonzero(~kept), device)
    return train, TokenRows(cache, (PLAIN,), np.flatnonzero(kept), device)


def _train(run: RunFolder, task: GeneratorTask, device: str, progress: Progress, stop: StopRequest) -> None:
    recipe, group = task.recipe, task.group
    cost = training_cost(lambda: operations_per_image(task.model), device, recipe.training.precision)
    Loop(task, recipe.training, run.path, f"train-gen {run.name}", progress, stop, group, cost).run()
    if not group.is_main:
        return
    trained = task.averaged().cpu()
    extra = {"inputs": json.dumps(run.inputs), "sampling": recipe.sampling.model_dump_json()}
    save_generator(run.path / WEIGHTS, trained, extra)
    run.finish(WEIGHTS, {"weights_sha256": weights_sha256(trained)})


def _result(run: RunFolder) -> TrainedGenerator:
    metrics = MetricsLog(run.path / "metrics.jsonl").newest_values()
    return TrainedGenerator(run.path, run.product_path, run.hashes["weights_sha256"], metrics)
