"""The loss scale of training in fp16.

fp16 has numbers down to 6e-8 only, and most gradients of a network are smaller. So the loss is multiplied by a large
factor before the backward pass, and the gradients are divided by it afterwards. A step that overflows is skipped and
halves the factor; many finite steps double it. Source: arXiv 1710.03740, section 3.2, with the values of
torch.amp.GradScaler. The factor stays on the device, so that the host never waits for it.
"""

from collections.abc import Sequence

import torch

_FIRST, _SMALLEST, _LARGEST = 2.0**16, 1.0, 2.0**24
_FINITE_STEPS_TO_GROW = 2000


class LossScale:
    """The factor, a power of two, and the number of finite steps since it changed.

    Args:
        device: where the gradients are.
    """

    def __init__(self, device: torch.device) -> None:
        self.factor = torch.full((), _FIRST, device=device)
        self._finite_steps = torch.zeros((), dtype=torch.int64, device=device)

    def unscale(self, gradients: Sequence[torch.Tensor]) -> None:
        """Divide gradients by the factor, in place."""
        torch._foreach_mul_(list(gradients), 1 / self.factor)

    def is_smallest(self) -> torch.Tensor:
        """Return a flag on the device: True if a step that is not finite can't be the fault of the factor."""
        return self.factor <= _SMALLEST

    def update(self, is_finite: torch.Tensor) -> None:
        """Choose the factor of the next step, after one whose gradients were finite, or not."""
        steps = (self._finite_steps + 1) * is_finite
        grows = steps >= _FINITE_STEPS_TO_GROW
        grown = torch.where(grows, 2 * self.factor, self.factor)
        self.factor.copy_(torch.where(is_finite, grown, self.factor / 2).clamp(_SMALLEST, _LARGEST))
        self._finite_steps.copy_(steps * ~grows)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what a checkpoint needs."""
        return {"factor": self.factor, "finite_steps": self._finite_steps}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Continue from a checkpoint."""
        self.factor.copy_(tensors["factor"])
        self._finite_steps.copy_(tensors["finite_steps"])
