"""Classes that official generators count otherwise: their class c is the c-th synset in sorted order."""

from collections.abc import Callable, Sequence

from titokctl.config.models import GeneratorConfig
from titokctl.data.synsets import in_sorted_synset_order
from titokctl.weights.known import released


def say_class_order(class_names: Sequence[str], model: GeneratorConfig, say: Callable[[str], None]) -> None:
    """Name the first class that is another one than in the official generator of the configuration `model`.

    Args:
        class_names: those of the cache that the generator learns or has learned from; () when unknown.
        model: of the generator; others than the released ones are free to count as they like.
    """
    known = released(model)
    if known is None or len(class_names) != model.num_classes or in_sorted_synset_order(class_names) is not False:
        return
    usual = sorted(class_names)
    first = next(c for c, name in enumerate(class_names) if name != usual[c])
    say(
        f"warning: the cache's classes are not in the order of sorted synset names: its class {first} is "
        f"{class_names[first]}, that of the released {known.name} is {usual[first]}; class numbers do not carry over"
    )
