"""The interface of generators: networks that learn the ids of images, and draw new ones.

A kind of generator is a subclass of `Generator`. Training, sampling, plans, previews and weights files know generators
by this interface alone. Ours are listed in `generator_kinds`; packages add others through the entry-point group
"titokctl.generator_kinds" (examples/causal). The configuration of another kind than MaskGIT has a field `kind` with the
name of its entry point, in recipes as in the header of weights files; without the field the kind is "maskgit".

Letters: B batch, K latent tokens, V codebook size.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import nn

from titokctl.config.models import GeneratorSizes, kind_of
from titokctl.config.recipe import GeneratorRecipe
from titokctl.config.sampling import GuidanceConfig
from titokctl.errors import UserError
from titokctl.models.noise import Noise

_PIECE = 128  # rows at once: logits of S-128 are 2 MB a row
_INTEGERS = (
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
)  # fmt: skip


@dataclass(frozen=True)
class TrainingStep:
    """An optimizer step of a run: `number` (from 0 on) of `total`; number = total after the last one."""

    number: int
    total: int


@dataclass(frozen=True)
class Drawn:
    """The random part of a global batch, drawn on the CPU before the batch is divided among processes.

    Args:
        dropped: (B,) bool, the images that are shown without their label.
        total_weight: the number by which the sum of the losses of all images is divided.
        tensors: (B, ...) tensors by name, such as which ids are masked.
    """

    dropped: torch.Tensor
    total_weight: float
    tensors: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Batch:
    """Images to learn from.

    Args:
        ids: (B, K) int64 in [0, V); for kinds that draw latents, latents (B, K, C) float32.
        labels: (B,) int64 in [0, num_classes]; num_classes is the null label.
        tensors: those of `Drawn` for these images, on the device of the ids.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    tensors: Mapping[str, torch.Tensor]

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, rows: slice) -> "Batch":
        """Return some of the images."""
        return Batch(self.ids[rows], self.labels[rows], {name: t[rows] for name, t in self.tensors.items()})


@dataclass(frozen=True)
class Known:
    """Ids of a batch that are given, and stay as they are.

    Args:
        ids: (B, K) int64; only those under the mask count.
        mask: (B, K) bool, true where an id is given; the same number in each row.
        count: that number, from 0 to K - 1.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    count: int


@dataclass(frozen=True)
class Losses:
    """Numbers of a batch, as scalars on its device.

    Args:
        total: the sum of the losses; `total_weight` of the global batch divides it.
        metrics: means over the images, by name, for the log; without gradients.
    """

    total: torch.Tensor
    metrics: Mapping[str, torch.Tensor]


class Generator(nn.Module, ABC):
    """A network over K ids of V codes. It is built as `Kind(config)`, on the meta device too, and then filled.

    Attributes:
        recipe: the model of its recipes; the fields `model`, `loss` and `sampling` are its own configurations.
        likelihood: the meaning of `nll`: "exact", or "bound" for an upper bound; None for a kind without it.
        keeps: the positions whose ids `complete` takes as given: "any", or "first" for positions 0 to n - 1 of some n;
            None for a kind without `complete`.
        config: its configuration.
    """

    recipe: ClassVar[type[GeneratorRecipe]]
    likelihood: ClassVar[Literal["exact", "bound"] | None] = None
    keeps: ClassVar[Literal["any", "first"] | None] = None
    config: Any

    def __init__(self, config: GeneratorSizes) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def settings_class(cls) -> type[GuidanceConfig]:
        """Return the class of the settings that `sample` takes: that of the field `sampling` of its recipes."""
        annotation: Any = cls.recipe.model_fields["sampling"].annotation
        return annotation

    @abstractmethod
    def forward(self, ids: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Return the logits (B, K, V) float32 of ids (B, K) and labels (B,); None is the null label for all images."""

    @abstractmethod
    def draw(self, count: int, settings: Any, draws: torch.Generator, step: TrainingStep) -> Drawn:
        """Draw what is random about a global batch.

        Args:
            count: B, its number of images.
            settings: the section `loss` of the recipe.
            draws: a generator on the CPU, seeded by the step.
            step: the step that the batch is for.
        """

    @abstractmethod
    def loss(self, batch: Batch, settings: Any) -> Losses:
        """Return the losses of a part of a global batch, with gradients in training mode.

        Args:
            batch: the images.
            settings: the section `loss` of the recipe.
        """

    @abstractmethod
    def sample(self, labels: torch.Tensor | None, settings: Any, noise: Noise) -> torch.Tensor:
        """Draw ids (B, K) int64 in [0, V), or latents (B, K, C) float32.

        The generator is in eval mode, and nothing is checked.

        An image MUST depend on its label, the settings and its own noise alone, not on the others in the batch. The
        host SHOULD NOT wait for the device.

        Args:
            labels: (B,) int64 in [0, num_classes) on the device of the generator; None draws without labels.
            settings: guidance, steps and temperatures, of `settings_class`.
            noise: the only source of randomness; it knows the number of images and the device.
        """

    def example_inputs(self, count: int) -> tuple[torch.Tensor, ...]:
        """Return arguments of `forward` for `count` images, on the device of the weights; their values don't matter."""
        device = next(self.parameters()).device
        ids = torch.zeros(count, self.config.num_latent_tokens, dtype=torch.int64, device=device)
        return ids, torch.zeros(count, dtype=torch.int64, device=device)

    def begin_training(self, rows: torch.Tensor) -> None:
        """Set what is known before the first step; called after the weights were initialized.

        Args:
            rows: ids or latents of up to some thousand training images, as in `Batch`, on the CPU.
        """

    def nll(self, ids: torch.Tensor, labels: torch.Tensor, noise: Noise, passes: int) -> torch.Tensor:
        """Return the negative log-likelihood of each image in nats, (B,) float64; `likelihood` says of which kind.

        The generator is in eval mode. An exact one takes one forward pass and no noise.

        Args:
            ids, labels: as in `Batch`.
            noise: the randomness of a bound, keyed by image.
            passes: forward passes for each image over which a bound is averaged.
        """
        raise NotImplementedError(f"{type(self).__name__} has no likelihood")

    def operations(self) -> float:
        """Return the operations to train on one image: 6 per parameter (forward 2, backward 4) and position.

        The positions are those of the label and of the ids.
        """
        return 6.0 * sum(p.numel() for p in self.parameters()) * (self.config.num_latent_tokens + 1)

    def complete(self, labels: torch.Tensor | None, settings: Any, noise: Noise, known: Known) -> torch.Tensor:
        """Draw ids as `sample` does, with those of `known` given, at positions that `keeps` allows."""
        raise NotImplementedError(f"{type(self).__name__} can't keep given ids")

    def measure(
        self, ids: torch.Tensor, labels: torch.Tensor, settings: Any, draws: torch.Generator
    ) -> dict[str, float]:
        """Return numbers of held-out images by name, "loss" (in nats) among them. The generator is in eval mode.

        Args:
            ids, labels: as in `Batch`.
            settings: the section `loss` of the recipe.
            draws: a generator on the CPU, the same each time.
        """
        drawn = self.draw(len(ids), settings, draws, TrainingStep(1, 1))
        batch = Batch(ids, labels, {name: t.to(ids.device) for name, t in drawn.tensors.items()})
        total = torch.zeros((), device=ids.device)
        means: dict[str, torch.Tensor] = {}
        for first in range(0, len(ids), _PIECE):
            piece = batch.rows(slice(first, first + _PIECE))
            losses = self.loss(piece, settings)
            total = total + losses.total
            for name, value in losses.metrics.items():
                means[name] = means.get(name, torch.zeros_like(value)) + value * len(piece) / len(ids)
        return {"loss": float(total / drawn.total_weight)} | {name: float(value) for name, value in means.items()}


