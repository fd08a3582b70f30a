"""What a reader of the numbers must know: too few images, mixed-up references, sizes and files that shift them."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from titokctl.evaluation.extractors import Extractor
from titokctl.evaluation.feature_set import FeatureSet
from titokctl.evaluation.image_set import ImageSet
from titokctl.evaluation.reference import Reference

USUAL_COUNT = 50_000
_TRAINING_SET = re.compile(r"^VIRTUAL_imagenet|train", re.IGNORECASE)
_VALIDATION_SET = re.compile(r"(^|[^a-z])val(id|idation)?([^a-z]|$)", re.IGNORECASE)
_RECONSTRUCTED = re.compile(r"recon", re.IGNORECASE)
_ARE_RECONSTRUCTIONS = "these are reconstructions: rFID compares them with their own originals, not with training data"


def warnings_about(images: ImageSet, measured: FeatureSet, reference: Reference, extractor: Extractor) -> list[str]:
    """A sentence for everything that keeps the numbers from being what their names promise."""
    found = _of_counts(images, measured, extractor)
    few = extractor.widths["pool"]
    if 0 < reference.features.count <= few:
        found.append(f"the reference has {reference.features.count:,} images, fewer than the {few:,} features need")
    if images.lossy:
        found.append(f"{images.lossy:,} images come from lossy files (JPEG or WebP), which shifts every metric")
    if reference.image_size and images.image_size and reference.image_size != images.image_size:
        found.append(f"the samples are of {images.image_size} px, the reference of {reference.image_size} px")
    found += _of_kinds(images, reference)
    recorded = reference.about.get("extractor")
    if recorded and recorded != extractor.description:
        found.append("the reference statistics were computed with other settings of the feature network")
    return found


def _of_counts(images: ImageSet, measured: FeatureSet, extractor: Extractor) -> list[str]:
    name, width = extractor.metric_name("fid"), extractor.widths["pool"]
    found = []
    if measured.count <= width:
        found.append(
            f"{measured.count:,} images are fewer than the {width:,} features: {name} says little, look at "
            f"{extractor.metric_name('kid')}"
        )
    elif measured.count < USUAL_COUNT:
        found.append(f"{measured.count:,} images: {name} is larger than it would be for {USUAL_COUNT:,}")
    if images.labels is not None and _unbalanced(images.labels):
        found.append("the classes are not equally frequent among the samples")
    return found


def _of_kinds(images: ImageSet, reference: Reference) -> list[str]:
    """Reconstructions belong to their originals (rFID), samples to the training set (gFID)."""
    kind, name = images.about.get("kind"), Path(str(reference.about.get("path", ""))).name
    theirs = _fingerprint(reference.about)
    if kind == "reconstructions" and images.origin:
        own = images.origin["source"].get("fingerprint")
        return [] if theirs is not None and theirs == own else [_ARE_RECONSTRUCTIONS]
    if kind == "sample set" and _VALIDATION_SET.search(name):
        return [f"gFID compares samples with the training set; {name} looks like validation images, which are for rFID"]
    if kind != "sample set" and _RECONSTRUCTED.search(images.path.name) and _TRAINING_SET.search(name):
        return [_ARE_RECONSTRUCTIONS]
    return []


def _fingerprint(about: dict[str, Any]) -> Any:
    source = about.get("source")
    return about.get("fingerprint") or (source.get("fingerprint") if isinstance(source, dict) else None)


def _unbalanced(labels: np.ndarray) -> bool:
    present = labels[labels >= 0]
    counts = np.bincount(present)[np.unique(present)] if len(present) else np.zeros(1)
    return bool(counts.max() - counts.min() > 1)
