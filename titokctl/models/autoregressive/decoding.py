"""Drawing ids one after the other, with guidance, temperature, top-k and top-p.

The host never waits for the device, and shapes are fixed: the cache of keys and values has room for all positions from
the start. Letters: B batch, K latent tokens, D width, V codebook size.
"""

from typing import Protocol

import torch

from titokctl.config.models import AutoregressiveConfig
from titokctl.config.sampling import AutoregressiveSampling
from titokctl.models.autoregressive.transformer import KeyValues, Window
from titokctl.models.generator import Known
from titokctl.models.guidance import guided, strength
from titokctl.models.noise import Noise


class Network(Protocol):
    """The parts of an autoregressive generator that drawing needs."""

    config: AutoregressiveConfig

    def modulations(self, labels: torch.Tensor) -> torch.Tensor | None:
        """Return what the classes change in each block and at the end; None if they don't."""

    def inputs(self, ids: torch.Tensor, labels: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Return the inputs (B, last - first, D) of the positions `first` to `last` - 1."""

    def hidden(
        self,
        x: torch.Tensor,
        modulations: torch.Tensor | None,
        window: Window | None = None,
        caches: list[KeyValues] | None = None,
    ) -> torch.Tensor:
        """Return the hidden states (B, n, D) of inputs (B, n, D)."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits (..., V) float32."""


def decode(
    network: Network,
    labels: torch.Tensor | None,
    settings: AutoregressiveSampling,
    noise: Noise,
    known: Known | None = None,
    cached: bool = True,
) -> torch.Tensor:
    """Return ids (B, K) int64; arguments as in `Generator.sample` and `Generator.complete`.

    Args:
        known: ids of the first positions; the pass that draws the first other id reads them all.
        cached: keep keys and values of earlier positions; False computes all of them again for every id, which gives
            the same ids but for rounding.
    """
    tokens, indices = network.config.num_latent_tokens, noise.image_indices
    noise.prepare(1, tokens)  # the step of a number is always 0: a position is drawn once
    null = torch.full_like(indices, network.config.num_classes)
    ids = torch.zeros(len(indices), tokens, dtype=torch.int64, device=indices.device)
    if known is not None:
        ids = torch.where(known.mask, known.ids, ids)
    scorer = (CachedScores if cached else PlainScores)(network, null if labels is None else labels, null)
    for step in range(0 if known is None else known.count, tokens):
        scale = 0.0 if labels is None else strength(settings, step / tokens)
        scores = allowed(scorer.at(step, ids, scale), settings)  # (B, V)
        position = torch.full_like(ids[:, :1], step)
        ids[:, step] = noise.choose(scores[:, None], settings.temperature, 0, position).squeeze(1)
    return ids


class PlainScores:
    """Guided logits, without a cache: every id costs a pass over all positions."""

    def __init__(self, network: Network, labels: torch.Tensor, null: torch.Tensor) -> None:
        self._network, self._labels, self._null = network, labels, null

    def at(self, step: int, ids: torch.Tensor, scale: float) -> torch.Tensor:
        """Return the guided logits (B, V) of position `step`, given the ids (B, K) before it."""
        both = torch.cat([self._labels, self._null]) if scale else self._labels
        ids = ids.repeat(2, 1) if scale else ids
        network = self._network
        x = network.inputs(ids, both, 0, network.config.num_latent_tokens)
        scores = network.logits(network.hidden(x, network.modulations(both))[:, step])
        return guided(scores, scale) if scale else scores


class CachedScores:
    """Guided logits with a cache.

    Rows with their label and with the null label go through the network in one batch. While guidance is off, the second
    half rests; when it begins, one pass over the earlier positions fills that half of the cache. Given ids are read in
    one pass, too.
    """

    def __init__(self, network: Network, labels: torch.Tensor, null: torch.Tensor) -> None:
        self._network, self._count = network, len(labels)
        self._labels = torch.cat([labels, null])
        self._modulations = network.modulations(self._labels)
        config = network.config
        positions = torch.arange(config.num_latent_tokens, device=labels.device)
        self._visible = positions <= positions[:, None]  # (K, K)
        self._caches = [KeyValues(2 * self._count, config.num_latent_tokens) for _ in range(config.num_layers)]
        self._computed = self._null_computed = (
            0  # positions in the cache, of rows with their label and with the null one
        )

    def at(self, step: int, ids: torch.Tensor, scale: float) -> torch.Tensor:
        """Return the guided logits (B, V) of position `step`; it is called for rising positions."""
        first, self._computed = self._computed, step + 1
        if not scale:
            return self._last(ids, slice(0, self._count), first, step + 1)
        if self._null_computed < first:
            self._last(ids, slice(self._count, None), self._null_computed, first)
        self._null_computed = step + 1
        return guided(self._last(ids.repeat(2, 1), slice(0, None), first, step + 1), scale)

    def _last(self, ids: torch.Tensor, rows: slice, first: int, last: int) -> torch.Tensor:
        """Compute the positions `first` to `last` - 1 of some rows, and return the logits of the last of them."""
        network = self._network
        window = Window(rows, first, self._visible[first:last])
        modulations = None if self._modulations is None else self._modulations[rows]
        x = network.inputs(ids, self._labels[rows], first, last)
        return network.logits(network.hidden(x, modulations, window, self._caches)[:, -1])


def allowed(scores: torch.Tensor, settings: AutoregressiveSampling) -> torch.Tensor:
    """Return scores (B, V) in which codes that top-k and top-p exclude are -inf.

    Top-k keeps the k most likely codes, and those that tie with the last of them. Of these, top-p keeps the smallest
    set of most likely codes whose probability at the temperature reaches p (arXiv 1904.09751).
    """
    if settings.temperature == 0:
        return scores
    if settings.top_k is not None and settings.top_k < scores.shape[-1]:
        least = scores.topk(settings.top_k).values[..., -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if settings.top_p < 1:
        ranked, codes = scores.sort(dim=-1, descending=True, stable=True)
        shares = (ranked / settings.temperature).softmax(dim=-1)
        before = shares.cumsum(dim=-1) - shares  # the probability of all more likely codes
        out = torch.zeros_like(before, dtype=torch.bool).scatter(-1, codes, before >= settings.top_p)
        scores = scores.masked_fill(out, -torch.inf)
    return scores
