"""One pass over a set of images: pixels -> features -> what metrics need; and the statistics kept of reference sets."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from titokctl.data.sources import Rejected
from titokctl.distributed.group import Group, single_group
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UserError
from titokctl.evaluation.extractors import Extractor, ExtractorOptions, open_extractor
from titokctl.evaluation.feature_set import FeatureCollector, FeatureSet
from titokctl.evaluation.features import extract
from titokctl.evaluation.frechet import Gaussian
from titokctl.evaluation.image_set import ImageSet, unreadable
from titokctl.evaluation.precision_recall import MAX_REFERENCE_IMAGES
from titokctl.formats.run_folder import versions
from titokctl.formats.statistics import Statistics, read_statistics, write_statistics
from titokctl.progress import Progress

KEEP_OF_SAMPLES = 50_000
KEEP_OF_REFERENCE = MAX_REFERENCE_IMAGES
# What changes pixels when files are decoded.
_DECODERS = ("pillow", "titokctl")


def extractor_for(
    features: str, options: ExtractorOptions | None, progress: Progress, group: Group | None = None
) -> Extractor:
    """The feature network called `features`, on every process; what has to be fetched rank 0 fetches for all.

    Raises UsageError for an unknown name and UserError when its weights are not there.
    """
    group = group or single_group()
    if not group.is_main:
        group.barrier()
    extractor = open_extractor(features, replace(options or ExtractorOptions(), progress=progress))
    if group.is_main:
        group.barrier()
    return extractor


@dataclass(frozen=True)
class FeaturePass:
    """How sets are looked at: by which network, and by which processes together.

    With `skip_bad` images that can't be read are left out, else they are refused.
    """

    extractor: Extractor
    progress: Progress
    stop: StopRequest
    group: Group = field(default_factory=single_group)
    skip_bad: bool = False


def measure(images: ImageSet, keep: int, what: str, work: FeaturePass) -> FeatureSet:
    """The features of a set; those that are kept are on rank 0 alone.

    Args:
        keep: at most so many rows of features are kept, spread over the set.
        what: the word for the set on the progress line.

    Raises: UserError for unreadable images that were not known to be bad, or fewer than two; Stopped after a signal.
    """
    collector = FeatureCollector(work.extractor.widths, images.count, keep)
    share = share_of(images.count, work.extractor.batch_size, work.group)
    seen = _Seen()
    done = 0
    work.progress.start(f"features of {what}", len(share))
    try:
        for features in extract(work.extractor, _watched(images, share, seen, work.stop)):
            count = len(features["pool"])
            collector.add(features, seen.take(count))
            work.progress.advance(count)
            done += count
        if not work.stop.requested:
            work.progress.advance(len(share) - done)
    finally:
        work.progress.close()
    _share_findings(images, seen, work.stop, work.group)
    of = f"of {images.count:,} images in {images.path}"
    unexpected = images.unexpected()
    if unexpected and not work.skip_bad:
        raise UserError(unreadable(unexpected, of), "mend or remove them, or judge the others with --skip-bad")
    if images.rejected:
        known = "" if unexpected else "; the token cache was made without them, too"
        work.progress.warn(unreadable(images.rejected, of) + known)
    good = images.count - len(images.rejected)
    if good < 2:
        raise UserError(f"{images.path} holds {good} usable images; features need at least 2")
    return collector.result(work.group)


def share_of(count: int, batch_size: int, group: Group) -> range:
    """The places that this process looks at: whole batches, so that each holds the same images in any group."""
    batches = -(-count // batch_size)
    first, last = (batches * rank // group.world_size * batch_size for rank in (group.rank, group.rank + 1))
    return range(min(first, count), min(last, count))


def to_statistics(found: FeatureSet, about: dict[str, Any]) -> Statistics:
    """A feature set as a statistics file holds it."""
    spatial = found.spatial
    return Statistics(
        found.pool.mean,
        found.pool.covariance,
        spatial.mean if spatial else None,
        spatial.covariance if spatial else None,
        found.features,
        found.count,
        about,
        found.score_sums,
    )


def from_statistics(found: Statistics) -> FeatureSet:
    """What a statistics file says, as a feature set."""
    spatial = None
    if found.spatial_mean is not None and found.spatial_covariance is not None:
        spatial = Gaussian(found.spatial_mean, found.spatial_covariance, found.count)
    pool = Gaussian(found.mean, found.covariance, found.count)
    return FeatureSet(found.count, pool, spatial, found.features, found.score_sums)


def statistics_about(images: ImageSet, extractor: Extractor) -> dict[str, Any]:
    """What a statistics file records of the set and of the network."""
    return {
        "features": extractor.name,
        "extractor": extractor.description,
        "source": {"path": str(images.path.absolute())} | images.about,
        "image_size": images.image_size,
        "lossy": images.lossy,
        "versions": versions(),
    }


def kept_statistics(images: ImageSet, folder: Path, work: FeaturePass) -> tuple[FeatureSet, Path]:
    """The features of a reference set: from `folder` when they were computed before, else computed and kept there."""
    extractor, group = work.extractor, work.group
    key = group.from_main(group.is_main and statistics_key(images, extractor.name, extractor.description))
    path = folder / f"{key}.npz"
    if group.from_main(path.is_file()):
        work.progress.say(f"statistics of {images.path}: {path}")
        return from_statistics(read_statistics(path)), path
    found = measure(images, KEEP_OF_REFERENCE, f"the reference {images.path}", work)
    # Not kept where images are missing: mended files have the same names, and perhaps the same sizes. Images that a
    # token cache lists as bad are in the key.
    if not images.unexpected() and group.is_main:
        write_statistics(path, to_statistics(found, statistics_about(images, extractor)))
        work.progress.say(f"statistics of {images.path} ({found.count:,} images) are kept in {path}")
    group.barrier()
    return found, path


def statistics_key(images: ImageSet, name: str, description: dict[str, Any], exact: bool = False) -> str:
    """A name that changes whenever the statistics could: images, preprocessing, network, decoder.

    Args:
        name, description: of the extractor.
        exact: tell image files apart by every byte, not only by names and sizes.
    """
    decoders = {package: version for package, version in versions().items() if package in _DECODERS}
    record = [images.identified(exact), name, description, decoders, KEEP_OF_REFERENCE]
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:32]


@dataclass
class _Seen:
    """What reading tells: places of images whose features are still to come, and the images' height and width."""

    places: list[int] = field(default_factory=list)
    shape: list[int] | None = None

    def take(self, count: int) -> np.ndarray:
        """The next `count` places."""
        taken = np.array(self.places[:count], np.int64)
        del self.places[:count]
        return taken


