"""ImageNet, recognised by its synset names of classes (n01440764, ...) or its file names (ILSVRC2012_...).

Models index the classes by their synset names in sorted order. Ids decode to pictures, so a token cache of ImageNet
carries ImageNet's terms.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from titokctl.data.sources.source import Source

IMAGENET = (
    "ImageNet: for non-commercial research and education only (image-net.org/download); ids decode to its pictures"
)
_SYNSET = re.compile(r"n\d{8}")


def is_synset(name: str) -> bool:
    """Return True for a WordNet id as ImageNet writes it."""
    return _SYNSET.fullmatch(name) is not None


def in_sorted_synset_order(class_names: Sequence[str]) -> bool | None:
    """Return True if label i is the i-th synset in sorted order; None when not all names are synsets."""
    if not class_names or not all(map(is_synset, class_names)):
        return None
    return list(class_names) == sorted(class_names)


def terms_of(source: Source) -> str:
    """Return ImageNet's terms for a source with its class names or file names; "" for any other."""
    is_imagenet = bool(source.class_names) and all(map(is_synset, source.class_names))
    paths = source.description.get("paths", ())
    return IMAGENET if is_imagenet or any(Path(path).name.startswith("ILSVRC2012_") for path in paths) else ""
