"""TiTok's two transformers: the encoder turns an image and K learned latent tokens into K latents, the decoder turns
K code vectors into one vector for every image patch, of which its head makes pixels or logits of proxy codes.

Letters: B batch, N image patches (h x w), K latent tokens, D width, C channels of a latent or of a code, p patch size.
Source: the TiTok paper, section 3.2 (arXiv 2406.07550).
"""

import math

import torch
from torch import nn

from titokctl.config.models import TokenizerConfig
from titokctl.models.transformer import Block, run_block


def to_patches(images: torch.Tensor, size: int) -> torch.Tensor:
    """(B, 3, h p, w p) to (B, N, 3 p p); inside a patch colour comes first, as in a convolution's kernel."""
    tiles = images.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # (B, 3, h, p, w, p)
    return tiles.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def from_patches(patches: torch.Tensor, size: int) -> torch.Tensor:
    """(B, N, p p 3) of a square grid to (B, 3, h p, w p); inside a patch colour comes last."""
    grid = math.isqrt(patches.shape[1])
    tiles = patches.unflatten(2, (size, size, 3)).unflatten(1, (grid, grid))  # (B, h, w, p, p, 3)
    return tiles.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def from_overlapping_patches(patches: torch.Tensor, size: int) -> torch.Tensor:
    """(B, N, 4 p p 3) to (B, 3, h p, w p), the weighted sum of patches of 2p x 2p at steps of p = `size`.

    p is even. A patch reaches p / 2 beyond its square on each side, where its weight falls to zero, so that there are
    no seams; what reaches beyond the picture is cut off. Inside a patch its quarters come first.
    """
    half = size // 2
    weights = hann(2 * size, patches.device, patches.dtype)
    quarters = patches.chunk(4, 2)  # 4 x (B, N, p p 3)
    edge = math.isqrt(patches.shape[1]) * size
    out = patches.new_zeros(patches.shape[0], 3, edge + size, edge + size)
    for i in range(2):
        for j in range(2):
            window = weights[i * size : (i + 1) * size, None] * weights[j * size : (j + 1) * size]
            part = quarters[2 * i + j] * window[..., None].expand(-1, -1, 3).flatten()
            out[:, :, i * size : i * size + edge, j * size : j * size + edge] += from_patches(part, size)
    return out[:, :, half : half + edge, half : half + edge]


def hann(length: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return weights (length,) that rise from 0 and fall again; with those half a length away they add up to 1."""
    places = (torch.arange(length, device=device, dtype=torch.float32) + 0.5) * (math.pi / length)
    return places.sin().square().to(dtype)


class Encoder(nn.Module):
    """Patches and latent tokens through one transformer; only the latent tokens are kept.

    Args:
        config: the tokenizer's.
        channels: C, what the quantizer wants of every latent token.
    """

    def __init__(self, config: TokenizerConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        vit = config.encoder
        width, num_patches = vit.width, (config.image_size // vit.patch_size) ** 2
        self.patch_embed = nn.Linear(3 * vit.patch_size**2, width)
        self.class_embedding = nn.Parameter(torch.zeros(1, width))
        self.positional_embedding = nn.Parameter(torch.zeros(num_patches + 1, width))
        self.latent_positional_embedding = nn.Parameter(torch.zeros(config.num_latent_tokens, width))
        self.recompute = False  # blocks again in the backward pass, to save memory
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, vit.num_heads, vit.mlp_ratio) for _ in range(vit.num_layers))
        self.norm_out = nn.LayerNorm(width)
        self.to_latents = nn.Linear(width, channels)

    def forward(self, images: torch.Tensor, latent_tokens: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) in [0, 1] and (K, D) to (B, K, C)."""
        batch = images.shape[0]  # len() would fix the batch size of an exported graph
        patches = self.patch_embed(to_patches(images, self.config.encoder.patch_size))  # (B, N, D)
        x = torch.cat([self.class_embedding.expand(batch, 1, -1), patches], 1) + self.positional_embedding
        latents = latent_tokens + self.latent_positional_embedding  # (K, D)
        x = torch.cat([x, latents.expand(batch, -1, -1)], 1)  # (B, 1 + N + K, D)
        x = self.norm_in(x)
        for block in self.blocks:
            x = run_block(block, x, self.recompute)
        x = self.norm_out(x[:, -len(latents) :])  # (B, K, D)
        if self.config.shuffled_bottleneck:
            x = shuffle(x)
        return self.to_latents(x)  # (B, K, C)


def shuffle(x: torch.Tensor) -> torch.Tensor:
    """(B, K, D) with its memory read as (B, D, K): every output token mixes values of all K.

    The released S-128, B-64 and L-32 were trained with this slip (a reshape where a transpose was meant), so their
    weights only work with it.
    """
    batch, count, width = x.shape
    # Contiguous, because a linear layer over strided rows rounds otherwise for one image than for several.
    return x.reshape(batch, width, count).transpose(1, 2).contiguous()


class Decoder(nn.Module):
    """Mask tokens and code vectors through one transformer; only the places of the mask tokens are kept."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        vit = config.decoder
        width = vit.width
        self.num_patches = (config.image_size // vit.patch_size) ** 2
        self.code_embed = nn.Linear(config.token_size, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.class_embedding = nn.Parameter(torch.zeros(1, width))
        self.positional_embedding = nn.Parameter(torch.zeros(self.num_patches + 1, width))
        self.latent_positional_embedding = nn.Parameter(torch.zeros(config.num_latent_tokens, width))
        self.recompute = False  # blocks again in the backward pass, to save memory
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, vit.num_heads, vit.mlp_ratio) for _ in range(vit.num_layers))
        self.norm_out = nn.LayerNorm(width)
        self.head = ProxyHead(config) if config.proxy else PixelHead(width, vit.patch_size, config.overlapping_patches)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """(B, K, C) to what the head gives: pixels (B, 3, S, S), or logits (B, N, proxy codes)."""
        batch = vectors.shape[0]  # len() would fix the batch size of an exported graph
        codes = self.code_embed(vectors) + self.latent_positional_embedding  # (B, K, D)
        masks = self.mask_token.expand(batch, self.num_patches, -1)  # (B, N, D)
        x = torch.cat([self.class_embedding.expand(batch, 1, -1), masks], 1) + self.positional_embedding
        x = torch.cat([x, codes], 1)  # (B, 1 + N + K, D)
        x = self.norm_in(x)
        for block in self.blocks:
            x = run_block(block, x, self.recompute)
        x = self.norm_out(x[:, 1 : 1 + self.num_patches])  # (B, N, D)
        return self.head(x)


class PixelHead(nn.Module):
    """A patch of pixels from every vector, then a 3x3 convolution over the seams.

    Overlapping patches are twice as large and fade into each other.
    """

    def __init__(self, width: int, patch_size: int, overlapping: bool = False) -> None:
        super().__init__()
        self.patch_size, self.overlapping = patch_size, overlapping
        self.to_pixels = nn.Linear(width, 3 * patch_size**2 * (4 if overlapping else 1))
        self.smooth = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, N, D)
        joined = from_overlapping_patches if self.overlapping else from_patches
        pixels = joined(self.to_pixels(x), self.patch_size)  # (B, 3, h p, w p)
        return self.smooth(pixels)


class ProxyHead(nn.Module):
    """Logits over the proxy tokenizer's codes at every place of the grid."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        assert config.proxy is not None
        width = config.decoder.width
        self.hidden = nn.Linear(width, 2 * width)
        self.logits = nn.Linear(2 * width, config.proxy.codebook_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, N, D)
        return self.logits(torch.tanh(self.hidden(x)))  # (B, N, proxy codes)
