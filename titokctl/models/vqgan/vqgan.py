"""MaskGIT-VQGAN: the proxy tokenizer whose codes the two-stage recipe predicts.

Letters: B batch, H x W pixels, h x w codes (H / 16 and W / 16 for the published one), C token size.
Source: MaskGIT (arXiv 2202.04200), with the oddities of its released weights.
"""

import torch
from torch import nn
from torch.nn import functional as F

from titokctl.config.models import VqganConfig
from titokctl.models.titok.quantizers import nearest
from titokctl.models.vqgan.layers import Pointwise, conv3x3, norm, res_blocks


class VqganEncoder(nn.Module):
    """(B, 3, H, W) in [0, 1] to (B, C, h, w): residual blocks, halved by averaging between levels."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.channel_multipliers]
        self.conv_in = conv3x3(3, config.channels, bias=False)
        self.levels = nn.ModuleList(
            res_blocks(before, after, config.num_res_blocks)
            for before, after in zip([config.channels, *widths], widths, strict=False)
        )
        self.middle = res_blocks(widths[-1], widths[-1], 2)
        self.norm_out = norm(widths[-1])
        self.conv_out = Pointwise(widths[-1], config.token_size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(images)
        for i, level in enumerate(self.levels):
            x = level(x if i == 0 else F.avg_pool2d(x, 2))
        return self.conv_out(F.silu(self.norm_out(self.middle(x))))


class VqganDecoder(nn.Module):
    """(B, C, h, w) to (B, 3, H, W), not clamped: residual blocks, doubled by repeating places between levels."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in reversed(config.channel_multipliers)]  # coarse to fine
        self.conv_in = conv3x3(config.token_size, widths[0])
        self.middle = res_blocks(widths[0], widths[0], 2)
        self.levels = nn.ModuleList(
            res_blocks(before, after, config.num_res_blocks)
            for before, after in zip([widths[0], *widths], widths, strict=False)
        )
        self.upsample = nn.ModuleList(conv3x3(width, width) for width in widths[:-1])
        self.norm_out = norm(widths[-1])
        self.conv_out = conv3x3(widths[-1], 3)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        x = self.middle(self.conv_in(vectors))
        for i, level in enumerate(self.levels):
            x = level(x)
            if i < len(self.upsample):
                x = self.upsample[i](F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(x)))


class MaskGitVqgan(nn.Module):
    """Encoder, codebook and decoder; any image size that is a multiple of `config.downsampling`."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = VqganEncoder(config)
        self.codebook = nn.Parameter(torch.zeros(config.codebook_size, config.token_size))
        self.decoder = VqganDecoder(config)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [0, 1] to vectors (B, C, h, w) before quantizing."""
        return self.encoder(images)

    def codes(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [0, 1] to proxy codes (B, h, w) int64, the nearest in float32."""
        return nearest(self.encode(images).movedim(1, -1), self.codebook)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Proxy codes (B, h, w) int64 to pixels (B, 3, H, W), not clamped."""
        # Contiguous: GroupNorm over channels-last memory rounds by how threads share a batch.
        return self.decoder(F.embedding(codes, self.codebook).movedim(-1, 1).contiguous())

    @torch.inference_mode()
    def tokenize(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) in [0, 1] to proxy codes (B, N) int64, row by row of the grid."""
        return self.codes(images).flatten(1)

    @torch.inference_mode()
    def detokenize(self, codes: torch.Tensor) -> torch.Tensor:
        """Convert proxy codes (B, N) as `tokenize` returns them to images (B, 3, S, S) float32 in [0, 1]."""
        grid = round(codes.shape[1] ** 0.5)
        return self.decode(codes.unflatten(1, (grid, grid))).float().clamp(0, 1)

    # The names of a TiTok's methods that never wait for the device; a VQGAN's check nothing.
    tokenize_unchecked, detokenize_unchecked = tokenize, detokenize


class ProxyPixels(nn.Module):
    """MaskGIT-VQGAN's codebook and decoder, fine-tuned in stage 2 on mixtures of code vectors."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.zeros(config.codebook_size, config.token_size))
        self.decoder = VqganDecoder(config)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (B, N, proxy codes) of a square grid to pixels (B, 3, H, W), not clamped."""
        grid = round(logits.shape[1] ** 0.5)
        mixture = torch.softmax(logits.float(), -1).to(self.codebook.dtype) @ self.codebook  # (B, N, C)
        # Contiguous: GroupNorm over channels-last memory rounds by how threads share a batch.
        return self.decoder(mixture.mT.unflatten(2, (grid, grid)).contiguous())