def _watched(images: ImageSet, share: range, seen: _Seen, stop: StopRequest) -> Iterator[np.ndarray]:
    """The pixels of the share, until a signal comes."""
    for places, batch in images.numbered(share):
        if stop.requested:
            return
        seen.places += places
        seen.shape = list(batch.shape[1:3])
        yield batch


def _share_findings(images: ImageSet, seen: _Seen, stop: StopRequest, group: Group) -> None:
    """Let every process know what each found in its share, and leave together when one was asked to.

    Raises: Stopped; UserError when shares hold images of different sizes.
    """
    mine = {"stop": stop.exit_code, "rejected": [asdict(bad) for bad in images.rejected]}
    found = group.from_all(mine | {"lossy": images.lossy, "shape": seen.shape})
    if code := max(each["stop"] for each in found):
        stop.adopt(code)
        stop.check("Nothing was written.")
    images.rejected = [Rejected(**bad) for each in found for bad in each["rejected"]]
    images.lossy = sum(each["lossy"] for each in found)
    shapes = [each["shape"] for each in found if each["shape"] is not None]
    if any(shape != shapes[0] for shape in shapes):
        sizes = " and ".join(sorted({f"{width} x {height}" for height, width in shapes}))
        raise UserError(
            f"{images.path} holds images of different sizes: {sizes}", "bring them to one size with --size N"
        )
    images.image_size = images.image_size or (shapes[0][0] if shapes else None)
