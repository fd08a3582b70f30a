"""`titokctl train-gen`: a token cache -> a generator in the runs folder."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from titokctl.config.recipe import GeneratorRecipe
from titokctl.context import Context
from titokctl.data.tokens import TokenRows, held_out
from titokctl.distributed.group import Group
from titokctl.errors import UserError
from titokctl.formats.metrics_log import MetricsLog
from titokctl.formats.run_folder import RunFolder, check_run_name, open_run
from titokctl.formats.token_cache import PLAIN, TokenCache
from titokctl.jobs.launch_record import launch_record
from titokctl.jobs.train.generator_recipe import num_classes, resolve_recipe
from titokctl.jobs.train.preview import make_preview
from titokctl.models import generator_kinds
from titokctl.models.generator import Generator
from titokctl.models.initialization import initialize, initialize_fan_in
from titokctl.training.cost import GeneratorCost, generator_cost, measured_rate
from titokctl.training.generator_task import GeneratorTask
from titokctl.training.loop import Loop
from titokctl.training.randomness import key
from titokctl.training.run_setup import TrainingPlan, TrainingRun, check_division, check_folder
from titokctl.training.speed import training_cost
from titokctl.training.trace import StepTrace
from titokctl.weights.adoption import Given, adopt, freeze, planned, twice
from titokctl.weights.hashes import check_encoder, weights_sha256
from titokctl.weights.load import load_generator
from titokctl.weights.read import locate, read
from titokctl.weights.references import in_runs
from titokctl.weights.store import save_generator, skeleton

_BEGINNING_ROWS = 1 << 14  # that a generator sees before training
_CHECKED_BYTES = 4 << 30  # larger caches would delay the start: `titokctl verify` checks them
Rows = tuple[TokenRows, TokenRows | None]


@dataclass(frozen=True)
class TrainedGenerator:
    """A finished run: its folder, its weights, and the newest numbers of its log up to the step of the weights."""

    run: Path
    weights: Path
    weights_sha256: str
    metrics: dict[str, Any]


@dataclass(frozen=True)
class TrainGenerator:
    """Train a generator on cached tokens, resume the run that the same request started, or return it if finished.

    Args:
        cache: a token cache.
        recipe: a recipe's name or path; None finds the one that fits the cache's K, V and number of classes.
        overrides: changes of the recipe, such as "training.steps=2000".
        validation: a cache of held-out images by the same tokenizer, for the held-out loss.
        init: weights to start from, as `load_generator` takes them; None starts from random values.
        tokenizer: the tokenizer that made the cache, for previews; None finds it by its hash, or leaves previews out.
        name: the name of the run folder.
        overwrite: start over, and delete an existing run when the new one is finished.
        measure: let `plan` train 20 steps to measure the speed.
        processes: how many processes `plan` counts with; None for those of the context.
        profile: write trace.json, a profile of a few steps, into the run folder.
    """

    cache: Path
    recipe: str | None = None
    overrides: Sequence[str] = ()
    validation: Path | None = None
    tokenizer: str | None = None
    name: str | None = None
    overwrite: bool = False
    measure: bool = False
    processes: int | None = None
    init: str | None = None
    profile: bool = False

    def __post_init__(self) -> None:
        check_run_name(self.name)

    def plan(self, context: Context) -> TrainingPlan[GeneratorCost]:
        """Return the resolved recipe, the cost, and the run folder; nothing is written.

        Raises UserError where `run` would.
        """
        processes = self.processes or context.group.world_size
        found = self._inputs(context, processes, dry=True)
        cost = generator_cost(found.recipe, found.name, found.rows[0].count, found.cache.rows[:1].nbytes, processes)
        run = found.run.plan()
        if self.measure:
            task = build_task(found.recipe, found.rows, context.device, context.group, init=found.init)
            rate = measured_rate(task, found.recipe.training.global_batch_size)
            cost = replace(cost, images_per_s=rate, seconds=cost.images / rate)
        return TrainingPlan(found.recipe, cost, run)

    def run(self, context: Context) -> TrainedGenerator:
        """Train. Each process of the group returns the same result.

        Raises UserError when cache and recipe don't fit or the cache is smaller than a batch; Stopped after a signal.
        """
        group = context.group
        found = self._inputs(context, group.world_size, dry=False)
        preview = (
            make_preview(self.tokenizer, found.cache, self.cache, found.recipe, context) if group.is_main else None
        )
        with found.run.opened(context.say, group, launch_record(context)) as run:
            if not run.is_finished:
                draw = preview(run.path) if preview else None
                task = build_task(found.recipe, found.rows, context.device, group, draw, found.init)
                _train(run, task, context, self.profile)
            group.barrier()
            return _result(open_run(run.path))

    def _inputs(self, context: Context, processes: int, dry: bool) -> "_Inputs":
        """Open and check everything that the run is made of."""
        is_main = context.group.is_main
        cache = TokenCache.open(self.cache, check_ids=is_main)
        if is_main:
            check_folder(context.runs / "generator", dry)
        if is_main and cache.num_bytes <= _CHECKED_BYTES:
            cache.check_contents()
        name, recipe = resolve_recipe(cache, self.cache, self.recipe, self.overrides, context.progress)
        check_division(recipe.training, processes)
        judged = _validation_cache(self.validation, cache, recipe, is_main)
        rows = training_rows(recipe, cache, judged, context.device)
        identity = "/".join(c.sha256 for c in (cache, judged) if c)
        inputs = lineage(cache, self.cache, rows[0], recipe)
        init = self._given(cache, recipe, context, not dry)
        if init is not None:
            inputs["init"] = planned(skeleton("generator", recipe.model), init.given).record(init.given)
            identity += f"/{init.given.weights_sha256}"
        stem = Path(name).stem
        run = TrainingRun(context.runs, "generator", stem, recipe, inputs, identity, self.name, self.overwrite)
        return _Inputs(cache, name, recipe, rows, run, init)

    def _given(
        self, cache: TokenCache, recipe: GeneratorRecipe, context: Context, fetch: bool
    ) -> "GeneratorStart | None":
        """Load the weights to start from, and report what is taken of them."""
        if self.init is None:
            return None
        named = in_runs(self.init, context.runs, "generator", context.say)
        network = load_generator(named, fetch=fetch)
        made_by = json.loads(read(locate(named, fetch, "generator")).extra.get("inputs", "{}"))
        given = Given(named, weights_sha256(network), network, made_by.get("class_names") or ())
        context.say(f"init: {named}: {planned(skeleton('generator', recipe.model), given).in_words()}")
        if cache.class_names and list(cache.class_names) != list(given.class_names):
            unclear = sorted({*twice(cache.class_names), *twice(given.class_names)})
            if given.class_names and unclear:
                context.say(
                    f"warning: two classes are named {unclear[0]}; such classes start from the null label's row"
                )
        encoder = made_by.get("encoder_sha256")
        if encoder not in (None, cache.header.encoder_sha256):
            context.say(
                f"warning: {named} was trained on ids of another tokenizer (encoder {encoder[:12]}, not "
                f"{cache.header.encoder_sha256[:12]}), whose codes mean something else"
            )
        return GeneratorStart(given, cache.class_names)


@dataclass(frozen=True)
class GeneratorStart:
    """Weights that a generator starts from, and the names of the classes that it will be trained on."""

    given: Given
    class_names: Sequence[str] = ()


@dataclass(frozen=True)
class _Inputs:
    """Inputs of a run; `name` is the recipe's."""

    cache: TokenCache
    name: str
    recipe: GeneratorRecipe
    rows: Rows
    run: TrainingRun
    init: GeneratorStart | None = None


