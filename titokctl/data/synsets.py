"""ImageNet's class order: models index the classes by their synset names (n01440764, ...) in sorted order."""

import re
from collections.abc import Sequence

_SYNSET = re.compile(r"n\d{8}")


def is_synset(name: str) -> bool:
    """True for a WordNet id as ImageNet writes it."""
    return _SYNSET.fullmatch(name) is not None


def in_sorted_synset_order(class_names: Sequence[str]) -> bool | None:
    """Whether label i means the i-th synset of the sorted list; None when the names are not all synsets."""
    if not class_names or not all(map(is_synset, class_names)):
        return None
    return list(class_names) == sorted(class_names)
