"""An autoregressive generator over latent tokens, after RAR (arXiv 2411.00776): a label, then id after id.

The sequence is the label and the ids but for the last one, in some order. Each input carries the embedding of the
position whose id it predicts, the "target-aware" embedding, so that one network serves every order; an id carries the
embedding of its own position besides. Images are drawn in the order of the cache, which is what training ends with.

The class is the first token; with `adaptive_norm` it also shifts and scales the norms and gates the branches of each
block. These numbers depend on the class alone, so they are computed once for an image.

In training the orders are random permutations at first, and the order of the cache at the end.

The vocabulary is that of MaskGIT, so that tables fit each other: [0, V) codes, V unused, V + 1 + c the class c,
V + 1 + num_classes the null label. Letters: B batch, K latent tokens, L blocks, D width, V codebook size.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from titokctl.config.models import AutoregressiveConfig
from titokctl.config.recipe import AutoregressiveLossConfig, AutoregressiveRecipe, steps_of
from titokctl.config.sampling import AutoregressiveSampling
from titokctl.models.autoregressive.decoding import decode
from titokctl.models.autoregressive.transformer import MODULATIONS, AutoregressiveBlock, KeyValues, Window, modulated
from titokctl.models.device import in_float64
from titokctl.models.generator import Batch, Drawn, Generator, Known, Losses, TrainingStep, check_shapes
from titokctl.models.noise import Noise
from titokctl.models.transformer import run_block


def random_share(settings: AutoregressiveLossConfig, step: TrainingStep) -> float:
    """Return the probability that an image's order is random: 1 at first, then falling linearly, at the end 0."""
    full, none = (steps_of(span, step.total) for span in (settings.random_until, settings.annealed_until))
    if step.number < full:
        return 1.0
    return max(0.0, (none - step.number) / (none - full)) if none > full else 0.0


def random_orders(count: int, num_tokens: int, share: float, draws: torch.Generator) -> torch.Tensor:
    """Return (B, K) int64: in each row a random permutation with probability `share`, else 0 to K - 1."""
    is_random = torch.rand(count, 1, generator=draws) < share
    permutations = torch.rand(count, num_tokens, generator=draws).argsort(dim=1)
    return torch.where(is_random, permutations, torch.arange(num_tokens))


_PIECE = 128  # rows at once: logits of 128 tokens are 2 MB a row
_LAST_MODULATIONS = 2  # shift and scale of the last norm


