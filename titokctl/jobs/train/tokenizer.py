"""`titokctl train-tokenizer`: images -> a tokenizer in the runs folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titokctl.config.tokenizer_recipe import ProxyRecipe, TokenizerRecipe
from titokctl.data.sources import open_source
from titokctl.data.sources.source import Source
from titokctl.distributed.group import Group, single_group
from titokctl.distributed.stop import StopRequest
from titokctl.dry_run import is_dry_run
from titokctl.errors import UserError
from titokctl.formats import proxy_codes
from titokctl.formats.metrics_log import MetricsLog
from titokctl.formats.proxy_codes import ProxyCodes
from titokctl.formats.run_folder import RunFolder, open_run
from titokctl.jobs.train.stage_start import Start, find_start
from titokctl.jobs.train.stages import Surroundings, build_stage, run_kind, save_product
from titokctl.jobs.train.tokenizer_cost import operations_per_image
from titokctl.jobs.train.validation import Validation, inception_if_here
from titokctl.progress import Progress
from titokctl.training.kept_codes import KeptCodes
from titokctl.training.loop import Loop
from titokctl.training.run_setup import RunPlan, check_division, check_place, plan_training_run, training_run
from titokctl.training.speed import training_cost
from titokctl.training.step_images import StepImages

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class TrainedTokenizer:
    """What a finished run is: its folder, its weights, and the last numbers of its log.

    `encoder_sha256` is None for a proxy tokenizer, which makes no ids for a cache.
    """

    run: Path
    weights: Path
    weights_sha256: str
    encoder_sha256: str | None
    metrics: dict[str, Any]


def train_tokenizer(
    data: Sequence[Path | str],
    recipe: TokenizerRecipe,
    recipe_name: str,
    runs: Path,
    *,
    validation: Sequence[Path | str] = (),
    name: str | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    progress: Progress,
    stop: StopRequest,
    group: Group | None = None,
) -> TrainedTokenizer:
    """Run one stage of training a tokenizer, or go on with the run that the same arguments started.

    A finished run is returned as it is. A stage that starts from another one's product finds it in the runs folder.

    Args:
        data: a folder of images or shards, or several shards; URLs of shards, too.
        recipe: the resolved recipe; recipe_name: what to call the run after.
        runs: the runs folder.
        validation: held-out images in the same forms.
        name: the run's folder name; by default made from the recipe and the data.
        overwrite: start over.
        group: the processes that train together; None means this one. Each returns the same.

    Raises: UserError for data that can't be read or are too few; Stopped after a signal, with everything saved.
    """
    group = group or single_group()
    check_division(recipe.training, group.world_size)
    if group.is_main:
        check_place(runs / run_kind(recipe))
    source, held_out = _sources(data, validation)
    start = find_start(recipe, runs, progress.say, group)
    inputs = {"data": source.description, "validation": held_out.description if held_out else None} | start.inputs
    identity = _identity(source, held_out, start)
    kind, say = run_kind(recipe), progress.say
    with training_run(runs, kind, recipe_name, recipe, inputs, identity, name, overwrite, say, group) as run:
        if not run.is_finished:
            _train(run, recipe, start, source, held_out, device, progress, stop, group)
        group.barrier()
        return _result(open_run(run.path))


def plan_training(
    data: Sequence[Path | str],
    recipe: TokenizerRecipe,
    recipe_name: str,
    runs: Path,
    *,
    validation: Sequence[Path | str] = (),
    name: str | None = None,
    overwrite: bool = False,
    processes: int = 1,
    progress: Progress,
) -> tuple[dict[str, int | float], RunPlan]:
    """What `train_tokenizer` would see with the same arguments, and which run that would be; nothing is written.

    Args:
        processes: how many would share the work.

    Raises UserError where `train_tokenizer` would.
    """
    check_division(recipe.training, processes)
    check_place(runs / run_kind(recipe))
    source, held_out = _sources(data, validation)
    start = find_start(recipe, runs, progress.say, single_group())
    identity = _identity(source, held_out, start)
    run = plan_training_run(runs, run_kind(recipe), recipe_name, recipe, identity, name, overwrite)
    seen, judged = recipe.training.steps * recipe.training.global_batch_size, len(held_out) if held_out else 0
    images = len(source)
    return {"images": images, "held_out": judged, "images_seen": seen, "epochs": seen / images}, run


def _sources(data: Sequence[Path | str], validation: Sequence[Path | str]) -> tuple[Source, Source | None]:
    source = open_source(data, keep_index=not is_dry_run())
    held_out = open_source(validation, keep_index=not is_dry_run()) if validation else None
    if len(source) < 1:
        raise UserError(f"no images in {data[0]}", "name a folder of images or of WebDataset shards")
    return source, held_out


def _identity(source: Source, held_out: Source | None, start: Start) -> str:
    return "/".join([*(s.description["fingerprint"] for s in (source, held_out) if s), *start.identity])


def _train(
    run: RunFolder,
    recipe: TokenizerRecipe,
    start: Start,
    source: Source,
    held_out: Source | None,
    device: str,
    progress: Progress,
    stop: StopRequest,
    group: Group,
) -> None:
    images, validate = StepImages(source, recipe, group, progress.say), None
    if held_out:
        judge = inception_if_here(device, progress.say)
        validate = Validation(held_out, recipe.image_size, run.path, group, judge, progress.say)
    kept = _kept_codes(run.path, recipe, images, group)
    task = build_stage(recipe, start, Surroundings(images, validate, device, group, kept))
    cost = training_cost(lambda: operations_per_image(recipe), device, recipe.training.precision)
    Loop(task, recipe.training, run.path, f"train-tokenizer {run.name}", progress, stop, group, cost).run()
    for remark in images.remarks():
        progress.say(remark)
    if group.is_main:
        run.finish(WEIGHTS, save_product(run.path / WEIGHTS, task.averaged().cpu(), start.inputs))


def _kept_codes(folder: Path, recipe: TokenizerRecipe, images: StepImages, group: Group) -> KeptCodes | None:
    """The file of proxy codes beside the run, made on the first start; None where the recipe wants none."""
    if not isinstance(recipe, ProxyRecipe) or not recipe.cached_crops or recipe.model.proxy is None:
        return None
    path, places = folder / proxy_codes.NAME, (recipe.image_size // recipe.model.proxy.downsampling) ** 2
    shape = (recipe.cached_crops * len(images), places)
    if group.is_main and not path.exists():
        proxy_codes.create(path, shape)
    group.barrier()
    return KeptCodes(ProxyCodes(path, shape, recipe.model.proxy.codebook_size), images.views, len(images))


def _result(run: RunFolder) -> TrainedTokenizer:
    metrics = MetricsLog(run.path / "metrics.jsonl").newest_values()
    whole, encoder = run.hashes["weights_sha256"], run.hashes.get("encoder_sha256")
    return TrainedTokenizer(run.path, run.product_path, whole, encoder, metrics)
