"""`titokctl train-tokenizer`: images -> a tokenizer in the runs folder."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from titokctl.config import recipe_files
from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.config.tokenizer_recipe import DecoderRecipe, ProxyRecipe, TokenizerRecipe
from titokctl.context import Context
from titokctl.data.image_problems import NOTHING_KNOWN
from titokctl.data.source_check import allowed_share, can_be_checked, checked_source, too_many
from titokctl.data.sources import open_source
from titokctl.data.sources.choices import NO_CHOICES, Choices
from titokctl.data.sources.source import Rejected, Source
from titokctl.distributed.group import Group
from titokctl.distributed.reduce import slice_of
from titokctl.errors import UserError
from titokctl.formats import proxy_codes
from titokctl.formats.metrics_log import MetricsLog
from titokctl.formats.proxy_codes import ProxyCodes
from titokctl.formats.run_folder import REJECTED, RunFolder, check_run_name, open_run
from titokctl.formats.token_tally import write_rejected
from titokctl.jobs.launch_record import launch_record
from titokctl.jobs.plan import say_source
from titokctl.jobs.train.stage_start import Start, find_start
from titokctl.jobs.train.stages import Parts, build_stage, run_kind, save_product
from titokctl.jobs.train.validation import Validation, held_out_baselines, inception_if_here
from titokctl.training.cost import measured_rate, tokenizer_operations
from titokctl.training.kept_codes import KeptCodes
from titokctl.training.loop import Loop
from titokctl.training.run_setup import TrainingPlan, TrainingRun, check_division, check_folder
from titokctl.training.speed import training_cost
from titokctl.training.step_images import StepImages
from titokctl.training.trace import StepTrace
from titokctl.weights.read import PREPROCESSING, trained_with_exif


@dataclass(frozen=True)
class TrainedTokenizer:
    """A finished run: its folder, its weights, and the last numbers of its log.

    `encoder_sha256` is None for a proxy tokenizer, which does not produce ids for a cache.
    """

    run: Path
    weights: Path
    weights_sha256: str
    encoder_sha256: str | None
    metrics: dict[str, Any]


@dataclass(frozen=True)
class ImagesSeen:
    """The images of a run: how many there are, how many are held out, how many the steps take, in epochs, too.

    The last two are the speed of training and the time of the whole run, None unless they were measured.
    """

    images: int
    held_out: int
    images_seen: int
    epochs: float
    images_per_s: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class TrainTokenizer:
    """Run one stage of training a tokenizer, resume the run that the same request started, or return it if finished.

    A stage that starts from another stage's product finds it in the runs folder. Making a request raises UsageError
    for a recipe that is missing or wrong.

    Args:
        data: a folder of images or shards, or several shards; URLs of shards, too.
        recipe: a recipe's name or path.
        overrides: changes of the recipe, such as "training.steps=2000".
        validation: held-out images in the same forms.
        proxy: the VQGAN of the two-stage recipes; None leaves it to the recipe.
        init: the weights that stage decoder starts from; None leaves it to the recipe.
        name: the name of the run folder; None makes one from the recipe and the data.
        overwrite: start over, and delete an existing run when the new one is finished.
        processes: how many processes `plan` counts with; None for those of the context.
        choices: as for `open_source`; the split is that of the training images, and labels don't matter.
        exif: apply the EXIF orientation; None for what the tokenizer that the recipe continues was trained with.
        measure: let `plan` train 20 steps to measure the speed.
        profile: write trace.json, a profile of a few steps, into the run folder.
        max_rejected: the largest share of images that may be unusable; None for 0.1 %, or ten of a small set.
    """

    data: Sequence[Path | str]
    recipe: str = "tiny"
    overrides: Sequence[str] = ()
    validation: Sequence[Path | str] = ()
    proxy: str | None = None
    init: str | None = None
    name: str | None = None
    overwrite: bool = False
    processes: int | None = None
    choices: Choices = NO_CHOICES
    exif: bool | None = None
    measure: bool = False
    profile: bool = False
    max_rejected: float | None = None

    def __post_init__(self) -> None:
        check_run_name(self.name)
        _ = self.resolved

    @cached_property
    def resolved(self) -> TokenizerRecipe:
        """The recipe with all overrides."""
        named = (("proxy", self.proxy), ("init", self.init))
        flags = [f"{field}={json.dumps(value)}" for field, value in named if value is not None]
        recipe: TokenizerRecipe = recipe_files.load(self.recipe, "tokenizer", [*self.overrides, *flags])
        return recipe

    def plan(self, context: Context) -> TrainingPlan[ImagesSeen]:
        """Return the resolved recipe, the images that the run would see, and the run folder; nothing is written.

        Raises UserError where `run` would.
        """
        found = self._inputs(context, self.processes or context.group.world_size, dry=True)
        images, training = len(found.source), self.resolved.training
        seen = training.steps * training.global_batch_size
        held_out = len(found.held_out) if found.held_out else 0
        cost, run = ImagesSeen(images, held_out, seen, seen / images), found.run.plan()
        if self.measure:
            rate = self._rate(found, context)
            cost = replace(cost, images_per_s=rate, seconds=seen / rate)
        return TrainingPlan(self.resolved, cost, run)

    def _rate(self, found: "_Inputs", context: Context) -> float:
        """Train 20 steps that are lost, without stored proxy codes, and return the images per second."""
        images = StepImages(found.source, self.resolved, context, found.exif)
        task = build_stage(self.resolved, found.start, Parts(images, None, context.device, context.group, None))
        task.watch = _watch(context)
        return measured_rate(task, self.resolved.training.global_batch_size)

    def run(self, context: Context) -> TrainedTokenizer:
        """Train. Each process of the group returns the same result.

        Raises UserError for data that can't be read or are too few; Stopped after a signal, with everything saved.
        """
        found = self._inputs(context, context.group.world_size, dry=False)
        with found.run.opened(context.say, context.group, launch_record(context)) as run:
            if not run.is_finished:
                self._train(run, found, context)
            context.group.barrier()
            return _result(open_run(run.path))

    def _inputs(self, context: Context, processes: int, dry: bool) -> "_Inputs":
        """Open and check everything that the run is made of."""
        recipe, kind = self.resolved, run_kind(self.resolved)
        check_division(recipe.training, processes)
        if context.group.is_main:
            check_folder(context.runs / kind, dry)
        choices = self.choices.whatever_labels()
        source = open_source(self.data, keep_index=not dry, choices=choices, context=context)
        held_out = (
            open_source(self.validation, keep_index=not dry, choices=replace(choices, split=None), context=context)
            if self.validation
            else None
        )
        if context.group.is_main:
            say_source(source, context)
        if len(source) < 1:
            raise UserError(f"no images in {self.data[0]}", "name a folder of images or of WebDataset shards")
        start = find_start(recipe, context.runs, context.say, context.group, not dry)
        inputs = {"data": source.description, "validation": held_out.description if held_out else None} | start.inputs
        identity = "/".join([*(s.description["fingerprint"] for s in (source, held_out) if s), *start.identity])
        exif = self._exif(recipe, start)
        if exif:
            inputs[PREPROCESSING] = {"exif": True}
            identity += "/exif"
        stem = Path(self.recipe).stem
        run = TrainingRun(context.runs, kind, stem, recipe, inputs, identity, self.name, self.overwrite)
        return _Inputs(source, held_out, start, run, exif)

    def _exif(self, recipe: TokenizerRecipe, start: Start) -> bool:
        """Return True if the EXIF orientation is applied."""
        begun = start.inputs.get("init") if isinstance(recipe, DecoderRecipe) else None
        if self.exif is None and begun is not None:
            return trained_with_exif(begun["from"])
        return bool(self.exif)

    def _train(self, run: RunFolder, found: "_Inputs", context: Context) -> None:
        recipe, group, say = self.resolved, context.group, context.say
        known = self._unusable(run, found.source, context)
        images = StepImages(found.source, recipe, context, found.exif, known, self.max_rejected)
        validate = None
        if found.held_out:
            judge = inception_if_here(context.device, say)
            preprocessing = PreprocessingConfig(size=recipe.image_size, exif=found.exif)
            baselines = held_out_baselines(
                found.source, preprocessing, known, MetricsLog(run.path / "metrics.jsonl"), context
            )
            validate = Validation(found.held_out, recipe.image_size, run.path, group, judge, say, found.exif, baselines)
        kept = _kept_codes(run.path, recipe, images, group)
        task = build_stage(recipe, found.start, Parts(images, validate, context.device, group, kept))
        task.watch = _watch(context)
        cost = training_cost(lambda: tokenizer_operations(recipe), context.device, recipe.training.precision)
        trace = StepTrace(run.path, context.progress) if self.profile and group.is_main else None
        step = Loop(task, recipe.training, run.path, "train-tokenizer", context, cost, trace).run()
        for remark in images.remarks():
            say(remark)
        if group.is_main:
            save_product(run, task.averaged().cpu(), found.recorded, step)

    def _unusable(self, run: RunFolder, source: Source, context: Context) -> Mapping[int, Rejected]:
        """Return the images that can't be decoded, by position, and list them in the run folder.

        Images on a server, which can't be read twice at no cost, are not checked: unusable ones are found on the way.
        Raises UserError when there are too many.
        """
        if not can_be_checked(source):
            return NOTHING_KNOWN
        checked = checked_source(source, context)
        rejected, samples = [*source.problems, *checked.in_order()], len(source) + len(source.problems)
        if rejected and context.group.is_main:
            listing = run.path / REJECTED
            write_rejected(listing, [asdict(one) for one in rejected])
            context.progress.warn(f"{len(rejected):,} of {samples:,} images can't be used: {listing}")
        allowed = allowed_share(samples) if self.max_rejected is None else self.max_rejected
        if len(checked.rejected) == len(source) or len(rejected) > allowed * samples:
            raise too_many(rejected, samples, allowed, run.path / REJECTED)
        return checked.rejected


@dataclass(frozen=True)
class _Inputs:
    """Inputs of a run."""

    source: Source
    held_out: Source | None
    start: Start
    run: TrainingRun
    exif: bool

    @property
    def recorded(self) -> dict[str, Any]:
        """The record in the weights: the networks that training started from, and a decoding that is not the usual."""
        return self.start.inputs | ({PREPROCESSING: {"exif": True}} if self.exif else {})


def _kept_codes(folder: Path, recipe: TokenizerRecipe, images: StepImages, group: Group) -> KeptCodes | None:
    """Open the file of proxy codes in the run folder, made on the first start; None if the recipe keeps no codes."""
    if not isinstance(recipe, ProxyRecipe) or not recipe.cached_crops or recipe.model.proxy is None:
        return None
    path, positions = folder / proxy_codes.NAME, (recipe.image_size // recipe.model.proxy.downsampling) ** 2
    shape = (recipe.cached_crops * len(images), positions)
    if group.is_main and not path.exists():
        proxy_codes.create(path, shape)
    group.barrier()
    mine = slice_of(recipe.training.global_batch_size, group)
    return KeptCodes(ProxyCodes(path, shape, recipe.model.proxy.codebook_size), images.views, len(images), mine)


def _watch(context: Context) -> Callable[[int, int], None]:
    """Return a function that shows how far k-means is, and stops all processes after a signal to one of them."""

    def watch(done: int, total: int) -> None:
        context.progress.advance(0, f"k-means, part {done:,} of {total:,}")
        code = max(context.group.from_all(context.stop.exit_code))
        if code:
            context.stop.adopt(code)
            context.stop.check()

    return watch


def _result(run: RunFolder) -> TrainedTokenizer:
    metrics = MetricsLog(run.path / "metrics.jsonl").newest_values(run.step)
    whole, encoder = run.hashes["weights_sha256"], run.hashes.get("encoder_sha256")
    return TrainedTokenizer(run.path, run.product_path, whole, encoder, metrics)
