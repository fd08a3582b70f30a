"""One pass over a set of images, from pixels to what metrics need, and what is kept of it.

Two kinds of files are kept, both in the format of `formats.statistics`. Statistics of a reference set lie in the runs
folder, as statistics/<key>.npz. Features of samples lie beside the samples (--save-features) and have a `key` inside. A
key is a hash of the images, the network and the decoders: a file with another key is never used.
"""

import hashlib
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from titokctl.context import Context
from titokctl.data.sources import Rejected
from titokctl.distributed.group import Group
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UserError
from titokctl.evaluation.extractors import Extractor
from titokctl.evaluation.features import FeatureCollector, FeatureSet, extract
from titokctl.evaluation.frechet import Gaussian
from titokctl.evaluation.image_sets import Batch, ImageSet, StatisticsSet, unreadable
from titokctl.evaluation.kept_pass import KeptPass, kept_pass
from titokctl.evaluation.metrics import FID_IMAGES, MAX_REFERENCE_IMAGES
from titokctl.formats.run_folder import versions
from titokctl.formats.statistics import Statistics, read_statistics, write_statistics
from titokctl.readable import counted

KEEP_OF_SAMPLES = FID_IMAGES
KEEP_OF_REFERENCE = MAX_REFERENCE_IMAGES
_STATISTICS_FOLDER = "statistics"
# Packages that change pixels when files are decoded.
_DECODERS = ("pillow", "titokctl")


@dataclass(frozen=True)
class FeaturePass:
    """Settings of a feature pass.

    Args:
        extractor: the feature network.
        context: the processes of its group share each set; its runs folder keeps statistics of references.
        skip_bad: leave out images that can't be read; without it they are an error. None if the command has no option
            for it.
    """

    extractor: Extractor
    context: Context
    skip_bad: bool | None = None


@dataclass(frozen=True)
class Measured:
    """The features of a set, and what reading it found.

    Args:
        features: the features that are kept one by one are on rank 0 alone.
        image_size: edge in pixels; None if it isn't known.
        rejected: images that can't be read; empty if the features come from a file.
        unexpected: those of them that weren't known to be bad.
        lossy: number of images from files with lossy compression.
        splits: of the Inception score, as they were asked for; None for those of the ADM evaluator.
    """

    features: FeatureSet
    image_size: int | None = None
    rejected: tuple[Rejected, ...] = ()
    unexpected: tuple[Rejected, ...] = ()
    lossy: int = 0
    splits: int | None = None


def measure(images: ImageSet, keep: int, what: str, work: FeaturePass, splits: int | None = None) -> Measured:
    """Compute the features of a set, by all processes of the group together.

    Args:
        keep: at most so many rows of features are kept, spread over the set.
        what: the word for the set on the progress line.
        splits: of the Inception score; None for those of the ADM evaluator.

    Raises: UserError for unreadable images that were not known to be bad, or fewer than two; Stopped after a signal.
    """
    context, group = work.context, work.context.group
    check_readable(images, work)
    collector = FeatureCollector(work.extractor.widths, images.count, keep, splits, work.extractor.device)
    settings = _settings(images, work, keep, splits) if group.is_main else {}
    with kept_pass(context.runs / _STATISTICS_FOLDER, settings, group.is_main, context.say) as held:
        folder = group.from_main(held and str(held))
        is_kept = folder is not None and Path(folder).is_dir()
        kept = KeptPass(Path(folder) if is_kept else None, group.rank, context.say)
        reading = _measure_share(images, collector, what, work, kept)
        found = reading.shared(images, context.stop, group, is_kept)
        features = _check_found(images, collector, found, work)
    size = images.image_size or (found.shape[0] if found.shape else None)
    rejected = (*images.problems, *found.rejected.values())
    unexpected = tuple(bad for bad in rejected if bad.key not in images.known_bad)
    return Measured(features, size, rejected, unexpected, len(found.lossy), splits)


