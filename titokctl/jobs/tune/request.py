"""The request of `titokctl tune`: a trained generator and held-out images -> sampling settings."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.config.sampling import GuidanceConfig
from titokctl.context import Context
from titokctl.errors import UsageError, UserError
from titokctl.evaluation.extractors import Extractor, FeatureNetwork
from titokctl.evaluation.feature_pass import FeaturePass, statistics_key
from titokctl.evaluation.features import FeatureSet
from titokctl.evaluation.image_sets import Opening
from titokctl.evaluation.paired_metrics import paired_metric
from titokctl.evaluation.racing import PRESET, Budget, Race, race
from titokctl.evaluation.reference import is_statistics_file, named_images, named_reference
from titokctl.formats.atomic import file_sha256, make_folder
from titokctl.formats.replacing import files_to_delete, remove_tree
from titokctl.formats.run_folder import versions
from titokctl.formats.statistics import read_statistics
from titokctl.formats.tuning import PRODUCT, REPORT, SETTINGS, KeptFeatures, write_tuning
from titokctl.formats.unfinished import Unfinished, check_output, finished_already
from titokctl.jobs.plan import WritePlan
from titokctl.jobs.sample.inputs import (
    Given,
    Networks,
    build_networks,
    find_generator,
    find_tokenizer,
    plan_for,
    settings_for,
)
from titokctl.jobs.tune.challengers import challengers
from titokctl.jobs.tune.drawing import Drawing
from titokctl.jobs.tune.report import Finalist, Tried, TuneResult, in_words, read_result, write_report
from titokctl.models.device import default_batch_size
from titokctl.models.inference import fastest_precision, kernels
from titokctl.models.precision import Precision
from titokctl.readable import counted
from titokctl.sampling.plan import Plan

DEFAULT_MINUTES, MOST_CANDIDATES = 10.0, 1_000
_SPENT_ON_DRAWING = 0.85  # of the minutes; machines don't keep the speed that was measured at the beginning


@dataclass(frozen=True)
class Tune:
    """Find sampling settings for a trained generator, or resume; the same request gives the same result.

    Args:
        reference: held-out images, or statistics of them.
        output: the folder of the results.
        generator, tokenizer: run folder, file or known name; None finds the newest generator and its tokenizer.
        metric: a name of PAIRED_METRICS.
        network: the feature network.
        minutes: time for drawing and judging images; 10 if `images` is None, too. The features of the reference are not
            counted; they are computed once.
        images: the number of images to draw for all settings together, instead of `minutes`.
        candidates: the number of settings, with the preset.
        seed: of the settings to try. The noise of the images has the seed of the preset.
        overwrite: replace the results in `output`.
        skip_bad: leave out held-out images that can't be read.
    """

    reference: Path | None
    output: Path
    generator: str | None = None
    tokenizer: str | None = None
    metric: str = "kid"
    network: FeatureNetwork = field(default_factory=FeatureNetwork)
    minutes: float | None = None
    images: int | None = None
    candidates: int = 24
    seed: int = 0
    overwrite: bool = False
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if self.reference is None:
            raise UsageError(
                "tune compares samples with held-out images, and none were named",
                "add --ref HELDOUT, images or statistics",
            )
        if self.minutes is not None and self.images is not None:
            raise UsageError("--minutes and --images are mutually exclusive", "give one of them")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise UsageError(f"--minutes must be above 0, not {self.minutes:g}", "e.g. --minutes 10")
        if self.images is not None and self.images < 1:
            raise UsageError(f"--images must be at least 1, not {self.images}", "e.g. --images 20000")
        if not 2 <= self.candidates <= MOST_CANDIDATES:
            raise UsageError(
                f"--candidates must be from 2 to {MOST_CANDIDATES:,}, not {self.candidates}",
                "the preset is one of them",
            )
        paired_metric(self.metric)

    def plan(self, context: Context) -> WritePlan:
        """Return what would be tried. Raises UserError or UsageError for inputs that don't fit; nothing is drawn."""
        found = self._inputs(context, fetch=False)
        work = Unfinished(self.output)
        work.check_not_at_work()
        finished = work.is_finished(found.record, self.overwrite)
        resumed = not finished and work.resumes(found.record, self.overwrite)
        budget = {"images": self.images} if self.images else {"minutes": self._minutes}
        kept = {"kept_images": KeptFeatures(work.folder).num_images} if resumed else {}
        return WritePlan(
            reads={"generator": str(found.generator.path), "tokenizer": str(found.tokenizer.path),
                   "reference": str(self.reference)},
            output=self.output,
            count=len(found.settings),
            unit="settings",
            done=len(found.settings) if finished else 0,
            settings={"metric": self.metric, "features": found.extractor.name, **budget, "seed": self.seed, **kept},
            removes=() if finished else files_to_delete(self.output),
        )  # fmt: skip

    def run(self, context: Context) -> TuneResult:
        """Race, and write the results. Raises as `plan`; Stopped after a signal, with the drawn features kept."""
        found, work = self._inputs(context, fetch=True), Unfinished(self.output)
        if work.is_finished(found.record, self.overwrite):
            context.say(finished_already(self.output))
            return read_result(self.output)
        reference, metric = self._reference(found, context), paired_metric(self.metric)
        with work.locked():
            work.begin(found.record, self.overwrite)
            drawing = Drawing(
                found.settings, found.networks, found.plan, found.precision,
                min(default_batch_size(context.device, "decode"), found.plan.tile_size), found.extractor,
                KeptFeatures(work.folder), metric.against(reference), context,
            )  # fmt: skip
            try:
                raced = self._race(drawing)
            except UsageError:
                work.remove()
                raise
            result = self._result(raced, found.settings, drawing.kept)
            product = work.folder / PRODUCT
            _write(product, result, found)
            work.publish(product, found.record)
        return result

    @property
    def _minutes(self) -> float | None:
        return self.minutes or (None if self.images else DEFAULT_MINUTES)

    def _inputs(self, context: Context, fetch: bool) -> "_Inputs":
        """Open and check everything that the race is made of; `fetch` allows downloads."""
        check_output(self.output, self.overwrite)
        say = context.say
        generator = find_generator(self.generator, context.runs, say, fetch)
        tokenizer = find_tokenizer(self.tokenizer, generator, context.runs, say, fetch)
        preset = settings_for(generator, {}, say)
        tried = challengers(preset, generator.config.num_latent_tokens, self.candidates - 1, self.seed)
        settings, plan = [preset, *tried], plan_for(generator, None, None, None, context.device, say)
        extractor, precision = self.network.open(context, fetch), fastest_precision(context.device)
        if self.images is not None:
            self._check(self._budget(self.images, [1.0] * len(settings), plan, extractor))
        networks = build_networks(generator, tokenizer, context.device, precision)
        opening = _opening(generator, context, fetch)
        kind = torch.device(context.device).type
        record = {
            **networks.hashes,
            "settings": [each.model_dump(mode="json") for each in settings],
            "budget": {"images": self.images, "minutes": self._minutes},
            "metric": self.metric,
            "extractor": {"name": extractor.name, **extractor.description},
            "reference": self._identity_of_reference(generator, tokenizer, extractor, opening),
            "tile_size": plan.tile_size,
            "precision": precision,
            "kernels": kernels(kind, precision),
            "device": kind,
            "torch": versions()["torch"],
        }
        return _Inputs(generator, tokenizer, networks, settings, plan, precision, extractor, opening, record)

    def _identity_of_reference(
        self, generator: Given, tokenizer: Given, extractor: Extractor, opening: Opening
    ) -> dict[str, Any]:
        """Return the identity of the reference.

        Raises UsageError for the images of the training, UserError for too few images.
        """
        assert self.reference is not None
        if is_statistics_file(self.reference):
            about = read_statistics(self.reference).about.get("source", {})
            identity = {"sha256": file_sha256(self.reference)}
        else:
            images = named_images(self.reference, tokenizer.config.image_size, opening)
            least = paired_metric(self.metric).least(extractor.widths["pool"])
            if images.count < least:
                raise self._too_few(
                    f"the reference has {counted(images.count, 'images')}, at least {least:,} are needed"
                )
            about, identity = images.about, {"key": statistics_key(images, extractor.name, extractor.description)}
        trained_on = generator.lineage.get("source", {}).get("fingerprint")
        if trained_on is not None and about.get("fingerprint") == trained_on:
            raise UsageError(
                f"{self.reference} holds the images that {generator.name} was trained on",
                "name images that it has not seen with --ref: settings that copy training images would win",
            )
        return identity

    def _reference(self, found: "_Inputs", context: Context) -> FeatureSet:
        """Return the features of the reference. Raises UserError when they are too few for the metric."""
        assert self.reference is not None
        metric, work = paired_metric(self.metric), FeaturePass(found.extractor, context, self.skip_bad)
        size = found.tokenizer.config.image_size
        features = named_reference(self.reference, size, metric.one_by_one, found.opening, work).features
        if lacking := metric.lacking(features):
            raise self._too_few(lacking)
        return features

    def _too_few(self, reason: str) -> UserError:
        hint = "name more held-out images with --ref"
        return UserError(f"{self.metric} can't be tested with {self.reference}: {reason}", hint)

    def _race(self, drawing: Drawing) -> Race:
        """Race. Raises UsageError when the settings take too long for the minutes; then nothing is kept."""
        progress, settings = drawing.context.progress, drawing.settings
        costs, total = [1.0] * len(settings), float(self.images or 0)
        try:
            if self._minutes is not None:
                tiles = len(settings) * drawing.plan.tile_size
                progress.start("time the settings", tiles, "images", min(tiles, drawing.kept.num_images))
                costs, total = drawing.timed(), 60 * _SPENT_ON_DRAWING * self._minutes
                progress.close()
            budget = self._budget(total, costs, drawing.plan, drawing.extractor)
            self._check(budget)
            images = round(total * len(costs) / sum(costs))  # about: settings that take longer are fewer images
            progress.start("tune", images, "images", drawing.kept.num_images)
            return race(budget, drawing.measure)
        finally:
            progress.close()

    def _budget(self, total: float, costs: list[float], plan: Plan, extractor: Extractor) -> Budget:
        return Budget(total, costs, plan.tile_size, paired_metric(self.metric).least(extractor.widths["pool"]))

    def _check(self, budget: Budget) -> None:
        """Raise UsageError for a budget that doesn't pay for the rounds."""
        if budget.first_round:
            return
        if self.images is not None:
            given, enough = counted(self.images, "images"), f"--images {math.ceil(budget.needed)}"
        else:
            given = f"{self._minutes:g} minutes"
            enough = f"--minutes {math.ceil(budget.needed / 60 / _SPENT_ON_DRAWING)}"
        raise UsageError(
            f"{given} are too few to compare {len(budget.costs)} settings by {self.metric}, which needs at least "
            f"{budget.least_tiles:,} images of each in the first round",
            f"give {enough}, or try fewer settings with --candidates",
        )

    def _result(self, raced: Race, settings: list[GuidanceConfig], kept: KeptFeatures) -> TuneResult:
        tried = [
            Tried(each.setting, settings[each.setting].model_dump(mode="json"), each.rounds, each.images, each.value,
                  kept.seconds_per_image(each.setting))
            for each in raced.standings
        ]  # fmt: skip
        finalists = [
            Finalist(v.setting, v.images, v.value, v.preset_value, v.test.difference, v.test.standard_error,
                     v.test.p, v.p_corrected, v.is_better)
            for v in raced.verdicts
        ]  # fmt: skip
        return TuneResult(
            str(self.output / SETTINGS), raced.proposed != PRESET, raced.proposed, self.metric, self.network.name,
            tried, finalists, kept.num_images, kept.all_seconds,
        )  # fmt: skip


