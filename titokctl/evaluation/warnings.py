"""Warnings about results: too few images, mixed-up references, sizes and files that shift the numbers."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from titokctl.evaluation.extractors import INCEPTIONS, Extractor
from titokctl.evaluation.feature_pass import Measured
from titokctl.evaluation.image_sets import ImageSet
from titokctl.evaluation.metrics import FID_IMAGES
from titokctl.evaluation.reference import Reference
from titokctl.formats.statistics import ADM, UNKNOWN_MAKER
from titokctl.readable import counted

_TRAINING_SET = re.compile(r"^VIRTUAL_imagenet|train", re.IGNORECASE)
_VALIDATION_SET = re.compile(r"(^|[^a-z])val(id|idation)?([^a-z]|$)", re.IGNORECASE)
_RECONSTRUCTED = re.compile(r"recon", re.IGNORECASE)
_ARE_RECONSTRUCTIONS = "these are reconstructions: rFID compares them with their own originals, not with training data"


def warnings_about(images: ImageSet, measured: Measured, reference: Reference, extractor: Extractor) -> list[str]:
    """Return warnings about sets whose numbers don't mean what their names say."""
    found = count_warnings(measured.features.count, extractor) if measured.features.count else []
    if images.labels is not None and _unbalanced(images.labels):
        found.append("the classes are not equally frequent among the samples")
    few = extractor.widths["pool"]
    if 0 < reference.features.count <= few:
        found.append(
            f"the reference has {counted(reference.features.count, 'images')}, fewer than the {few:,} features need"
        )
    if measured.lossy:
        found.append(f"{counted(measured.lossy, 'images')} from lossy files (JPEG or WebP): this shifts every metric")
    if reference.image_size and measured.image_size and reference.image_size != measured.image_size:
        found.append(f"the samples are of {measured.image_size} px, the reference of {reference.image_size} px")
    found += _of_kinds(images, reference)
    samples = {"path": str(images.path)} | images.about
    for about, of in ((samples, "sample"), (reference.about, "reference")):
        found += _of_foreign(about, extractor)
        if about.get("extractor") not in (None, extractor.description):
            found.append(f"the {of} statistics were computed with other settings of the feature network")
    return found


def _of_foreign(about: dict[str, Any], extractor: Extractor) -> list[str]:
    """Warn if statistics of another program may be of images that were resized otherwise than those of the other set.

    Args:
        about: of the set.
    """
    maker, resized = about.get("made_by"), extractor.name in INCEPTIONS.values() and not extractor.is_fid
    name = Path(str(about.get("path", ""))).name
    if maker == ADM and resized:
        return [f"{name} is {ADM}'s, whose images are resized as TensorFlow 1 does: leave out --resize"]
    if maker != UNKNOWN_MAKER or resized:
        return []
    return [
        f"{name} contains only mu and sigma, so the program that made it is unknown: pytorch-fid and clean-fid resize "
        "images in other ways, and then even equal images have a distance far above 0; give --resize pytorch or "
        "--resize clean if one of them made it, or make it again with `titokctl stats`"
    ]


def count_warnings(count: int, extractor: Extractor, distance: str = "", instead: bool = True) -> list[str]:
    """Return a warning if the Fréchet distance of so many images means little, or is too large; else none.

    Args:
        distance: its name; by default the network's.
        instead: name the kernel distance as the better one for few images.
    """
    name, width = distance or extractor.metric_name("fid"), extractor.widths["pool"]
    if count <= width:
        better = f", look at {extractor.metric_name('kid')}" if instead else ""
        return [f"{counted(count, 'images')}, fewer than the {width:,} features: {name} says little{better}"]
    if count < FID_IMAGES:
        return [f"{counted(count, 'images')}: {name} is larger than it would be for {FID_IMAGES:,}"]
    return []


def _of_kinds(images: ImageSet, reference: Reference) -> list[str]:
    """Warn if reconstructions aren't compared with their originals (rFID), or samples not with training data (gFID)."""
    kind, name = images.about.get("kind"), Path(str(reference.about.get("path", ""))).name
    theirs = _listing(reference.about)
    if kind == "reconstructions" and images.origin:
        source = images.origin["source"]
        own = source.get("listing", source.get("fingerprint"))
        return [] if theirs is not None and theirs == own else [_ARE_RECONSTRUCTIONS]
    if kind == "sample set" and _VALIDATION_SET.search(name):
        return [f"gFID compares samples with the training set; {name} looks like validation images, which are for rFID"]
    if kind != "sample set" and _RECONSTRUCTED.search(images.path.name) and _TRAINING_SET.search(name):
        return [_ARE_RECONSTRUCTIONS]
    return []


def _listing(about: dict[str, Any]) -> Any:
    """Return the hash of names, sizes and labels of a set; older records call it the fingerprint."""
    source = about.get("source")
    found = about if "fingerprint" in about else source if isinstance(source, dict) else {}
    return found.get("listing", found.get("fingerprint"))


def _unbalanced(labels: np.ndarray) -> bool:
    present = labels[labels >= 0]
    counts = np.bincount(present)[np.unique(present)] if len(present) else np.zeros(1)
    return bool(counts.max() - counts.min() > 1)