class Autoregressive(Generator):
    """A causal transformer over the ids of an image, for any order of them. It is built as `Autoregressive(config)`."""

    recipe = AutoregressiveRecipe
    likelihood = "exact"
    keeps = "first"
    config: AutoregressiveConfig

    def __init__(self, config: AutoregressiveConfig) -> None:
        super().__init__(config)
        width = config.width
        self.recompute = False  # blocks again in the backward pass, to save memory
        self.stream_dtype: torch.dtype | None = None  # of the residual stream while training; None for float32
        self.token_embedding = nn.Embedding(config.vocabulary_size, width)
        self.position_embedding = nn.Embedding(config.num_latent_tokens, width)
        self.target_embedding = nn.Embedding(config.num_latent_tokens, width)
        parts = MODULATIONS * config.num_layers + _LAST_MODULATIONS
        self.modulation = nn.Linear(width, parts * width) if config.adaptive_norm else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(AutoregressiveBlock(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.codebook_size)

    def forward(
        self, ids: torch.Tensor, labels: torch.Tensor | None = None, order: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return logits (B, K, V) float32: those of position k are of its id, given the label and all ids before it.

        Args:
            ids: (B, K) integers in [0, V).
            labels: (B,) integers in [0, num_classes]; num_classes, or None for the whole batch, is the null label.
            order: (B, K) int64, a permutation of the positions in each row; None is 0 to K - 1.

        Raises ValueError for wrong types and shapes.
        """
        check_shapes(ids, labels, self.config.num_latent_tokens)
        if labels is None:
            labels = torch.full((len(ids),), self.config.num_classes, device=ids.device)
        x = self.inputs(ids, labels, 0, self.config.num_latent_tokens, order)  # (B, K, D)
        hidden = self.hidden(self.dropout(x), self.modulations(labels))
        if order is not None:  # from the order back to positions
            hidden = hidden.gather(1, order.argsort(dim=1)[..., None].expand_as(hidden))
        return self.logits(hidden)

    def inputs(
        self, ids: torch.Tensor, labels: torch.Tensor, first: int, last: int, order: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the inputs (B, last - first, D) of a part of the sequence; position 0 of it is the label."""
        places = self.position_embedding.weight[max(first - 1, 0) : last - 1]  # of the ids that go in
        targets = self.target_embedding.weight[first:last]
        if order is not None:
            ids = ids.gather(1, order)
            places, targets = self.position_embedding(order[:, :-1]), self.target_embedding(order)
        x = self.token_embedding(ids[:, max(first - 1, 0) : last - 1].long()) + places
        if first == 0:
            label = self.token_embedding(labels.long() + self.config.codebook_size + 1)
            x = torch.cat([label[:, None], x], dim=1)
        return x + targets

    def modulations(self, labels: torch.Tensor) -> torch.Tensor | None:
        """Return the shifts, scales and gates of the classes, (B, 6 L + 2, 1, D); None without `adaptive_norm`."""
        if self.modulation is None:
            return None
        label = self.token_embedding(labels.long() + self.config.codebook_size + 1)  # (B, D)
        return self.modulation(F.silu(label)).unflatten(1, (-1, 1, self.config.width))

    def hidden(
        self,
        x: torch.Tensor,
        modulations: torch.Tensor | None,
        window: Window | None = None,
        caches: list[KeyValues] | None = None,
    ) -> torch.Tensor:
        """Return the hidden states (B, n, D) of inputs (B, n, D): whole sequences, or a window with a cache a block."""
        if self.training and self.stream_dtype is not None:
            x = x.to(self.stream_dtype)
        for number, block in enumerate(self.blocks):
            part = None if modulations is None else modulations[:, MODULATIONS * number : MODULATIONS * (number + 1)]
            cache = None if caches is None else caches[number]
            x = run_block(block, x, self.recompute, part, window, cache)
        x = self.norm(x)
        return x if modulations is None else modulated(x, modulations[:, -2], modulations[:, -1])

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits (..., V) float32 of hidden states (..., D)."""
        return self.head(hidden).float()

    def draw(self, count: int, settings: AutoregressiveLossConfig, draws: torch.Generator, step: TrainingStep) -> Drawn:
        """Draw which labels are dropped and, while orders are random, the tensor "order" (B, K)."""
        tokens, share = self.config.num_latent_tokens, random_share(settings, step)
        dropped = torch.rand(count, generator=draws) < settings.label_dropout
        orders = {"order": random_orders(count, tokens, share, draws)} if share else {}
        return Drawn(dropped, float(count * tokens), orders)

    def loss(self, batch: Batch, settings: AutoregressiveLossConfig) -> Losses:
        """Return the summed cross-entropy of all ids, and the share of ids that are the most likely ones."""
        logits = self(batch.ids, batch.labels, batch.tensors.get("order"))  # (B, K, V)
        total = F.cross_entropy(
            logits.flatten(0, 1), batch.ids.flatten(), reduction="sum", label_smoothing=settings.label_smoothing
        )
        return Losses(total, {"accuracy": (logits.detach().argmax(-1) == batch.ids).float().mean()})

    def measure(
        self, ids: torch.Tensor, labels: torch.Tensor, settings: Any, draws: torch.Generator
    ) -> dict[str, float]:
        """Return the exact loss in nats an id, the same in bits, and the accuracy, in the order of the cache."""
        nats, right = zip(
            *(self._scored(ids[i : i + _PIECE], labels[i : i + _PIECE]) for i in _pieces(ids)), strict=True
        )
        loss = float(torch.cat(nats).mean()) / self.config.num_latent_tokens
        return {"loss": loss, "accuracy": float(torch.cat(right).mean()), "bits_per_id": loss / math.log(2)}

    def nll(self, ids: torch.Tensor, labels: torch.Tensor, noise: Noise, passes: int) -> torch.Tensor:
        """Return the exact negative log-likelihood in nats, (B,) float64, in the order in which ids are drawn."""
        return self._scored(ids, labels)[0]

    @torch.inference_mode()
    def sample(self, labels: torch.Tensor | None, settings: AutoregressiveSampling, noise: Noise) -> torch.Tensor:
        """Draw id after id."""
        return decode(self, labels, settings, noise)

    @torch.inference_mode()
    def complete(
        self, labels: torch.Tensor | None, settings: AutoregressiveSampling, noise: Noise, known: Known
    ) -> torch.Tensor:
        """Draw the ids after the given ones, id after id."""
        return decode(self, labels, settings, noise, known)

    def operations(self) -> float:
        """Return the operations to train on one image; the classes' shifts and scales are computed once an image."""
        once = 0 if self.modulation is None else sum(p.numel() for p in self.modulation.parameters())
        rest = sum(p.numel() for p in self.parameters()) - once
        return 6.0 * (rest * self.config.num_latent_tokens + once)

    def _scored(self, ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the nats of each image, (B,) float64, and the share of ids that are the most likely ones, (B,)."""
        logits = self(ids, labels)  # (B, K, V)
        nats = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view_as(ids)
        return in_float64(nats).sum(dim=1), in_float64(logits.argmax(-1) == ids).mean(dim=1)


def _pieces(ids: torch.Tensor) -> range:
    return range(0, len(ids), _PIECE)
