"""ImageNet, recognised by its synset names of classes (n01440764, ...) or its file names (ILSVRC2012_...).

Models index the classes by their synset names in sorted order. Ids decode to pictures, so a token cache of ImageNet
carries ImageNet's terms.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from titokctl.config.models import GeneratorSizes
from titokctl.data.sources.source import Source
from titokctl.weights.known import released

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


def say_class_order(class_names: Sequence[str], model: GeneratorSizes, say: Callable[[str], None]) -> None:
    """Warn, and name the first class that differs, if classes are not in the order of the released generator.

    Args:
        class_names: of the cache that the generator is trained on; () when unknown.
        model: the generator's configuration; only released generators have an order to compare with.
    """
    known = released(model)
    if known is None or len(class_names) != model.num_classes or in_sorted_synset_order(class_names) is not False:
        return
    usual = sorted(class_names)
    first = next(c for c, name in enumerate(class_names) if name != usual[c])
    say(
        f"warning: the cache's classes are not in the order of sorted synset names: its class {first} is "
        f"{class_names[first]}, that of the released {known.name} is {usual[first]}; class numbers don't carry over"
    )
