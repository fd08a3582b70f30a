"""`titokctl stats`: statistics of a reference set."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.context import Context
from titokctl.data.sources.choices import NO_CHOICES, Choices
from titokctl.errors import UsageError
from titokctl.evaluation.extractors import Extractor, FeatureNetwork
from titokctl.evaluation.feature_pass import KEEP_OF_REFERENCE, FeaturePass, measure, statistics_about, to_statistics
from titokctl.evaluation.image_sets import ImageSet, Opening, open_images
from titokctl.formats.atomic import file_sha256, make_folder
from titokctl.formats.replacing import NPZ, check_free, files_to_delete
from titokctl.formats.statistics import write_statistics
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
        return WritePlan(
            reads={"images": str(images.path), "count": images.count},
            output=self.output,
            count=images.count,
            settings={"features": extractor.name, **extractor.description},
            removes=files_to_delete(self.output),
        )

    def run(self, context: Context) -> StatsResult:
        """Write the file; of several processes, which share the images, each returns the same.

        Raises: UserError when the output exists or the images can't be used; Stopped after a signal.
        """
        extractor, images = self._open(context, is_plan=False)
        make_folder(self.output.parent)  # before hours are spent on what goes into it
        found = measure(images, KEEP_OF_REFERENCE, str(images.path), FeaturePass(extractor, context, self.skip_bad))
        if context.group.is_main:
            write_statistics(self.output, to_statistics(found, statistics_about(images, found, extractor)))
        context.group.barrier()
        return StatsResult(str(self.output), found.features.count, extractor.name, file_sha256(self.output))

    def _open(self, context: Context, is_plan: bool) -> tuple[Extractor, ImageSet]:
        if context.group.is_main:  # a slower process might find what rank 0 has written already
            check_free(self.output, self.overwrite, NPZ)
        extractor = self.network.open(context, fetch=not is_plan)
        opening = Opening(context, self.tokenizer, self.preprocessing, not is_plan, self.choices, self.exif)
        return extractor, open_images(self.data[0], opening, self.data)
