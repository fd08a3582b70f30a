"""What samples are compared with: a statistics file of any kind, images, or what the samples themselves record."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.errors import UsageError, UserError
from titokctl.evaluation.extractors import Extractor
from titokctl.evaluation.feature_pass import FeaturePass, from_statistics, kept_statistics
from titokctl.evaluation.feature_set import FeatureSet
from titokctl.evaluation.image_set import ImageSet, Opening
from titokctl.evaluation.image_sets import from_npz, from_origin, open_images
from titokctl.formats.statistics import file_sha256, has_images, is_statistics, read_statistics
from titokctl.progress import Progress

STATISTICS_FOLDER = "statistics"


@dataclass(frozen=True)
class Reference:
    """The reference's features, and JSON about it for the record; `image_size` None when not known."""

    features: FeatureSet
    about: dict[str, Any] = field(default_factory=dict)
    image_size: int | None = None


def find_reference(
    given: Path | None, samples: ImageSet, wants_features: bool, opening: Opening, work: FeaturePass
) -> Reference:
    """The reference `given`, or the images that the samples' token cache was made from.

    Args:
        wants_features: a metric needs features of reference images, not only their Gaussian.
        opening: how sets of images are opened; its runs folder keeps the statistics. Without a preprocessing of its own
            image files are brought to the samples' size.

    Raises:
        UserError: nothing fits; UsageError when none is given and none is recorded.
    """
    if given is not None and given.suffix == ".npz" and given.is_file() and is_statistics(given):
        return _from_file(given, wants_features, opening, work)
    if given is None:
        images = _recorded(samples, work.progress)
    else:
        as_samples = PreprocessingConfig(size=samples.image_size) if samples.image_size else None
        images = open_images(given, replace(opening, preprocessing=opening.preprocessing or as_samples))
    found, path = kept_statistics(images, opening.root / STATISTICS_FOLDER, work)
    about = {"path": str(images.path.absolute()), "count": found.count, **images.about}
    if path.is_file():
        about |= {"statistics": str(path.absolute()), "sha256": file_sha256(path)}
    return Reference(found, about, images.image_size)


def _recorded(samples: ImageSet, progress: Progress) -> ImageSet:
    if not {"source", "preprocessing"} <= samples.origin.keys():
        raise UsageError(
            f"{samples.path} does not say what it should be compared with",
            "name images or statistics with --ref",
        )
    images = from_origin(samples.origin)
    progress.say(f"reference: {images.path} ({images.count:,} images, what the samples' token cache was made from)")
    return images


def _from_file(path: Path, wants_features: bool, opening: Opening, work: FeaturePass) -> Reference:
    statistics = read_statistics(path)
    _check_network(path, statistics.about, len(statistics.mean), work.extractor)
    found = from_statistics(statistics)
    if wants_features and found.features is None and has_images(path):
        measured, _ = kept_statistics(from_npz(path), opening.root / STATISTICS_FOLDER, work)
        found = replace(found, features=measured.features)
    about = {"path": str(path.absolute()), "count": found.count or None, "sha256": file_sha256(path)}
    about |= {name: statistics.about[name] for name in ("source", "extractor") if name in statistics.about}
    return Reference(found, about, statistics.about.get("image_size"))


def _check_network(path: Path, about: dict[str, Any], width: int, extractor: Extractor) -> None:
    made_with = about.get("features", extractor.name)
    if made_with != extractor.name or width != extractor.widths["pool"]:
        what = f"{made_with} features" if made_with != extractor.name else f"{width} features an image"
        raise UserError(
            f"{path} holds statistics of {what}, but {extractor.name} has {extractor.widths['pool']}",
            f"use --features {made_with}" if made_with != extractor.name else "name another reference",
        )