def lineage(cache: TokenCache, path: Path, rows: TokenRows, recipe: GeneratorRecipe) -> dict[str, Any]:
    """Return what a generator's products record of the cache.

    Hashes, source, preprocessing, terms if there are any, and of the classes their names and how many of `rows` each
    has, since a class without rows is not learnt. `rows_sha256` is the hash of the cache's rows; with `val_fraction`,
    the recipe's, it tells which of them were held out.
    """
    made_by = {name: cache.attrs[name] for name in ("encoder_sha256", "weights_sha256", "source", "preprocessing")}
    terms = {"terms": cache.header.terms} if cache.header.terms else {}
    classes = {"class_names": cache.class_names, "class_rows": rows.class_rows(recipe.model.num_classes)}
    trained = {"rows_sha256": cache.sha256, "val_fraction": recipe.val_fraction}
    return {"cache": str(path.absolute()), **trained, **made_by, **classes, **terms}


def _validation_cache(
    path: Path | None, trained: TokenCache, recipe: GeneratorRecipe, is_main: bool
) -> TokenCache | None:
    if path is None:
        return None
    if recipe.val_fraction:
        raise UserError(
            f"{path} and val_fraction {recipe.val_fraction} both name held-out images",
            "leave out --val, or --set val_fraction=0",
        )
    cache = TokenCache.open(path)
    if is_main and cache.num_bytes <= _CHECKED_BYTES:
        cache.check_contents()
    theirs, ours = cache.header.encoder_sha256, trained.header.encoder_sha256
    check_encoder(str(path), theirs, str(trained.path), ours, "tokenize it with the same one")
    needed, classes = num_classes(cache), recipe.model.num_classes
    if needed > classes > 0:
        raise UserError(
            f"model.num_classes: the recipe says {classes}, the labels of {path} need {needed}",
            "validate on images of the trained classes, or raise model.num_classes with --set",
        )
    return cache


