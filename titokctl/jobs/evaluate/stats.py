"""`titokctl stats`: statistics of a reference set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.distributed.group import Group, single_group
from titokctl.distributed.stop import StopRequest
from titokctl.dry_run import about_to_write
from titokctl.errors import UsageError, UserError
from titokctl.evaluation.extractors import ExtractorOptions
from titokctl.evaluation.feature_pass import (
    KEEP_OF_REFERENCE,
    FeaturePass,
    extractor_for,
    measure,
    statistics_about,
    to_statistics,
)
from titokctl.evaluation.image_set import Opening
from titokctl.evaluation.image_sets import open_images
from titokctl.formats.atomic import make_folder
from titokctl.formats.statistics import file_sha256, write_statistics
from titokctl.jobs.plan import WritePlan
from titokctl.progress import Progress


@dataclass(frozen=True)
class StatsResult:
    """The statistics file that was made."""

    output: str
    images: int
    features: str
    sha256: str


def stats(
    data: Sequence[str],
    output: Path,
    runs: Path,
    *,
    features: str = "inception",
    options: ExtractorOptions | None = None,
    preprocessing: PreprocessingConfig | None = None,
    tokenizer: str | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
    progress: Progress,
    stop: StopRequest,
    group: Group | None = None,
) -> StatsResult:
    """Write the statistics of a set of images.

    Args:
        data: one .npz, folder, token cache or sample set, or any number of shards.
        preprocessing: how files become squares; None takes them as they are, which must be of one size.
        group: processes that share the images; each returns the same.

    Raises: UserError when the output exists or the images can't be used; Stopped after a signal.
    """
    group = group or single_group()
    if output.suffix != ".npz":
        raise UsageError(f"-o {output} is no .npz", "statistics are kept as .npz, e.g. -o ref.npz")
    if group.from_main(output.exists()) and not overwrite:
        raise UserError(f"{output} exists already", "choose another -o, or replace it with --overwrite")
    extractor = extractor_for(features, options, progress, group)
    images = open_images(Path(data[0]), Opening(runs, progress.say, tokenizer, preprocessing, extractor.device), data)
    about_to_write(
        lambda: WritePlan(
            reads={"images": str(images.path), "count": images.count},
            output=output,
            count=images.count,
            settings={"features": extractor.name, **extractor.description},
            replaces=output.exists(),
        )
    )
    make_folder(output.parent)  # before hours are spent on what goes into it
    work = FeaturePass(extractor, progress, stop, group, skip_bad)
    found = measure(images, KEEP_OF_REFERENCE, str(images.path), work)
    if group.is_main:
        write_statistics(output, to_statistics(found, statistics_about(images, extractor)))
    group.barrier()
    return StatsResult(str(output), found.count, extractor.name, file_sha256(output))
