"""One pass over a set of images: pixels -> features -> what metrics need; and the statistics kept of reference sets."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from titokctl.distributed.stop import StopRequest
from titokctl.errors import UserError
from titokctl.evaluation.extractors import Extractor
from titokctl.evaluation.feature_set import FeatureCollector, FeatureSet
from titokctl.evaluation.features import extract
from titokctl.evaluation.frechet import Gaussian
from titokctl.evaluation.precision_recall import MAX_REFERENCE_IMAGES
from titokctl.formats.run_folder import versions
from titokctl.formats.statistics import Statistics, read_statistics, write_statistics
from titokctl.jobs.image_sets import ImageSet, identity_of
from titokctl.progress import Progress

KEEP_OF_SAMPLES = 50_000
KEEP_OF_REFERENCE = MAX_REFERENCE_IMAGES
_NAMED_BAD = 5
# What changes pixels when files are decoded.
_DECODERS = ("pillow", "titokctl")


def measure(
    images: ImageSet,
    extractor: Extractor,
    keep: int,
    what: str,
    progress: Progress,
    stop: StopRequest,
    skip_bad: bool = False,
) -> FeatureSet:
    """The features of a set.

    Args:
        keep: at most so many rows of features are kept, spread over the set.
        what: the word for the set on the progress line.
        skip_bad: go on without images that can't be read.

    Raises: UserError for unreadable images, or fewer than two; Stopped after a signal.
    """
    collector = FeatureCollector(extractor.widths, images.count, keep)
    progress.start(f"features of {what}", images.count)
    for features in extract(extractor, _watched(images, stop)):
        collector.add(features)
        progress.advance(len(features["pool"]))
    progress.close()
    if images.rejected:
        _refuse_or_say(images, skip_bad, progress)
    good = images.count - len(images.rejected)
    if good < 2:
        raise UserError(f"{images.path} holds {good} usable images; features need at least 2")
    return collector.result()


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
    )


def from_statistics(found: Statistics) -> FeatureSet:
    """What a statistics file says, as a feature set."""
    spatial = None
    if found.spatial_mean is not None and found.spatial_covariance is not None:
        spatial = Gaussian(found.spatial_mean, found.spatial_covariance, found.count)
    return FeatureSet(found.count, Gaussian(found.mean, found.covariance, found.count), spatial, found.features)


def statistics_about(images: ImageSet, extractor: Extractor) -> dict[str, Any]:
    """What a statistics file records of the set and of the network."""
    return {
        "features": extractor.name,
        "extractor": extractor.description,
        "source": {"path": str(images.path.absolute())} | images.about,
        "image_size": images.image_size,
        "versions": versions(),
    }


def kept_statistics(
    images: ImageSet,
    extractor: Extractor,
    folder: Path,
    progress: Progress,
    stop: StopRequest,
    skip_bad: bool = False,
) -> tuple[FeatureSet, Path]:
    """The features of a reference set: from `folder` when they were computed before, else computed and kept there."""
    path = folder / f"{statistics_key(images, extractor)}.npz"
    if path.is_file():
        progress.say(f"statistics of {images.path}: {path}")
        return from_statistics(read_statistics(path)), path
    found = measure(images, extractor, KEEP_OF_REFERENCE, f"the reference {images.path}", progress, stop, skip_bad)
    if images.rejected:
        return found, path  # not kept: mended files have the same names, and perhaps the same sizes
    write_statistics(path, to_statistics(found, statistics_about(images, extractor)))
    progress.say(f"statistics of {images.path} ({found.count:,} images) are kept in {path}")
    return found, path


def statistics_key(images: ImageSet, extractor: Extractor) -> str:
    """A name that changes whenever the statistics could: images, preprocessing, network, decoder."""
    decoders = {name: version for name, version in versions().items() if name in _DECODERS}
    record = [identity_of(images), extractor.name, extractor.description, decoders, KEEP_OF_REFERENCE]
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:32]


def _watched(images: ImageSet, stop: StopRequest) -> Iterator[np.ndarray]:
    for batch in images.batches():
        stop.check("Nothing was written.")
        images.image_size = images.image_size or batch.shape[1]
        yield batch


def _refuse_or_say(images: ImageSet, skip_bad: bool, progress: Progress) -> None:
    named = "; ".join(f"{bad.key} ({bad.text})" for bad in images.rejected[:_NAMED_BAD])
    more = len(images.rejected) - _NAMED_BAD
    text = f"{len(images.rejected):,} of {images.count:,} images in {images.path} can't be read: {named}"
    text += f"; and {more:,} more" if more > 0 else ""
    if not skip_bad:
        raise UserError(text, "mend or remove them, or judge the others with --skip-bad")
    progress.say(f"warning: {text}")
