"""Starting from other weights: which tensors of a network are taken, which are resized and how, which are left.

A tensor of the same name and shape is taken. Others are resized by what they are:

- a generator's table of tokens: codes and the mask are taken; the row of a class is that of the class of the same name,
  where both networks know their classes and the name is that of one class only, or of the same number, where both have
  equally many; the row of any other class, and of the null label, is the old null label's;
- a codebook: the first codes are taken; the rows of a larger one repeat the old codes, with a deviation of 0.001;
- positions of image patches, the class embedding's first: interpolated between the two grids (bicubic);
- latent tokens, their positions, and the positions of ids: the first rows are taken, further ones are left.

Everything else is left as it is, and so is a table of tokens or a head for other codes. Letters: V codes, N patches, K
latent tokens, D width.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from titokctl.errors import UserError
from titokctl.readable import first_few

_TOKENS = "token_embedding.weight"
_CODEBOOK = "codebook"
_PATCHES = ("encoder.positional_embedding", "decoder.positional_embedding")
_FIRST_ROWS = ("latent_tokens", "latent_token_positional_embedding", "position_embedding.weight")
_SHOWN = 4
_CODE_DEVIATION = 1e-3


@dataclass(frozen=True)
class Given:
    """Weights to start from: the name by which they were given, their hash, the network, and its classes if known."""

    name: str
    weights_sha256: str
    network: nn.Module
    class_names: Sequence[str] = ()


@dataclass(frozen=True)
class Adoption:
    """The names of tensors that are taken, those that are resized, and those that are left at their first values."""

    taken: list[str]
    resized: list[str]
    left: list[str]

    def in_words(self) -> str:
        """Return one line for people."""
        return f"{len(self.taken):,} tensors taken; {_named('resized', self.resized)}; {_named('left', self.left)}"

    def record(self, given: Given) -> dict[str, object]:
        """Return the entry of a run's inputs."""
        fields = {"from": given.name, "weights_sha256": given.weights_sha256, "taken": len(self.taken)}
        return fields | {"resized": self.resized, "left": self.left}


def planned(module: nn.Module, given: Given) -> Adoption:
    """Return what `adopt` would do; `module` may be a network without values.

    Raises UserError when not one tensor fits.
    """
    found, wanted = given.network.state_dict(), module.state_dict()
    rules = {name: _rule(name, module, given) if name in found else None for name in wanted}
    # The rows of a table of tokens are matched one by one, even where the shapes are equal.
    equal = [name for name in wanted if name in found and found[name].shape == wanted[name].shape]
    same = [name for name in equal if not name.endswith(_TOKENS)]
    resized = [name for name in wanted if name not in same and rules[name] is not None]
    left = [name for name in wanted if name not in same and name not in resized]
    if not same and not resized:
        raise UserError(
            f"no tensor of {given.name} fits the network that is trained",
            "name weights of the same architecture with --init, or leave it out",
        )
    return Adoption(same, resized, left)


@torch.no_grad()
def adopt(module: nn.Module, given: Given, class_names: Sequence[str] = ()) -> Adoption:
    """Copy what fits of the given weights into `module`, which is initialised. Raises as `planned`.

    Args:
        class_names: of the classes that a generator will be trained on; () if unknown.
    """
    adoption, found, wanted = planned(module, given), given.network.state_dict(), module.state_dict()
    for name in adoption.taken:
        wanted[name].copy_(found[name])
    for name in adoption.resized:
        rule = _rule(name, module, given)
        assert rule is not None
        if name.endswith(_TOKENS):
            _take_tokens(wanted[name], found[name], module, given, class_names)
        else:
            rule(wanted[name], found[name])
    return adoption


def twice(names: Sequence[str]) -> list[str]:
    """Return the names that occur more than once; classes of such names can't be matched by name."""
    counts = Counter(names)
    return [name for name, count in counts.items() if count > 1]


def freeze(module: nn.Module, parts: Sequence[str]) -> None:
    """Leave the parameters of the named parts as they are in training.

    Raises UserError, which lists the parts, for a name that is none; and when nothing would be left to train.
    """
    named = dict(module.named_parameters())
    for part in parts:
        inside = [p for name, p in named.items() if name == part or name.startswith(f"{part}.")]
        if not inside:
            there = ", ".join(dict.fromkeys(name.split(".")[0] for name in named))
            raise UserError(f"training.freeze: the network has no part {part!r}", f"its parts are: {there}")
        for parameter in inside:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in named.values()):
        raise UserError("training.freeze leaves nothing to train", "name fewer parts")


def _rule(name: str, module: nn.Module, given: Given) -> Callable[[torch.Tensor, torch.Tensor], None] | None:
    """Return how the tensor `name` is resized; None if it can't be."""
    old, new = given.network.state_dict()[name], module.state_dict()[name]
    if old.ndim != new.ndim or old.shape[1:] != new.shape[1:]:
        return None
    if name.endswith(_TOKENS):
        return _take_first if _codes(module) == _codes(given.network) else None
    if name.split(".")[-1] == _CODEBOOK:
        return _take_codes
    if name in _PATCHES:
        return _interpolate if all(_edge(t) ** 2 + 1 == len(t) for t in (old, new)) else None
    return _take_first if name.endswith(_FIRST_ROWS) else None


def _codes(network: nn.Module) -> int | None:
    config = getattr(network, "config", None)
    return getattr(config, "codebook_size", None)


def _take_tokens(new: torch.Tensor, old: torch.Tensor, module: nn.Module, given: Given, names: Sequence[str]) -> None:
    codes = _codes(module)
    assert codes is not None
    first = codes + 1  # the codes and the mask
    new[:first] = old[:first]
    new[first:] = old[-1]  # the null label
    for c, before in _same_classes(len(new) - first - 1, names, len(old) - first - 1, given.class_names).items():
        new[first + c] = old[first + before]


def _same_classes(count: int, names: Sequence[str], before: int, names_before: Sequence[str]) -> Mapping[int, int]:
    """Return the old class of each class that has one: by name if all names are known, else by number if C is equal."""
    if names and names_before and list(names) != list(names_before):
        unclear = {*twice(names), *twice(names_before)}
        known = {name: c for c, name in enumerate(names_before[:before]) if name not in unclear}
        return {c: known[name] for c, name in enumerate(names[:count]) if name in known}
    return {c: c for c in range(count)} if count == before else {}


def _take_codes(new: torch.Tensor, old: torch.Tensor) -> None:
    rows = torch.arange(len(new), device=old.device) % len(old)
    noise = torch.randn(new.shape, generator=torch.Generator().manual_seed(0)) * _CODE_DEVIATION
    noise[: len(old)] = 0
    new.copy_(old[rows] + noise.to(old))


def _take_first(new: torch.Tensor, old: torch.Tensor) -> None:
    count = min(len(new), len(old))
    new[:count] = old[:count]


def _interpolate(new: torch.Tensor, old: torch.Tensor) -> None:
    """Positions (N + 1, D), the first row of the class embedding, from one square grid to another."""
    grid = old[1:].unflatten(0, (_edge(old), -1)).movedim(-1, 0)[None]  # (1, D, h, h)
    resized = F.interpolate(grid.float(), (_edge(new), _edge(new)), mode="bicubic", align_corners=False)
    new[0] = old[0]
    new[1:] = resized[0].flatten(1).T.to(new)


def _edge(table: torch.Tensor) -> int:
    return round((len(table) - 1) ** 0.5)


def _named(what: str, names: Sequence[str]) -> str:
    return f"{what}: {first_few(names, _SHOWN)}" if names else f"none {what}"
