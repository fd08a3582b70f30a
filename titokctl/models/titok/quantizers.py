"""The bottleneck: latents to the vectors that the decoder gets, found by name.

A quantizer is built as `Quantizer(config: TokenizerConfig)`, says in `channels` how many numbers of every latent it
wants, and gives a QuantizerOutput. A discrete one also has `nearest(latents) -> ids` and `vectors_of(ids) -> vectors`.

Packages add discrete ones as entry points of the group "titokctl.quantizers" (examples/fsq). A network is built without
values, and then its file fills it: what is neither parameter nor persistent buffer must not be a tensor. Only a
parameter `codebook` (V, C) is re-seeded and started by k-means. All of it works in float32, whatever surrounds it.

Letters: B batch, K latent tokens, V codebook size, C token size.
"""

import contextlib
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from titokctl.config.models import TokenizerConfig
from titokctl.config.registry import find
from titokctl.models.precision import precision

# At most this many distances are held at once (256 MiB of float32).
MAX_DISTANCES = 1 << 26


@torch.no_grad()
def nearest(points: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Index (...) int64 of the code with the smallest squared distance, computed in float32.

    Args:
        points: (..., C) of any floating dtype.
        codes: (V, C) of any floating dtype.
    """
    if torch.compiler.is_exporting():  # the batch has no fixed size that could be divided
        return _nearest(points.float(), codes.float())
    # Distances in bfloat16 have 8 bits, in TF32 11: near codes would tie, and ids would depend on the precision around.
    exact = precision("float32", points.device) if points.is_cuda else contextlib.nullcontext()
    with torch.autocast(points.device.type, enabled=False), exact:
        points = points.float()
        codes = codes.to(points.dtype)
        rows = points.reshape(-1, points.shape[-1]).split(max(1, MAX_DISTANCES // len(codes)))
        return torch.cat([_nearest(r, codes) for r in rows]).view(points.shape[:-1])


def _nearest(points: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Points (..., C) and codes (V, C), float32, to (...) int64."""
    norms = codes.square().sum(-1)  # (V,); |point|^2 is left out since it changes no comparison
    rows = points.reshape(-1, points.shape[-1])
    return torch.addmm(norms, rows, codes.T, alpha=-2).argmin(-1).view(points.shape[:-1])


ENTRY_POINTS = "titokctl.quantizers"


class QuantizerOutput(NamedTuple):
    """Outputs of the bottleneck in training; all float32, losses are scalars and zero where they have no meaning.

    `vectors` (B, K, C) pass gradients straight through to the latents; `ids` (B, K) int64, or None without codes.
    """

    vectors: torch.Tensor
    ids: torch.Tensor | None
    codebook_loss: torch.Tensor
    commitment_loss: torch.Tensor
    kl: torch.Tensor


class VectorQuantizer(nn.Module):
    """The nearest of V learned vectors, by squared distance, in float32 whatever surrounds it.

    With normalised codes both sides are scaled to unit length first, and the decoder gets the unit vector.
    Source: VQ-VAE (arXiv 1711.00937); normalised codes from ViT-VQGAN (arXiv 2110.04627).
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        assert config.codebook_size is not None
        self.channels = config.token_size
        self.normalize = config.normalize_codes
        self.commitment_cost = config.commitment_cost
        self.codebook = nn.Parameter(torch.zeros(config.codebook_size, config.token_size))

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        """Latents (B, K, C) to their codes.

        codebook_loss is mean((q - sg(z))^2), commitment_loss is commitment_cost x mean((sg(q) - z)^2).
        """
        return vector_quantize(latents, self.codebook, self.normalize, self.commitment_cost)

    def nearest(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, K, C) to ids (B, K) int64."""
        with _full_precision(latents):
            return nearest(self._on_sphere(latents.float()), self._on_sphere(self.codebook.float()))

    def vectors_of(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids (B, K) to the float32 vectors (B, K, C) that the decoder gets for them."""
        return self._on_sphere(F.embedding(ids, self.codebook).float())

    def _on_sphere(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(x, dim=-1) if self.normalize else x


def vector_quantize(
    latents: torch.Tensor, codebook: torch.Tensor, normalize: bool, commitment_cost: float
) -> QuantizerOutput:
    """Latents (..., C) to the nearest of the codes (V, C), with gradients; losses as in VectorQuantizer."""
    with _full_precision(latents):
        z, codes = latents.float(), codebook.float()
        if normalize:
            z, codes = F.normalize(z, dim=-1), F.normalize(codes, dim=-1)
        ids = nearest(z, codes)  # (...)
        q = F.embedding(ids, codes)  # (..., C)
        codebook_loss = F.mse_loss(q, z.detach())
        commitment_loss = commitment_cost * F.mse_loss(z, q.detach())
        # Written so that the value is q to the bit: the decoder trains on what vectors_of(ids) will give it.
        vectors = q.detach() + (z - z.detach())
    return QuantizerOutput(vectors, ids, codebook_loss, commitment_loss, z.new_zeros(()))


class GaussianBottleneck(nn.Module):
    """A diagonal Gaussian for every latent token: the first C channels are the mean, the last C the log-variance.

    In training mode the decoder gets a draw, in eval mode the mean.
    Source: the VAE (arXiv 1312.6114); log-variance clamped to [-30, 20] as in bytedance/1d-tokenizer, commit 942a96f.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.channels = 2 * config.token_size

    def forward(self, latents: torch.Tensor, noise: torch.Tensor | None = None) -> QuantizerOutput:
        """(B, K, 2C) to vectors (B, K, C); kl is summed over tokens and channels and averaged over the batch.

        `noise` (B, K, C) float32, normal, stands for a fresh draw.
        """
        with _full_precision(latents):
            mean, log_variance = latents.float().chunk(2, -1)  # (B, K, C) each
            log_variance = log_variance.clamp(-30.0, 20.0)
            if self.training:
                drawn = torch.randn_like(mean) if noise is None else noise
                vectors = mean + torch.exp(0.5 * log_variance) * drawn
            else:
                vectors = mean
            kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum((1, 2)).mean()
        zero = mean.new_zeros(())
        return QuantizerOutput(vectors, None, zero, zero, kl)


def build(config: TokenizerConfig) -> nn.Module:
    """The quantizer that `config.quantizer` names. Raises UserError when there is none."""
    built_in = {"vq": VectorQuantizer, "gaussian": GaussianBottleneck}
    return find("quantizer", config.quantizer, built_in, ENTRY_POINTS)(config)


def _full_precision(x: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Disable autocast; an exported graph has none, and its formats know no such context."""
    return contextlib.nullcontext() if torch.compiler.is_exporting() else torch.autocast(x.device.type, enabled=False)
