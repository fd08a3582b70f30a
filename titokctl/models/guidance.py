"""Classifier-free guidance in the s-form: l = c + s x ramp x (c - u); s = 0 is off.

`c` are the logits with the label, `u` those with the null label. Others write l = u + w (c - u); that w is s + 1.
"""

import math

import torch

from titokctl.config.sampling import GuidanceConfig

S_FORM = "l = c + s * ramp * (c - u); s = 0 is off; c: logits with the label, u: with the null label"
W_FORM = "l = u + w * (c - u), which is the same at w = 1 + s * ramp; w = 1 is off (DiT, diffusers)"


def strength(config: GuidanceConfig, time: float) -> float:
    """Return s x ramp, a plain number, at `time` in [0, 1): the share of the sampling steps that are done.

    Ramps: constant 1; linear t, so it starts at 0 and never reaches 1; power-cosine (1 - cos(pi t^p)) / 2. Outside the
    guidance interval [A, B) the strength is 0 (arXiv 2404.07724).
    """
    begin, end = config.guidance_interval
    if not begin <= time < end:
        return 0.0
    ramps = {
        "constant": 1.0,
        "linear": time,
        "power-cosine": (1 - math.cos(math.pi * time**config.guidance_power)) / 2,
    }
    return config.guidance_scale * ramps[config.guidance_schedule]


def guided(both: torch.Tensor, scale: float) -> torch.Tensor:
    """Return guided logits (B, ...) of (2B, ...): first those with the label, then those with the null label."""
    with_label, without = both.chunk(2)
    return with_label + scale * (with_label - without)
