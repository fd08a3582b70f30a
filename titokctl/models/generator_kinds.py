"""The kinds of generators, by name."""

from titokctl.config.models import AUTOREGRESSIVE, FLOW, MASKGIT, GeneratorSizes, kind_of
from titokctl.config.recipe import KIND_ENTRY_POINTS
from titokctl.config.registry import find
from titokctl.models.autoregressive.generator import Autoregressive
from titokctl.models.flow.generator import FlowGenerator
from titokctl.models.generator import Generator
from titokctl.models.maskgit.generator import MaskGit

_KINDS: dict[str, type[Generator]] = {MASKGIT: MaskGit, AUTOREGRESSIVE: Autoregressive, FLOW: FlowGenerator}


def kind_class(config: GeneratorSizes) -> type[Generator]:
    """Return the class of the generators that `config` describes. Raises UserError for an unknown kind."""
    found: type[Generator] = find("generator kind", kind_of(config), _KINDS, KIND_ENTRY_POINTS)
    return found


def build(config: GeneratorSizes) -> Generator:
    """Build the generator that `config` describes. Raises UserError for an unknown kind or architecture."""
    return kind_class(config)(config)
