"""A causal generator for titokctl: a transformer that predicts each id from the label and the ids before it.

Letters: B batch, K latent tokens, D width, H heads, V codebook size.
Source: "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation" (arXiv 2406.06525), in its smallest
form: learned positions, the label as the first token, and guidance by dropped labels.
"""

from typing import Literal

import torch
from pydantic import model_validator
from torch import nn
from torch.nn import functional as F

from titokctl.config.base import Config, Fraction, PositiveInt
from titokctl.config.models import GeneratorSizes
from titokctl.config.recipe import GeneratorRecipe
from titokctl.config.sampling import GuidanceConfig
from titokctl.models.generator import Batch, Drawn, Generator, Losses, TrainingStep
from titokctl.models.guidance import guided, strength
from titokctl.models.noise import Noise


class CausalConfig(GeneratorSizes):
    """The section `model` of a recipe."""

    kind: Literal["causal"]
    width: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "CausalConfig":
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        return self


class CausalLossConfig(Config):
    """The section `loss` of a recipe."""

    label_dropout: Fraction = 0.1


class CausalRecipe(GeneratorRecipe):
    """A run of train-gen that trains a causal generator."""

    model: CausalConfig
    loss: CausalLossConfig = CausalLossConfig()


class CausalGenerator(Generator):
    """The ids of an image from the first to the last, each given the label and those before it."""

    recipe = CausalRecipe

    def __init__(self, config: CausalConfig) -> None:
        super().__init__(config)
        self.label_embedding = nn.Embedding(config.num_classes + 1, config.width)
        self.token_embedding = nn.Embedding(config.codebook_size, config.width)
        self.position_embedding = nn.Embedding(config.num_latent_tokens, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.num_heads) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.codebook_size)

    def forward(self, ids: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Return the logits (B, K, V) float32; those of position k depend on the label and on ids before k."""
        if labels is None:
            labels = torch.full((len(ids),), self.config.num_classes, device=ids.device)
        first = self.label_embedding(labels)[:, None]  # (B, 1, D)
        x = torch.cat([first, self.token_embedding(ids[:, :-1])], dim=1)  # (B, K, D)
        x = x + self.position_embedding.weight
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).float()

    def draw(self, count: int, settings: CausalLossConfig, draws: torch.Generator, step: TrainingStep) -> Drawn:
        """Draw which labels are dropped; each id of each image counts once."""
        dropped = torch.rand(count, generator=draws) < settings.label_dropout
        return Drawn(dropped, float(count * self.config.num_latent_tokens), {})

    def loss(self, batch: Batch, settings: CausalLossConfig) -> Losses:
        """Return the summed cross-entropy of all ids, and the share of ids that are the most likely ones."""
        logits = self(batch.ids, batch.labels)
        total = F.cross_entropy(logits.flatten(0, 1), batch.ids.flatten(), reduction="sum")
        return Losses(total, {"accuracy": (logits.detach().argmax(-1) == batch.ids).float().mean()})

    @torch.inference_mode()
    def sample(self, labels: torch.Tensor | None, settings: GuidanceConfig, noise: Noise) -> torch.Tensor:
        """Draw id after id; the network runs over all positions each time, which keeps the example short."""
        tokens, count = self.config.num_latent_tokens, len(noise.image_indices)
        noise.prepare(tokens, tokens)
        ids = torch.zeros(count, tokens, dtype=torch.int64, device=noise.image_indices.device)
        for step in range(tokens):
            scale = strength(settings, step / tokens)
            if scale == 0 or labels is None:
                scores = self(ids, labels)[:, step]  # (B, V)
            else:
                both = torch.cat([labels, torch.full_like(labels, self.config.num_classes)])
                scores = guided(self(ids.repeat(2, 1), both)[:, step], scale)
            position = torch.full_like(ids[:, :1], step)
            ids = ids.scatter(1, position, noise.choose(scores[:, None], 1.0, step, position))
        return ids


class Block(nn.Module):
    """Causal attention and a two-layer perceptron, each normalised before and added to its input."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = CausalAttention(width, num_heads)
        self.mlp_in, self.mlp_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, K, D) -> (B, K, D)."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))


class CausalAttention(nn.Module):
    """Self-attention in which no position sees a later one."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, K, D) -> (B, K, D)."""
        packed = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, K, 3, H, D/H)
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x (B, H, K, D/H)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))
