"""Flow matching over the latents of a Gaussian tokenizer (arXiv 2210.02747).

Noise is carried to latents along a velocity field that a transformer learns. A point on the way is
x = (1 - t) e + t z, with noise e at t = 0 and standardised latents z at t = 1; the velocity is z - e. Training draws t
from the logit-normal distribution (arXiv 2403.03206); sampling walks from 0 to 1 in equal steps.

Letters: B batch, K latent tokens, C token size.
"""

import math

import torch

from titokctl.config.models import FlowConfig
from titokctl.config.recipe import FlowLossConfig, FlowRecipe
from titokctl.config.sampling import FlowSampling
from titokctl.models.device import in_float64
from titokctl.models.flow.transformer import FlowTransformer
from titokctl.models.generator import Batch, Drawn, Generator, Losses, TrainingStep
from titokctl.models.guidance import guided, strength
from titokctl.models.noise import Noise


class FlowGenerator(Generator):
    """A generator of latents. What the interface calls ids are latents (B, K, C) float32 here, in rows and in samples.

    `latent_mean` and `latent_deviation` (C,) standardise the latents; they are those of the training data.
    """

    recipe = FlowRecipe
    config: FlowConfig

    def __init__(self, config: FlowConfig) -> None:
        super().__init__(config)
        self.transformer = FlowTransformer(config)
        self.register_buffer("latent_mean", torch.zeros(config.token_size))
        self.register_buffer("latent_deviation", torch.ones(config.token_size))
        self.latent_mean: torch.Tensor
        self.latent_deviation: torch.Tensor

    def forward(
        self, ids: torch.Tensor, labels: torch.Tensor | None = None, times: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the velocities (B, K, C) float32.

        Args:
            ids: points (B, K, C) between noise and standardised latents.
            labels: (B,) integers in [0, num_classes]; num_classes, or None for the whole batch, is the null label.
            times: (B,) in [0, 1]; None is 0 for the whole batch.
        """
        if labels is None:
            labels = torch.full((len(ids),), self.config.num_classes, device=ids.device)
        if times is None:
            times = torch.zeros(len(ids), device=ids.device)
        return self.transformer(ids, labels, times)

    def example_inputs(self, count: int) -> tuple[torch.Tensor, ...]:
        """Return points and labels of `count` images, on the device of the weights."""
        device = self.latent_mean.device
        points = torch.zeros(count, self.config.num_latent_tokens, self.config.token_size, device=device)
        return points, torch.zeros(count, dtype=torch.int64, device=device)

    @torch.no_grad()
    def begin_training(self, rows: torch.Tensor) -> None:
        """Take mean and deviation of each channel from latents (N, K, C), and begin with velocities of 0."""
        flat = in_float64(rows).flatten(0, 1)
        self.latent_mean.copy_(flat.mean(0))
        self.latent_deviation.copy_(flat.std(0, correction=0).clamp(min=1e-6))
        self.transformer.begin_at_zero()

    def draw(self, count: int, settings: FlowLossConfig, draws: torch.Generator, step: TrainingStep) -> Drawn:
        """Draw the time (B,) and the noise (B, K, C) of each image, and which labels are dropped."""
        normal = torch.randn(count, generator=draws)
        times = torch.sigmoid(settings.time_mean + settings.time_deviation * normal)
        shape = (count, self.config.num_latent_tokens, self.config.token_size)
        noise = torch.randn(shape, generator=draws)
        dropped = torch.rand(count, generator=draws) < settings.label_dropout
        return Drawn(dropped, float(math.prod(shape)), {"times": times, "noise": noise})

    def loss(self, batch: Batch, settings: FlowLossConfig) -> Losses:
        """Return the squared error of the velocities, summed over tokens and channels."""
        noise, times = batch.tensors["noise"], batch.tensors["times"]
        latents = (batch.ids - self.latent_mean) / self.latent_deviation  # (B, K, C)
        share = times[:, None, None]
        velocities = self((1 - share) * noise + share * latents, batch.labels, times)
        return Losses((velocities - (latents - noise)).square().sum(), {})

    @torch.inference_mode()
    def sample(self, labels: torch.Tensor | None, settings: FlowSampling, noise: Noise) -> torch.Tensor:
        """Draw latents (B, K, C) float32: walk from noise at t = 0 to t = 1.

        Guidance extrapolates velocities as it does logits, with the strength of the beginning of each step. Heun's
        method takes the mean velocity of the beginning and the end of an Euler step (arXiv 2206.00364, algorithm 1).
        """
        x, steps = noise.normal(self.config.num_latent_tokens, self.config.token_size), settings.num_steps
        for step in range(steps):
            scale = strength(settings, step / steps)
            first = self._velocity(x, labels, step / steps, scale)
            ahead = x + first / steps
            if settings.solver == "heun":
                ahead = x + (first + self._velocity(ahead, labels, (step + 1) / steps, scale)) / (2 * steps)
            x = ahead
        return x * self.latent_deviation + self.latent_mean

    def operations(self) -> float:
        """Return the operations to train on one image: those of the modulations once, of all else at each token."""
        parts = {name: p.numel() for name, p in self.named_parameters()}
        once = sum(count for name, count in parts.items() if "modulation" in name or "time_" in name)
        return 6.0 * (once + (sum(parts.values()) - once) * self.config.num_latent_tokens)

    def _velocity(self, x: torch.Tensor, labels: torch.Tensor | None, time: float, scale: float) -> torch.Tensor:
        """Return guided velocities (B, K, C) at one time; without guidance or labels in a single pass."""
        if scale == 0 or labels is None:
            return self(x, labels, torch.full((len(x),), time, device=x.device))
        both = torch.cat([labels, torch.full_like(labels, self.config.num_classes)])
        return guided(self(x.repeat(2, 1, 1), both, torch.full((2 * len(x),), time, device=x.device)), scale)
