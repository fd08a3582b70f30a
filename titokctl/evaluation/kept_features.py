"""The features of samples, kept beside them with --save-features, so that a set is looked at once.

The file is one of statistics (`formats.statistics`) with the features of all images, up to 50,000. Its `key` is a hash
of every byte of the images, of the network and of what decodes: a file with another key is never used.
"""

from typing import Any

from titokctl.errors import UserError
from titokctl.evaluation.extractors import Extractor
from titokctl.evaluation.feature_pass import (
    KEEP_OF_SAMPLES,
    FeaturePass,
    from_statistics,
    measure,
    statistics_about,
    statistics_key,
    to_statistics,
)
from titokctl.evaluation.feature_set import FeatureSet
from titokctl.evaluation.image_set import ImageSet
from titokctl.formats.statistics import read_statistics, write_statistics
from titokctl.progress import Progress


def features_of(images: ImageSet, save: bool, work: FeaturePass) -> FeatureSet | None:
    """The features of a set, kept ones where they fit; on other ranks than 0 they may be None or incomplete.

    Args:
        save: keep them for the next time.
    """
    extractor, is_main = work.extractor, work.group.is_main
    kept = kept_features(images, extractor.name, extractor.description, work.progress) if is_main else None
    if work.group.from_main(kept is not None):
        return kept
    measured = measure(images, KEEP_OF_SAMPLES, str(images.path), work)
    if save and is_main:
        save_features(images, extractor, measured, work.progress)
    return measured


def kept_features(
    images: ImageSet, features: str, description: dict[str, Any], progress: Progress
) -> FeatureSet | None:
    """The kept features of a set, if there are and nothing has changed since; says so either way."""
    path = images.beside(f"{features}.npz")
    if path is None or not path.is_file():
        return None
    statistics = read_statistics(path)
    if statistics.about.get("key") != statistics_key(images, features, description, exact=True):
        progress.say(f"{path} is of other images or of another network, and is not used")
        return None
    progress.say(f"features of {images.path}: {path}")
    images.image_size = statistics.about.get("image_size")
    images.lossy = statistics.about.get("lossy", 0)
    return from_statistics(statistics)


def save_features(images: ImageSet, extractor: Extractor, measured: FeatureSet, progress: Progress) -> None:
    """Keep the features of a set beside it, or say why not. Raises UserError when they can't be written."""
    path = images.beside(f"{extractor.name}.npz")
    if path is None or images.rejected:
        why = "some images could not be read" if images.rejected else f"{images.path} has no folder for them"
        progress.say(f"the features are not kept: {why}")
        return
    key = statistics_key(images, extractor.name, extractor.description, exact=True)
    try:
        write_statistics(path, to_statistics(measured, statistics_about(images, extractor) | {"key": key}))
    except OSError as error:
        raise UserError(
            f"the features can't be kept in {path}: {error.strerror}", "leave out --save-features"
        ) from error
    progress.say(f"features of {images.path} are kept in {path}")
