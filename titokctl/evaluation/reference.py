"""The reference that samples are compared with: a statistics file, images, or what the samples themselves record."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.errors import UsageError, UserError
from titokctl.evaluation.extractors import Extractor
from titokctl.evaluation.feature_pass import FeaturePass, from_statistics, measured_reference
from titokctl.evaluation.features import FeatureSet
from titokctl.evaluation.image_sets import ArrayImages, ImageSet, Opening, OriginalImages, open_images
from titokctl.formats.atomic import file_sha256
from titokctl.formats.statistics import Statistics, has_images, is_statistics, read_statistics
from titokctl.readable import counted


@dataclass(frozen=True)
class Reference:
    """The reference's features, and JSON about it for the record; `image_size` is None if it isn't known."""

    features: FeatureSet
    about: dict[str, Any] = field(default_factory=dict)
    image_size: int | None = None


def find_reference(
    given: Path | None, samples: ImageSet, one_by_one: bool, opening: Opening, work: FeaturePass
) -> Reference:
    """Return the reference `given`, or the images that the samples' token cache was made from.

    Args:
        one_by_one: features of the reference image by image are wanted, not only their Gaussian.
        opening: how sets of images are opened. Without a preprocessing, image files are brought to the samples' size.

    Raises:
        UserError: the reference doesn't fit. UsageError if none is given and none is recorded.
    """
    if given is not None:
        return named_reference(given, samples.image_size, one_by_one, opening, work)
    images = reference_images(given, samples, opening)
    work.context.say(
        f"reference: {images.path} (the {counted(images.count, 'images')} that the samples' token cache was made from)"
    )
    return _of_images(images, work)


def named_reference(
    given: Path, image_size: int | None, one_by_one: bool, opening: Opening, work: FeaturePass
) -> Reference:
    """Return the reference `given` for samples of `image_size` pixels. Arguments and errors as `find_reference`."""
    if is_statistics_file(given):
        return _from_file(given, one_by_one, work)
    return _of_images(named_images(given, image_size, opening), work)


def _of_images(images: ImageSet, work: FeaturePass) -> Reference:
    found, path = measured_reference(images, work)
    about = {"path": str(images.path.absolute()), "count": found.features.count, **images.about}
    if path.is_file():
        about |= {"statistics": str(path.absolute()), "sha256": file_sha256(path)}
    return Reference(found.features, about, found.image_size)


def is_statistics_file(given: Path | None) -> TypeGuard[Path]:
    """Return True if `given` is a file of statistics."""
    return given is not None and given.suffix == ".npz" and given.is_file() and is_statistics(given)


def reference_images(given: Path | None, samples: ImageSet, opening: Opening) -> ImageSet:
    """Open the images `given` as a reference, or those that the samples' token cache was made from.

    Raises UserError if they can't be opened; UsageError if none are given and none are recorded.
    """
    if given is not None:
        return named_images(given, samples.image_size, opening)
    if not {"source", "preprocessing"} <= samples.origin.keys():
        raise UsageError(
            f"{samples.path} does not say what it should be compared with",
            "name images or statistics with --ref",
        )
    return OriginalImages(samples.origin, opening)


def named_images(given: Path, image_size: int | None, opening: Opening) -> ImageSet:
    """Open the images `given` as a reference for samples of `image_size` pixels; None takes them as they are."""
    as_samples = PreprocessingConfig(size=image_size, exif=opening.exif) if image_size else None
    return open_images(given, replace(opening, preprocessing=opening.preprocessing or as_samples))


def check_network(path: Path, statistics: Statistics, extractor: Extractor) -> None:
    """Raise UserError unless the statistics in `path` are of features of this network."""
    width = len(statistics.mean)
    made_with = statistics.about.get("features", extractor.name)
    if made_with != extractor.name or width != extractor.widths["pool"]:
        what = f"{made_with} features" if made_with != extractor.name else f"{width} features an image"
        raise UserError(
            f"{path} holds statistics of {what}, but {extractor.name} has {extractor.widths['pool']}",
            f"use --features {made_with}" if made_with != extractor.name else "name another reference",
        )


def _from_file(path: Path, one_by_one: bool, work: FeaturePass) -> Reference:
    statistics = read_statistics(path)
    check_network(path, statistics, work.extractor)
    found = from_statistics(statistics)
    if one_by_one and found.features is None and has_images(path):
        measured, _ = measured_reference(ArrayImages(path), work)
        found = replace(found, features=measured.features.features)
    about = {"path": str(path.absolute()), "count": found.count or None, "sha256": file_sha256(path)}
    about |= {name: statistics.about[name] for name in ("source", "extractor") if name in statistics.about}
    if statistics.made_by:
        about["made_by"] = statistics.made_by
    return Reference(found, about, statistics.about.get("image_size"))
