"""Settings of sampling and of classifier-free guidance."""

from typing import Literal

from titokctl.config.base import Config, NonNegativeFloat, PositiveFloat, PositiveInt

GuidanceSchedule = Literal["constant", "linear", "power-cosine"]


class SamplingConfig(Config):
    """Settings of sampling.

    `guidance_scale` is the s of l = c + s x ramp x (c - u): 0 switches guidance off, and DiT's or diffusers' scale is
    this one plus 1. `choice_temperature` scales the Gumbel noise of step k by (1 - (k + 1) / num_steps).
    """

    num_steps: PositiveInt = 8
    guidance_scale: NonNegativeFloat = 4.5
    guidance_schedule: GuidanceSchedule = "linear"
    guidance_power: PositiveFloat = 3.0
    choice_temperature: NonNegativeFloat = 9.5
    softmax_annealing: bool = True
    seed: int = 0
