"""The obvious way to do it, to be compared with: float32, eager, torch's attention modules, one pass after the other.

Each takes its weights from one of our networks, so that both compute the same function.
Letters: B batch, K latent tokens, L sequence, D width, V codebook size.
"""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from titokctl.config.sampling import SamplingConfig
from titokctl.models.maskgit.generator import MaskGit
from titokctl.models.maskgit.vit import VitBody
from titokctl.models.titok.tokenizer import TiTok
from titokctl.models.titok.vit import shuffle
from titokctl.models.transformer import Block, SelfAttention


def attention_of(ours: SelfAttention) -> nn.MultiheadAttention:
    """nn.MultiheadAttention with the same weights."""
    width = ours.out.out_features
    with torch.device("meta"):
        plain = nn.MultiheadAttention(width, ours.num_heads, bias=ours.qkv.bias is not None, batch_first=True)
    plain.in_proj_weight, plain.in_proj_bias = ours.qkv.weight, ours.qkv.bias
    plain.out_proj.weight, plain.out_proj.bias = ours.out.weight, ours.out.bias
    return plain.eval()


class PlainBlock(nn.Module):
    """A pre-norm block of the tokenizer around nn.MultiheadAttention."""

    def __init__(self, ours: Block) -> None:
        super().__init__()
        self.attention = attention_of(ours.attention)
        self.norms = nn.ModuleList([ours.attention_norm, ours.mlp_norm])
        self.mlp = nn.Sequential(ours.mlp.up, nn.GELU(), ours.mlp.down)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, L, D)
        normed = self.norms[0](x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.norms[1](x))


class PlainTokenizer(nn.Module):
    """TiTok with those blocks; patches by a strided convolution, pixels by a contiguous float32 decoder."""

    def __init__(self, ours: TiTok) -> None:
        super().__init__()
        self.ours = ours
        self.encoder = nn.ModuleList(PlainBlock(block) for block in ours.encoder.blocks)
        self.decoder = nn.ModuleList(PlainBlock(block) for block in ours.decoder.blocks)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) in [0, 1] to latents (B, K, C)."""
        ours, size = self.ours.encoder, self.ours.config.encoder.patch_size
        kernel = ours.patch_embed.weight.unflatten(1, (3, size, size))
        patches = F.conv2d(images, kernel, ours.patch_embed.bias, stride=size).flatten(2).mT  # (B, N, D)
        x = torch.cat([ours.class_embedding.expand(len(images), 1, -1), patches], 1) + ours.positional_embedding
        latents = self.ours.latent_tokens + ours.latent_positional_embedding
        x = ours.norm_in(torch.cat([x, latents.expand(len(images), -1, -1)], 1))
        for block in self.encoder:
            x = block(x)
        x = ours.norm_out(x)[:, -len(latents) :]
        return ours.to_latents(shuffle(x) if self.ours.config.shuffled_bottleneck else x)

    def detokenize(self, ids: torch.Tensor) -> torch.Tensor:
        """(B, K) ids to pixels (B, 3, S, S) in [0, 1]."""
        ours = self.ours.decoder
        codes = ours.code_embed(self.ours.quantizer.vectors_of(ids)) + ours.latent_positional_embedding
        masks = ours.mask_token.repeat(len(ids), ours.num_patches, 1)
        x = torch.cat([ours.class_embedding.expand(len(ids), 1, -1), masks], 1) + ours.positional_embedding
        x = ours.norm_in(torch.cat([x, codes], 1))
        for block in self.decoder:
            x = block(x)
        pixels = ours.head(ours.norm_out(x)[:, 1 : 1 + ours.num_patches])
        if self.ours.proxy_pixels is not None:
            pixels = self.ours.proxy_pixels(pixels)
        return pixels.clamp(0, 1)


class PlainGenerator(nn.Module):
    """The ViT generator as nn.TransformerEncoderLayers."""

    def __init__(self, ours: MaskGit) -> None:
        super().__init__()
        if not isinstance(ours.body, VitBody):
            raise ValueError(f"expected a generator with a vit body, got {ours.config.architecture!r}")
        self.ours, config = ours, ours.config
        self.layers = nn.ModuleList()
        for layer in ours.body.layers:
            with torch.device("meta"):
                plain = nn.TransformerEncoderLayer(
                    config.width, config.num_heads, config.mlp_width, 0.0, "gelu", 1e-12, batch_first=True
                )
            plain.self_attn = attention_of(layer.attention)
            plain.linear1, plain.linear2 = layer.mlp_in, layer.mlp_out
            plain.norm1, plain.norm2 = layer.attention_norm, layer.mlp_norm
            self.layers.append(plain.eval())

    def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(B, K) ids and (B,) labels to logits (B, K, V)."""
        body = self.ours.body
        tokens = torch.cat([labels[:, None] + self.ours.config.mask_id + 1, ids], 1)
        x = body.token_embedding(tokens) + body.position_embedding.weight + body.type_embedding.weight[0]
        x = body.norm(x)
        for layer in self.layers:
            x = layer(x)
        return self.ours.head(x[:, 1:])


def sample(generator: nn.Module, labels: torch.Tensor, config: SamplingConfig, codes: int, tokens: int) -> torch.Tensor:
    """Ids (B, K) by parallel decoding: two passes a step, logits and Gumbel noise everywhere; needs a linear ramp."""
    mask, null = codes, torch.full_like(labels, generator.ours.config.num_classes)
    ids = torch.full((len(labels), tokens), mask, device=labels.device)
    for step in range(config.num_steps):
        ratio = (step + 1) / config.num_steps
        temperature = config.choice_temperature * (1 - ratio)
        logits = generator(ids, labels)
        if config.guidance_scale:
            unconditional = generator(ids, null)
            logits = logits + config.guidance_scale * step / config.num_steps * (logits - unconditional)
        logits = logits / (0.5 + 0.8 * (1 - ratio)) if config.softmax_annealing else logits
        known = ids != mask
        drawn = torch.where(known, ids, (logits + temperature * gumbel_like(logits)).argmax(-1))
        confidence = logits.gather(-1, drawn[..., None]).squeeze(-1)
        confidence = (confidence + temperature * gumbel_like(confidence)).masked_fill(known, math.inf)
        left = max(1, min(int((~known).sum(1).min()) - 1, math.floor(tokens * math.acos(ratio) / (math.pi / 2))))
        ids = drawn
        if step + 1 < config.num_steps:
            ids = drawn.scatter(1, confidence.argsort(1)[:, :left], mask)
    return ids


def gumbel_like(x: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise of the same shape."""
    return -torch.log(-torch.log(torch.rand_like(x).clamp(min=1e-20)).clamp(min=1e-20))


def pillow_square(image: Image.Image, size: int) -> Image.Image:
    """The shorter edge resized to `size` (bicubic), and the middle of that."""
    width, height = image.size
    w, h = (size, int(size * height / width)) if width < height else (int(size * width / height), size)
    left, top = round((w - size) / 2), round((h - size) / 2)
    return image.resize((w, h), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))


class PillowImages(Dataset[torch.Tensor]):
    """Image files for a torch DataLoader: squares as float (3, S, S) in [0, 1]."""

    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        square = np.array(pillow_square(Image.open(self.paths[index]).convert("RGB"), self.size))
        return torch.from_numpy(square).movedim(-1, 0) / 255


def save_each(folder: Path, rows: np.ndarray, first: int = 0) -> None:
    """A .npy file for each image, numbered from `first`."""
    for number, row in enumerate(rows, first):
        np.save(folder / f"{number:08d}.npy", row)
