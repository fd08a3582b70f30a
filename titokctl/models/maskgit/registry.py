"""Generator architectures by name.

An architecture is a callable that takes a GeneratorConfig and returns a module mapping tokens (B, K + 1) int64, the
label first, to hidden states (B, K + 1, width). Packages add their own through the entry-point group
"titokctl.generators"; the name of the entry point is the `architecture` of recipes.
"""

from collections.abc import Callable
from importlib.metadata import entry_points

from torch import nn

from titokctl.config.models import GeneratorConfig
from titokctl.errors import UserError
from titokctl.models.maskgit.uvit import UvitBody
from titokctl.models.maskgit.vit import VitBody

ENTRY_POINT_GROUP = "titokctl.generators"
Architecture = Callable[[GeneratorConfig], nn.Module]
_BUILT_IN: dict[str, Architecture] = {"vit": VitBody, "uvit": UvitBody}


def architecture(name: str) -> Architecture:
    """The architecture called `name`. Raises UserError when nobody provides it."""
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    added = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name in added:
        return added[name].load()
    known = ", ".join(sorted(_BUILT_IN | added))
    raise UserError(f"unknown generator architecture {name!r}", f"known here: {known}")
