"""`titokctl train-tokenizer`: images -> a tokenizer in the runs folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from titokctl.config.recipe import TokenizerRecipe
from titokctl.data.sources import open_source
from titokctl.data.sources.source import Source
from titokctl.distributed.group import Group, single_group
from titokctl.distributed.reduce import summed
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UserError
from titokctl.formats.metrics_log import MetricsLog
from titokctl.formats.run_folder import RunFolder, open_run
from titokctl.jobs.run_setup import check_division, training_run
from titokctl.jobs.step_images import StepImages
from titokctl.jobs.tokenizer_validation import Validation
from titokctl.models.fan_in import initialize_fan_in
from titokctl.models.initialization import initialize
from titokctl.models.perceptual import Lite0Perceptual
from titokctl.models.titok.tokenizer import TiTok
from titokctl.progress import Progress
from titokctl.training.loop import Loop
from titokctl.training.randomness import key
from titokctl.training.single_stage import SingleStage
from titokctl.weights.feature_networks import load_lite0
from titokctl.weights.hashes import encoder_sha256, weights_sha256
from titokctl.weights.store import save_tokenizer

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class TrainedTokenizer:
    """What a finished run is: its folder, its weights, and the last numbers of its log."""

    run: Path
    weights: Path
    encoder_sha256: str
    weights_sha256: str
    metrics: dict[str, Any]


def train_tokenizer(
    data: Sequence[Path],
    recipe: TokenizerRecipe,
    recipe_name: str,
    runs: Path,
    *,
    validation: Sequence[Path] = (),
    name: str | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    progress: Progress,
    stop: StopRequest,
    group: Group | None = None,
) -> TrainedTokenizer:
    """Train a tokenizer, or go on with the run that the same arguments started, or return it when it is finished.

    Args:
        data: a folder of images or shards, or several shards.
        recipe: the resolved recipe; recipe_name: what to call the run after.
        runs: the runs folder.
        validation: held-out images in the same forms.
        name: the run's folder name; by default made from the recipe and the data.
        overwrite: start over.
        group: the processes that train together; None means this one. Each returns the same.

    Raises: UserError for data that can't be read or are too few; Stopped after a signal, with everything saved.
    """
    group = group or single_group()
    check_division(recipe.training.global_batch_size, group)
    source = open_source(data)
    held_out = open_source(validation) if validation else None
    if len(source) < 1:
        raise UserError(f"no images in {data[0]}", "name a folder of images or of WebDataset shards")
    inputs = {"data": source.description, "validation": held_out.description if held_out else None}
    identity = "/".join(s.description["fingerprint"] for s in (source, held_out) if s)
    with training_run(runs, "tokenizer", recipe_name, recipe, inputs, identity, name, overwrite, group) as run:
        if run.is_finished:
            progress.say(f"{run.path} is finished already; --overwrite trains it again")
        else:
            progress.say(f"run: {run.path}")
            _train(run, recipe, source, held_out, device, progress, stop, group)
        group.barrier()
        return _result(open_run(run.path))


def _train(
    run: RunFolder,
    recipe: TokenizerRecipe,
    source: Source,
    held_out: Source | None,
    device: str,
    progress: Progress,
    stop: StopRequest,
    group: Group,
) -> None:
    images = StepImages(source, recipe, group)
    torch.manual_seed(key(recipe.training.seed, "initialization"))
    tokenizer = TiTok(recipe.model)
    if recipe.initialization == "fan-in":
        mean = summed({"mean": images.batch(0).mean() / group.world_size}, group)["mean"]
        initialize_fan_in(tokenizer, pixel_mean=float(mean))
    else:
        initialize(tokenizer)
    validate = Validation(held_out, recipe.model.image_size, run.path) if held_out else None
    task = SingleStage(tokenizer.to(device).train(), recipe, images, _perceptual(recipe, device), validate, group)
    Loop(task, recipe.training, run.path, f"train-tokenizer {run.name}", progress, stop, group).run()
    if images.rejected:
        named = "; ".join(f"{r.key} ({r.kind})" for r in images.rejected[:5])
        progress.say(f"{len(images.rejected):,} images can't be decoded, others stood in for them: {named}")
    if not group.is_main:
        return
    trained = task.averaged().cpu()
    save_tokenizer(run.path / WEIGHTS, trained)
    run.finish(WEIGHTS, {"encoder_sha256": encoder_sha256(trained), "weights_sha256": weights_sha256(trained)})


def _perceptual(recipe: TokenizerRecipe, device: str) -> Lite0Perceptual | None:
    """The perceptual network that the recipe names, in bf16 where the recipe trains in it."""
    if recipe.loss.perceptual == "none":
        return None
    dtype = torch.float32 if recipe.training.precision == "float32" else torch.bfloat16
    network = load_lite0().to(device, dtype)
    return Lite0Perceptual(network.to(memory_format=torch.channels_last))  # type: ignore[call-overload]


def _result(run: RunFolder) -> TrainedTokenizer:
    metrics = MetricsLog(run.path / "metrics.jsonl").newest_values()
    return TrainedTokenizer(run.path, run.product_path, **run.hashes, metrics=metrics)