def build_task(
    recipe: GeneratorRecipe,
    rows: Rows,
    device: str,
    group: Group,
    preview: Callable[[Generator, int], None] | None = None,
    init: GeneratorStart | None = None,
) -> GeneratorTask:
    """Build an initialised generator, with what fits of `init`, and the task that trains it."""
    torch.manual_seed(key(recipe.training.seed, "initialization"))
    generator = generator_kinds.build(recipe.model)
    initialize_fan_in(generator) if recipe.initialization == "fan-in" else initialize(generator)
    generator.begin_training(rows[0].first_view(_BEGINNING_ROWS))
    if init is not None:
        adopt(generator, init.given, init.class_names)
    freeze(generator, recipe.training.freeze)
    return GeneratorTask(generator.to(device).train(), recipe, *rows, group, preview)


def training_rows(recipe: GeneratorRecipe, cache: TokenCache, judged: TokenCache | None, device: str) -> Rows:
    """Return training rows, and rows for the held-out loss: those of another cache, or a share of this one.

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
            f"val_fraction {recipe.val_fraction} holds out {judging:,} of the {len(kept):,} rows of {cache.path}; at "
            f"least 1 must be held out, and one global batch of {batch:,} must remain",
            "change --set val_fraction=..., or --set training.global_batch_size=...",
        )
    train = TokenRows(cache, recipe.views, np.flatnonzero(~kept), device)
    return train, TokenRows(cache, (PLAIN,), np.flatnonzero(kept), device)


def _train(run: RunFolder, task: GeneratorTask, context: Context, profile: bool) -> None:
    recipe, group = task.recipe, task.group
    trace = StepTrace(run.path, context.progress) if profile and group.is_main else None
    cost = training_cost(task.model.operations, context.device, recipe.training.precision)
    step = Loop(task, recipe.training, run.path, "train-gen", context, cost, trace).run()
    if not group.is_main:
        return
    trained = task.averaged().cpu()
    sampling = recipe.sampling.model_dump_json()
    extra = {"inputs": json.dumps(run.inputs), "sampling": sampling, "step": str(step)}
    hashes = {"weights_sha256": weights_sha256(trained)}
    product = run.product_name(hashes["weights_sha256"])
    save_generator(run.path / product, trained, extra)
    run.finish(product, hashes, step)


def _result(run: RunFolder) -> TrainedGenerator:
    metrics = MetricsLog(run.path / "metrics.jsonl").newest_values(run.step)
    return TrainedGenerator(run.path, run.product_path, run.hashes["weights_sha256"], metrics)
