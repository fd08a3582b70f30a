"""Exponential moving average of weights, with the published warm-up."""

import torch
from torch import nn


def ema_decay(update: int, max_decay: float) -> float:
    """Decay of the `update`-th update (0-based): 0 first, then min(max_decay, (1 + t) / (10 + t)) with t = update."""
    return 0.0 if update == 0 else min(max_decay, (1 + update) / (10 + update))


class Ema:
    """A shadow of a module's parameters and buffers.

    Args:
        module: what is averaged; the shadow starts as a copy.
        max_decay: decay after the warm-up.
    """

    def __init__(self, module: nn.Module, max_decay: float) -> None:
        self.max_decay = max_decay
        self.updates = 0
        self.shadow = {name: t.detach().clone() for name, t in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the shadow towards `module`; tensors that are not floating point are copied."""
        weight = 1 - ema_decay(self.updates, self.max_decay)
        self.updates += 1
        pairs = [(self.shadow[name], t.detach()) for name, t in module.state_dict().items()]
        floats = [(s, t) for s, t in pairs if s.is_floating_point()]
        torch._foreach_lerp_([s for s, _ in floats], [t for _, t in floats], weight)
        for shadow, tensor in pairs:
            if not shadow.is_floating_point():
                shadow.copy_(tensor)