def _settings(images: ImageSet, work: FeaturePass, keep: int, splits: int | None) -> dict[str, Any]:
    """Return everything that decides about the state of a pass, as JSON."""
    return {
        "path": str(images.path.absolute()),
        "images": images.identity(),
        "features": {"name": work.extractor.name, **work.extractor.description},
        "versions": versions(),
        "processes": work.context.group.world_size,
        "rows": keep,
        "splits": splits,
    }


def _measure_share(
    images: ImageSet, collector: FeatureCollector, what: str, work: FeaturePass, kept: KeptPass
) -> "_Reading":
    """Put the features of this process's share into `collector`, or the rest of them; the state is saved meanwhile."""
    progress, stop, batch_size = work.context.progress, work.context.stop, work.extractor.batch_size
    share = share_of(images.count, batch_size, work.context.group)
    reading = _Reading.of(kept.restored(collector), share.start)
    progress.start(f"features of {what}", len(share), done=collector.seen)
    pixels = reading.pixels(images.read(range(reading.next, share.stop)), stop)
    try:
        for features in extract(work.extractor, pixels):
            count = len(features["pool"])
            if stop.requested and count < batch_size:  # cut short: to the same bits, it must be whole when it is added
                break
            collector.add(features, reading.positions_of(count))
            progress.advance(count)
            if kept.is_due():
                kept.save(collector, reading.about())
        if stop.requested:
            kept.save(collector, reading.about())
        else:
            progress.advance(len(share) - collector.seen)
    finally:
        progress.close()
    return reading


def _check_found(images: ImageSet, collector: FeatureCollector, found: "_Reading", work: FeaturePass) -> FeatureSet:
    """Return the features of all processes together. Raises UserError as `measure`."""
    rejected = (*images.problems, *found.rejected.values())
    if not work.skip_bad:
        _check_expected(rejected, images, work)
    if rejected:
        is_known = all(bad.key in images.known_bad for bad in rejected)
        known = "; the token cache was made without them, too" if is_known else ""
        of = f"of {counted(images.count, 'images')} in {images.path}"
        work.context.progress.warn(unreadable(rejected, of) + known)
    good = images.count - len(rejected)
    if good < 2:
        raise UserError(f"{images.path} holds {counted(good, 'usable images')}; features need at least 2")
    return collector.result(work.context.group)


def check_readable(images: ImageSet, work: FeaturePass) -> None:
    """Find unreadable images before hours of work, not after them; all processes of the group call it.

    Raises UserError as `measure` does.
    """
    if not work.skip_bad:
        _check_expected([*images.problems, *images.unreadable(work.context)], images, work)


def _check_expected(rejected: Sequence[Rejected], images: ImageSet, work: FeaturePass) -> None:
    """Raise UserError for unreadable images, but for those that are known to be bad."""
    unexpected = [bad for bad in rejected if bad.key not in images.known_bad]
    if unexpected:
        of = f"of {counted(images.count, 'images')} in {images.path}"
        leave_out = "leave them out with --skip-bad"
        if work.skip_bad is None:
            size = [] if images.image_size is None else ["--size", str(images.image_size)]
            words = ["stats", str(images.path), *size, "--features", work.extractor.name, "--skip-bad"]
            words += ["-o", f"{images.path.name}.npz"]
            leave_out = f"make statistics without them and use these: titokctl {shlex.join(words)}"
        raise UserError(unreadable(unexpected, of), f"repair or delete them, or {leave_out}")


