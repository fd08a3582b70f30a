"""MaskGIT over latent tokens (arXiv 2202.04200): masked ids and a label to logits over the codebook.

The vocabulary is [0, V) codes, V the mask, V + 1 + c the class c, V + 1 + num_classes the null label.

Letters: B batch, K latent tokens, D width, V codebook size.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from titokctl.config.models import GeneratorConfig
from titokctl.config.recipe import MaskedLossConfig, MaskGitRecipe
from titokctl.config.registry import find
from titokctl.config.sampling import SamplingConfig
from titokctl.models.device import in_float64
from titokctl.models.generator import Batch, Drawn, Generator, Known, Losses, TrainingStep, check_shapes
from titokctl.models.maskgit.decoding import decode
from titokctl.models.maskgit.masking import (
    mask_ratio,
    masked_accuracy,
    masked_count,
    masked_token_loss,
    masked_token_weights,
    random_subset,
)
from titokctl.models.maskgit.uvit import UvitBody
from titokctl.models.maskgit.vit import VitBody
from titokctl.models.noise import KeyedNoise, Noise

ENTRY_POINT_GROUP = "titokctl.generators"
BODIES = {"vit": VitBody, "uvit": UvitBody}
_MEASURED_RATIOS = (0.25, 0.5, 0.75, 1.0)
_MEASURED_PIECE = 128  # rows at once: logits of S-128 are 2 MB a row
_MEASURED_PASSES = 2  # of the bound, while a generator is trained


class MaskGit(Generator):
    """A generator: a transformer body found by `config.architecture`, and a linear head over the V codes.

    A body takes a GeneratorConfig and maps tokens (B, K + 1) int64, the label first, to hidden states (B, K + 1, D).
    Packages add bodies through the entry-point group "titokctl.generators", under the name that recipes use.

    Raises UserError for an unknown architecture; the hint lists the known ones.
    """

    recipe = MaskGitRecipe
    likelihood = "bound"
    keeps = "any"
    config: GeneratorConfig

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__(config)
        self.body = find("generator architecture", config.architecture, BODIES, ENTRY_POINT_GROUP)(config)
        self.head = nn.Linear(config.width, config.codebook_size)

    def forward(self, ids: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Return the logits of all positions, (B, K, V) float32.

        Args:
            ids: (B, K) integers in [0, V]; V is the mask.
            labels: (B,) integers in [0, num_classes]; num_classes, or None for the whole batch, is the null label.

        Raises ValueError for wrong types and shapes and, in eval mode, for values out of range; training draws its
        values within the range.
        """
        check_shapes(ids, labels, self.config.num_latent_tokens)
        if not self.training and not torch.compiler.is_compiling():
            self._check_ranges(ids, labels)
        return self.logits(self.hidden(ids, labels))

    def hidden(self, ids: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Return the hidden states (B, K, D) of the ids; arguments as in `forward`, unchecked: a check would wait."""
        if labels is None:
            labels = torch.full((ids.shape[0],), self.config.num_classes, device=ids.device)
        label_tokens = labels[:, None].long() + (self.config.mask_id + 1)  # (B, 1)
        tokens = torch.cat([label_tokens, ids.long()], dim=1)  # (B, K + 1)
        return self.body(tokens)[:, 1:]  # (B, K, D)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits (..., V) float32 of hidden states (..., D), for all positions or for some."""
        return self.head(hidden).float()

    def draw(self, count: int, settings: MaskedLossConfig, draws: torch.Generator, step: TrainingStep) -> Drawn:
        """Draw which ids are masked, tensor "masked" (B, K) bool, and which labels are dropped."""
        ratio = mask_ratio(torch.rand(count, generator=draws), settings.mask_schedule)
        tokens = self.config.num_latent_tokens
        masked = random_subset(masked_count(ratio, tokens), tokens, draws)
        dropped = torch.rand(count, generator=draws) < settings.label_dropout
        total_weight = float(masked_token_weights(masked, settings.unmasked_weight).sum())
        return Drawn(dropped, total_weight, {"masked": masked})

    def loss(self, batch: Batch, settings: MaskedLossConfig) -> Losses:
        """Return the weighted cross-entropy of the ids, masked ones replaced by the mask, and the accuracy of those."""
        masked = batch.tensors["masked"]
        logits = self(torch.where(masked, self.config.mask_id, batch.ids), batch.labels)  # (B, K, V)
        weights = masked_token_weights(masked, settings.unmasked_weight)
        total = masked_token_loss(logits, batch.ids, weights, settings.label_smoothing)
        return Losses(total, {"accuracy": masked_accuracy(logits, batch.ids, masked)})

    def measure(
        self, ids: torch.Tensor, labels: torch.Tensor, settings: Any, draws: torch.Generator
    ) -> dict[str, float]:
        """Return loss (nats, no smoothing) and accuracy of masked ids at fixed mask ratios, their means, and the bound.

        "bits_per_id_bound" is `nll` in bits an id, estimated in two passes.
        """
        found: dict[str, float] = {}
        count, tokens = ids.shape
        for ratio in _MEASURED_RATIOS:
            masked = random_subset(masked_count(torch.full((count,), ratio), tokens), tokens, draws).to(ids.device)
            loss = accuracy = torch.zeros((), device=ids.device)
            for first in range(0, count, _MEASURED_PIECE):
                piece = slice(first, first + _MEASURED_PIECE)
                right, hidden = ids[piece], masked[piece]
                logits = self(torch.where(hidden, self.config.mask_id, right), labels[piece])
                loss = loss + masked_token_loss(logits, right, hidden.float(), 0.0)
                accuracy = accuracy + len(right) * masked_accuracy(logits, right, hidden)
            found[f"loss_at_{ratio:g}"] = float(loss / masked.sum())
            found[f"accuracy_at_{ratio:g}"] = float(accuracy / count)
        noise = [KeyedNoise(0, part) for part in torch.arange(count, device=ids.device).split(_MEASURED_PIECE)]
        parts = zip(ids.split(_MEASURED_PIECE), labels.split(_MEASURED_PIECE), noise, strict=True)
        bounds = torch.cat([self.nll(*part, _MEASURED_PASSES) for part in parts])
        means = {name: _mean_of(found, f"{name}_at_") for name in ("loss", "accuracy")}
        return means | found | {"bits_per_id_bound": float(bounds.mean()) / tokens / math.log(2)}

    def nll(self, ids: torch.Tensor, labels: torch.Tensor, noise: Noise, passes: int) -> torch.Tensor:
        """Return an unbiased estimate of an upper bound of the negative log-likelihood in nats, (B,) float64.

        The bound is that of a generator that draws one id at a time, in a uniformly random order (arXiv 2110.02037):
        n of the K ids are masked, n uniform in 1 to K, and each masked id costs K / n times its cross-entropy. Parallel
        decoding, which draws several ids at once by confidence, is another distribution and has no such number.

        Args:
            passes: the n of an image's passes are spread evenly over 1 to K.
        """
        tokens = self.config.num_latent_tokens
        noise.prepare(passes + 1, tokens)
        positions = torch.arange(tokens, device=ids.device).expand(len(ids), -1)
        offset = in_float64((-(-noise.gumbel(passes, positions[:, :1])).exp()).exp())  # (B, 1), uniform in (0, 1)
        total = torch.zeros(len(ids), dtype=torch.float64, device=offset.device)
        for number in range(passes):
            masked_ids = (((number + offset) / passes * tokens).long().clamp(0, tokens - 1) + 1).to(
                ids.device
            )  # (B, 1)
            order = noise.gumbel(number, positions).argsort(dim=1)
            masked = torch.zeros_like(ids, dtype=torch.bool).scatter(1, order, positions < masked_ids)
            logits = self(torch.where(masked, self.config.mask_id, ids), labels)
            nats = in_float64(F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view_as(ids))
            total += (nats * masked.to(nats.device) * (tokens / masked_ids).to(nats.device)).sum(dim=1)
        return total / passes

    @torch.inference_mode()
    def sample(self, labels: torch.Tensor | None, settings: SamplingConfig, noise: Noise) -> torch.Tensor:
        """Draw ids by parallel decoding."""
        return decode(self, labels, settings, noise)

    @torch.inference_mode()
    def complete(
        self, labels: torch.Tensor | None, settings: SamplingConfig, noise: Noise, known: Known
    ) -> torch.Tensor:
        """Draw the ids that are not known by parallel decoding; the mask schedule counts these only."""
        return decode(self, labels, settings, noise, known)

    def _check_ranges(self, ids: torch.Tensor, labels: torch.Tensor | None) -> None:
        named = [("ids", ids, self.config.mask_id), ("labels", labels, self.config.num_classes)]
        for name, values, last in named:
            if values is None or not values.numel():
                continue
            wide = values.long()  # the unsigned types have no min or max
            low, high = int(wide.min()), int(wide.max())
            if low < 0 or high > last:
                raise ValueError(f"{name}: expected values in 0..{last}, not {low}..{high}")


def _mean_of(numbers: dict[str, float], start: str) -> float:
    chosen = [value for name, value in numbers.items() if name.startswith(start)]
    return sum(chosen) / len(chosen)