def check_keeps(generator: type[Generator], config: GeneratorSizes) -> None:
    """Raise UserError unless generators of this kind can keep given ids."""
    if generator.keeps is None:
        raise UserError(
            f"a generator of kind {kind_of(config)} can't keep a part of an image and draw the rest",
            "generators of kind maskgit keep ids at any positions, those of kind autoregressive the first ones",
        )


def check_integers(name: str, values: object) -> None:
    """Raise ValueError unless `values` is a tensor of integers; bool does not count."""
    if not isinstance(values, torch.Tensor):
        raise ValueError(f"{name}: expected a tensor of integers, got {type(values).__name__}")
    if values.dtype not in _INTEGERS:
        raise ValueError(f"{name}: expected a tensor of integers, got {values.dtype} {tuple(values.shape)}")


def check_shapes(ids: torch.Tensor, labels: torch.Tensor | None, num_tokens: int) -> None:
    """Raise ValueError unless ids are integers (B, `num_tokens`), and labels, if given, integers (B,)."""
    check_integers("ids", ids)
    if ids.ndim != 2 or ids.shape[1] != num_tokens:
        raise ValueError(f"ids: expected integers of shape (B, {num_tokens}), not {tuple(ids.shape)}")
    if labels is None:
        return
    check_integers("labels", labels)
    if labels.shape != ids.shape[:1]:
        raise ValueError(f"labels: expected {len(ids)} integers, not {tuple(labels.shape)}")


class Sizes(NamedTuple):
    """An image as a generator draws it: `tokens` with one of `codes` each, or as many latents of `channels` numbers."""

    tokens: int
    codes: int | None
    channels: int | None = None


def check_sizes(name: str, config: GeneratorSizes, other: str, sizes: Sizes, hint: str) -> None:
    """Raise UserError, which lists what differs, unless images of `other` are what the generator `name` draws.

    Args:
        name, other: for the message.
        config: the generator's.
        sizes: of the images of `other`.
        hint: for the user.
    """
    ours = Sizes(config.num_latent_tokens, config.codebook_size, getattr(config, "token_size", None))
    words = ("tokens an image", "codes", "numbers a latent")
    differ = [f"{what}: {a} and {b}" for what, a, b in zip(words, ours, sizes, strict=True) if a != b]
    if differ:
        raise UserError(f"{name} and {other} do not fit ({'; '.join(differ)})", hint)