@dataclass(frozen=True)
class _Inputs:
    """Everything that a race is made of.

    Args:
        settings: by their number in the race; the preset is the first.
        plan: the labels and the tiles.
        opening: how the images of the reference are opened.
        record: everything that decides about the race, as JSON.
    """

    generator: Given
    tokenizer: Given
    networks: Networks
    settings: list[GuidanceConfig]
    plan: Plan
    precision: Precision
    extractor: Extractor
    opening: Opening
    record: dict[str, Any]


def _opening(generator: Given, context: Context, keep_index: bool) -> Opening:
    """Return how held-out images are opened: made squares as the generator's training images were."""
    recorded = generator.lineage.get("preprocessing")
    return Opening(context, None, PreprocessingConfig.model_validate(recorded) if recorded else None, keep_index)


def _write(folder: Path, result: TuneResult, found: _Inputs) -> None:
    """Write all files of the results into `folder`, which an earlier run may have left."""
    remove_tree(folder)
    make_folder(folder)
    proposed = found.settings[result.proposed]
    remarks = [f"Sampling settings of {found.generator.name}, found by titokctl tune.", *in_words(result)]
    fields = {
        name: value for name, value in proposed.as_changes().items() if name != "seed"
    }  # the seed is not a result
    write_report(folder / REPORT, result, found.settings)
    write_tuning(folder, fields, remarks, asdict(result) | {"made_with": found.record})