def share_of(count: int, batch_size: int, group: Group) -> range:
    """Return the positions that this process measures: whole batches, which hold the same images in any group."""
    batches = -(-count // batch_size)
    first, last = (batches * rank // group.world_size * batch_size for rank in (group.rank, group.rank + 1))
    return range(min(first, count), min(last, count))


@dataclass
class _Reading:
    """State of reading: positions of images whose features are pending, rejected images, and the size of all.

    Attributes:
        next: the position of the first image that is neither measured nor rejected, if none is pending.
        positions: of the images that are read, but not measured yet.
        rejected, lossy: what was found so far, by position.
    """

    next: int = 0
    positions: list[int] = field(default_factory=list)
    shape: list[int] | None = None
    rejected: dict[int, Rejected] = field(default_factory=dict)
    lossy: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, about: dict[str, Any] | None, first: int) -> "_Reading":
        """Return the state that `about` gives, or that of a pass that begins at position `first`."""
        if about is None:
            return cls(first)
        rejected = {position: Rejected(*fields) for position, fields in about["rejected"]}
        return cls(about["next"], [], about["shape"], rejected, set(about["lossy"]))

    def about(self) -> dict[str, Any]:
        """Return JSON from which reading resumes at the first image that is not measured."""
        end = self.positions[0] if self.positions else self.next
        rejected = [
            [position, [bad.key, bad.kind, bad.reason]] for position, bad in self.rejected.items() if position < end
        ]
        return {
            "next": end,
            "shape": self.shape,
            "rejected": rejected,
            "lossy": [position for position in self.lossy if position < end],
        }

    def pixels(self, batches: Iterator[Batch], stop: StopRequest) -> Iterator[np.ndarray]:
        """Yield the pixels of all batches until a signal comes."""
        for batch in batches:
            if stop.requested:
                return
            self.rejected |= dict(zip(batch.rejected_at, batch.rejected, strict=True))
            self.lossy |= set(batch.lossy_at)
            self.next = max([self.next, *(position + 1 for position in (*batch.positions, *batch.rejected_at))])
            if len(batch.positions):
                self.positions += batch.positions
                self.shape = list(batch.pixels.shape[1:3])
                yield batch.pixels

    def positions_of(self, count: int) -> np.ndarray:
        """Return the positions of the next `count` images."""
        taken = np.array(self.positions[:count], np.int64)
        del self.positions[:count]
        return taken

    def shared(self, images: ImageSet, stop: StopRequest, group: Group, is_kept: bool) -> "_Reading":
        """Return what all processes found; leave together with them when one got a signal.

        Raises: Stopped; UserError when their shares hold images of different sizes.
        """
        found = group.from_all({"stop": stop.exit_code, **self.about()})
        if code := max(each["stop"] for each in found):
            stop.adopt(code)
            stop.check("The features so far are kept." if is_kept else "Nothing was written.")
        shapes = [each["shape"] for each in found if each["shape"] is not None]
        if any(shape != shapes[0] for shape in shapes):
            sizes = " and ".join(sorted({f"{width} x {height}" for height, width in shapes}))
            raise UserError(
                f"{images.path} holds images of different sizes: {sizes}", "bring them to one size with --size N"
            )
        rejected = {position: Rejected(*fields) for each in found for position, fields in each["rejected"]}
        lossy = {position for each in found for position in each["lossy"]}
        return _Reading(0, [], shapes[0] if shapes else None, rejected, lossy)


def measured_reference(images: ImageSet, work: FeaturePass) -> tuple[Measured, Path]:
    """Return the features of a reference set, and the file with its statistics.

    They are computed once for each set and network, and kept in the runs folder.
    """
    extractor, context = work.extractor, work.context
    group = context.group
    key = group.from_main(group.is_main and statistics_key(images, extractor.name, extractor.description))
    path = context.runs / _STATISTICS_FOLDER / f"{key}.npz"
    if group.from_main(path.is_file()):
        context.say(f"statistics of {images.path}: {path}")
        return _measured(read_statistics(path)), path
    found = measure(images, KEEP_OF_REFERENCE, f"the reference {images.path}", work)
    # Not kept if images are missing: repaired files have the same names, and perhaps the same sizes. Images that a
    # token cache lists as bad are in the key.
    if not found.unexpected and group.is_main:
        write_statistics(path, to_statistics(found, statistics_about(images, found, extractor)))
        context.say(f"statistics of {images.path} ({counted(found.features.count, 'images')}) are kept in {path}")
    group.barrier()
    return found, path


def measured_samples(images: ImageSet, save: bool, work: FeaturePass, splits: int | None = None) -> Measured | None:
    """Return the features of samples: kept ones if they are current, else computed. None on ranks that need not know.

    Args:
        save: keep them for the next time.
        splits: of the Inception score; None for those of the ADM evaluator. Kept features with others are not used.
    """
    extractor, group = work.extractor, work.context.group
    if isinstance(images, StatisticsSet):
        return _measured(images.statistics)
    kept = kept_features(images, extractor.name, extractor.description, work.context) if group.is_main else None
    if kept is not None and kept.features.score_sums is not None and kept.splits != splits:
        work.context.say("the kept features have other splits of the Inception score, so they are not used")
        kept = None
    if group.from_main(kept is not None):
        return kept
    measured = measure(images, KEEP_OF_SAMPLES, str(images.path), work, splits)
    if save and group.is_main:
        save_features(images, extractor, measured, work.context)
    return measured


def kept_features(images: ImageSet, network: str, description: dict[str, Any], context: Context) -> Measured | None:
    """Return the features that are kept beside a set; None if there are none, or they are of other images.

    Args:
        network, description: of the extractor.
    """
    path = images.beside(f"{network}.npz")
    if path is None or not path.is_file():
        return None
    statistics = read_statistics(path)
    if statistics.about.get("key") != statistics_key(images, network, description, exact=True):
        context.say(f"{path} was computed from other images or by another network, so it is not used")
        return None
    context.say(f"features of {images.path}: {path}")
    return _measured(statistics)


def save_features(images: ImageSet, extractor: Extractor, measured: Measured, context: Context) -> None:
    """Keep the features of a set beside it, or say why not. Raises UserError when they can't be written."""
    path = images.beside(f"{extractor.name}.npz")
    if path is None or measured.rejected:
        why = (
            "some images could not be read"
            if measured.rejected
            else f"results of {images.path} can't be saved beside it"
        )
        context.say(f"the features are not kept: {why}")
        return
    about = statistics_about(images, measured, extractor)
    key = statistics_key(images, extractor.name, extractor.description, exact=True)
    try:
        write_statistics(path, to_statistics(measured, about | {"key": key}))
    except OSError as error:
        raise UserError(
            f"the features can't be kept in {path}: {error.strerror}", "leave out --save-features"
        ) from error
    context.say(f"features of {images.path} are kept in {path}")


def statistics_key(images: ImageSet, network: str, description: dict[str, Any], exact: bool = False) -> str:
    """Return a key that changes whenever the statistics could: images, preprocessing, network, decoders.

    Args:
        network, description: of the extractor.
        exact: hash every byte of image files, not only their names and sizes.
    """
    decoders = {package: version for package, version in versions().items() if package in _DECODERS}
    record = [images.identity(exact), network, description, decoders, KEEP_OF_REFERENCE]
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:32]


def statistics_about(images: ImageSet, measured: Measured, extractor: Extractor) -> dict[str, Any]:
    """Return what a statistics file records of the set and of the network."""
    return {
        "features": extractor.name,
        "extractor": extractor.description,
        "source": {"path": str(images.path.absolute())} | images.about,
        "image_size": measured.image_size,
        "lossy": measured.lossy,
        "versions": versions(),
    } | ({} if measured.splits is None else {"is_splits": measured.splits})


def to_statistics(measured: Measured, about: dict[str, Any]) -> Statistics:
    """Return the features of a set as a statistics file holds them."""
    found = measured.features
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
    """Return what a statistics file holds as a feature set."""
    spatial = None
    if found.spatial_mean is not None and found.spatial_covariance is not None:
        spatial = Gaussian(found.spatial_mean, found.spatial_covariance, found.count)
    pool = Gaussian(found.mean, found.covariance, found.count)
    return FeatureSet(found.count, pool, spatial, found.features, found.score_sums)


def _measured(statistics: Statistics) -> Measured:
    about = statistics.about
    return Measured(
        from_statistics(statistics), about.get("image_size"), lossy=about.get("lossy", 0), splits=about.get("is_splits")
    )
