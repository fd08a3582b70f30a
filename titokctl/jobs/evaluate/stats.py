"""`titokctl stats`: statistics of a reference set."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.context import Context
from titokctl.data.sources.choices import NO_CHOICES, Choices
from titokctl.errors import UsageError
from titokctl.evaluation.extractors import Extractor, FeatureNetwork
from titokctl.evaluation.feature_pass import KEEP_OF_REFERENCE, FeaturePass, measure, statistics_about, to_statistics
from titokctl.evaluation.image_sets import ImageSet, Opening, open_images
from titokctl.formats.atomic import file_sha256, make_folder
from titokctl.formats.replacing import NPZ, files_to_delete
from titokctl.formats.statistics import read_statistics, write_statistics
from titokctl.formats.unfinished import Unfinished, check_output, finished_already
from titokctl.jobs.plan import WritePlan


@dataclass(frozen=True)
class StatsResult:
    """The statistics file that was made."""

    output: str
    images: int
    features: str
    sha256: str


@dataclass(frozen=True)
class Stats:
    """Write the statistics of a set of images. Making one raises UsageError unless `output` is an .npz.

    Args:
        data: one .npz, folder, token cache or sample set, or any number of shards.
        output: the file to make.
        network: the feature network.
        preprocessing: how files become squares; None takes them as they are, which must be of one size.
        tokenizer: for a token cache whose tokenizer is not in the runs folder.
        skip_bad: leave out images that can't be read.
        overwrite: replace a file at `output`.
        choices: of image files, as for `open_source`.
        exif: apply the EXIF orientation of image files.
    """

    data: Sequence[Path]
    output: Path
    network: FeatureNetwork = field(default_factory=FeatureNetwork)
    preprocessing: PreprocessingConfig | None = None
    tokenizer: str | None = None
    skip_bad: bool = False
    overwrite: bool = False
    choices: Choices = NO_CHOICES
    exif: bool = False

    def __post_init__(self) -> None:
        if self.output.suffix != ".npz":
            raise UsageError(f"-o {self.output} does not end in .npz", "statistics are kept as .npz, e.g. -o ref.npz")

    def plan(self, context: Context) -> WritePlan:
        """Return what would be written. Raises UserError when the output exists or the images can't be opened."""
        extractor, images = self._open(context, is_plan=True)
        finished = Unfinished(self.output).is_finished(_settings(images, extractor), self.overwrite)
        return WritePlan(
            reads={"images": str(images.path), "count": images.count},
            output=self.output,
            count=images.count,
            done=images.count if finished else 0,
            settings={"features": extractor.name, **extractor.description},
            removes=() if finished else files_to_delete(self.output),
        )

    def run(self, context: Context) -> StatsResult:
        """Write the file; of several processes, which share the images, each returns the same.

        Raises: UserError when the output exists or the images can't be used; Stopped after a signal.
        """
        extractor, images = self._open(context, is_plan=False)
        work, group, settings = Unfinished(self.output), context.group, _settings(images, extractor)
        if group.from_main(group.is_main and work.is_finished(settings, self.overwrite)):
            context.say(finished_already(self.output))
            return self._result(read_statistics(self.output).count, extractor)
        make_folder(self.output.parent)  # before hours are spent on what goes into it
        found = measure(images, KEEP_OF_REFERENCE, str(images.path), FeaturePass(extractor, context, self.skip_bad))
        if group.is_main:
            with work.at_once(settings) as product:
                write_statistics(product, to_statistics(found, statistics_about(images, found, extractor)))
        group.barrier()
        return self._result(found.features.count, extractor)

    def _result(self, count: int, extractor: Extractor) -> StatsResult:
        return StatsResult(str(self.output), count, extractor.name, file_sha256(self.output))

    def _open(self, context: Context, is_plan: bool) -> tuple[Extractor, ImageSet]:
        if context.group.is_main:  # a slower process might find what rank 0 has written already
            check_output(self.output, self.overwrite, NPZ)
        extractor = self.network.open(context, fetch=not is_plan)
        opening = Opening(context, self.tokenizer, self.preprocessing, not is_plan, self.choices, self.exif)
        return extractor, open_images(self.data[0], opening, self.data)


def _settings(images: ImageSet, extractor: Extractor) -> dict[str, Any]:
    """Return everything that decides about the statistics, as JSON."""
    features = {"name": extractor.name, **extractor.description}
    return {"command": "stats", "images": images.identity(), "features": features}
