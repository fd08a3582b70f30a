"""The transformer of the flow: DiT (arXiv 2212.09748) over latent tokens, with time and label in adaptive norms.

Letters: B batch, K latent tokens, D width, C token size.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from titokctl.config.models import FlowConfig
from titokctl.models.transformer import Mlp, SelfAttention, run_block

_FREQUENCIES = 128
_SLOWEST = 10_000.0
_TIME_SCALE = 1_000.0  # times in [0, 1] as the steps of a diffusion, for which the frequencies were chosen


class FlowTransformer(nn.Module):
    """Points on the way from noise to latents, their time and label, to velocities."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.recompute = False  # blocks again in the backward pass, to save memory
        width = config.width
        self.input = nn.Linear(config.token_size, width)
        self.position_embedding = nn.Embedding(config.num_latent_tokens, width)
        self.label_embedding = nn.Embedding(config.num_classes + 1, width)
        self.time_in, self.time_out = nn.Linear(2 * _FREQUENCIES, width), nn.Linear(width, width)
        self.blocks = nn.ModuleList(FlowBlock(config) for _ in range(config.num_layers))
        self.modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, config.token_size)

    def forward(self, points: torch.Tensor, labels: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Return the velocities (B, K, C) float32 at `points` (B, K, C) and `times` (B,) float32 in [0, 1]."""
        positions = self.position_embedding.weight
        x = self.input(points.to(positions.dtype)) + positions  # (B, K, D)
        waves = time_waves(times).to(positions.dtype)  # (B, 256)
        condition = self.time_out(F.silu(self.time_in(waves))) + self.label_embedding(labels)  # (B, D)
        condition = F.silu(condition)
        for block in self.blocks:
            x = run_block(block, x, self.recompute, condition)
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)  # (B, 1, D) each
        return self.output(_normalized(x) * (1 + scale) + shift).float()

    @torch.no_grad()
    def begin_at_zero(self) -> None:
        """Make every block the identity and every velocity 0, as DiT begins."""
        for name, parameter in self.named_parameters():
            if "modulation." in name or name.startswith("output."):
                nn.init.zeros_(parameter)


class FlowBlock(nn.Module):
    """Attention and a two-layer perceptron; the condition shifts, scales and gates both."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config.width, config.num_heads)
        self.mlp = Mlp(config.width, config.mlp_ratio * config.width)
        self.modulation = nn.Linear(config.width, 6 * config.width)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """(B, K, D) and (B, D) -> (B, K, D)."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = x + gate * self.attention(_normalized(x) * (1 + scale) + shift)
        return x + mlp_gate * self.mlp(_normalized(x) * (1 + mlp_scale) + mlp_shift)


def time_waves(times: torch.Tensor) -> torch.Tensor:
    """Return cosines and sines (B, 256) float32 of times (B,), at frequencies that fall from 1 to 1/10,000."""
    steps = torch.arange(_FREQUENCIES, device=times.device, dtype=torch.float32)
    frequencies = torch.exp(-math.log(_SLOWEST) * steps / _FREQUENCIES)
    angles = _TIME_SCALE * times.float()[:, None] * frequencies  # (B, 128)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _normalized(x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:])
