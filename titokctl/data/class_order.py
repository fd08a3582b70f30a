"""Class numbers that differ from those of released generators, whose class c is the c-th synset in sorted order."""

from collections.abc import Callable, Sequence

from titokctl.config.models import GeneratorSizes
from titokctl.data.sources.imagenet import in_sorted_synset_order
from titokctl.weights.known import released


def say_class_order(class_names: Sequence[str], model: GeneratorSizes, say: Callable[[str], None]) -> None:
    """Warn, and name the first class that differs, if classes are not in the order of the released generator.

    Args:
        class_names: of the cache that the generator is trained on; () when unknown.
        model: the generator's configuration; there is no warning if it is not a released generator's.
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
