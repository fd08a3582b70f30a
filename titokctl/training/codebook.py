"""Keeping codes alive: re-seeding by running usage, and k-means for the first codebook.

Letters: M latents of a batch (B x K of them), V codebook size, C token size.
"""

import torch
from torch.nn import functional as F


@torch.no_grad()
def reseed(
    codebook: torch.Tensor, usage: torch.Tensor, latents: torch.Tensor, ids: torch.Tensor, decay: float, normalize: bool
) -> None:
    """Move codes that are hardly used towards the latents nearest to them, in place.

    Args:
        codebook: (V, C) float32.
        usage: (V,) float32 running share of latents on each code.
        latents: (M, C) un-normalised latents of the whole global batch.
        ids: (M,) int64 codes they took.
        decay: of the running usage, 0.99 as published.
        normalize: whether the tokenizer compares on the unit sphere.

    Source: online clustered codebook (CVQ-VAE, arXiv 2307.15139) as in bytedance/1d-tokenizer, commit 942a96f.
    """
    share = torch.bincount(ids, minlength=len(codebook)).float() / len(ids)
    usage.mul_(decay).add_(share, alpha=1 - decay)
    pull = torch.exp(-usage * len(codebook) * 10 / (1 - decay) - 1e-3).unsqueeze(1)
    nearest = latents[_nearest_latent(codebook, latents, normalize)]
    codebook.mul_(1 - pull).add_(pull * nearest)


@torch.no_grad()
def kmeans(latents: torch.Tensor, num_codes: int, iterations: int, generator: torch.Generator) -> torch.Tensor:
    """(num_codes, C) centres of `latents` (M, C) by Lloyd's algorithm from a random subset of them.

    A centre that loses all its points starts again at a random one. M may be smaller than `num_codes`.
    """

    def draw(n: int) -> torch.Tensor:
        return latents[torch.randint(len(latents), (n,), generator=generator)]

    enough = len(latents) >= num_codes
    first = torch.randperm(len(latents), generator=generator)[:num_codes]
    centres = latents[first].clone() if enough else draw(num_codes)
    for _ in range(iterations):
        ids = _nearest(latents, centres)
        counts = torch.bincount(ids, minlength=num_codes)
        sums = torch.zeros_like(centres).index_add_(0, ids, latents)
        centres = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), draw(num_codes))
    return centres


def _nearest_latent(codebook: torch.Tensor, latents: torch.Tensor, normalize: bool) -> torch.Tensor:
    """(V,) index of the latent nearest to each code."""
    if normalize:
        codebook, latents = F.normalize(codebook, dim=-1), F.normalize(latents, dim=-1)
    return _nearest(codebook, latents)


def _nearest(points: torch.Tensor, centres: torch.Tensor, chunk: int = 8192) -> torch.Tensor:
    """Index of the nearest centre of every point, in blocks so that memory stays bounded."""
    norms = centres.square().sum(-1)
    return torch.cat([(norms - 2 * block @ centres.T).argmin(-1) for block in points.split(chunk)])
