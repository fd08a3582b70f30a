"""Classifier-free guidance, in one definition: l = c + s x ramp x (c - u), s = 0 being off.

`c` are the logits with the label, `u` those with the null label. Others write l = u + w (c - u); that w is s + 1.
"""

import math

from titokctl.config.sampling import SamplingConfig

S_FORM = "l = c + s * ramp * (c - u); s = 0 is off; c: logits with the label, u: with the null label"
W_FORM = "l = u + w * (c - u), which is the same at w = 1 + s * ramp; w = 1 is off (DiT, diffusers)"


def strength(config: SamplingConfig, step: int) -> float:
    """s x ramp at `step` (0-based) of `config.num_steps`, a plain number.

    Ramps: constant 1; linear k/S, so it starts at 0 and never reaches 1; power-cosine (1 - cos(pi (k/S)^p)) / 2.
    """
    t = step / config.num_steps
    ramps = {
        "constant": 1.0,
        "linear": t,
        "power-cosine": (1 - math.cos(math.pi * t**config.guidance_power)) / 2,
    }
    return config.guidance_scale * ramps[config.guidance_schedule]
