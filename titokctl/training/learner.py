"""A module with its optimizer, its schedule and its EMA: what one optimizer step touches."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

from titokctl.config.training import OptimizerConfig, ScheduleConfig
from titokctl.training.ema import Ema
from titokctl.training.optimizer import build_optimizers, load_optimizer_tensors, optimizer_tensors
from titokctl.training.schedule import learning_rate_scale

M = TypeVar("M", bound=nn.Module)


class Learner(Generic[M]):
    """Updates one module.

    Args:
        module: the module in training mode.
        optimizer, schedule: from the recipe.
        total_steps: length of the schedule.
        ema_decay: null keeps no EMA (discriminators).
    """

    def __init__(
        self,
        module: M,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        total_steps: int,
        ema_decay: float | None,
    ) -> None:
        self.module = module
        self.config, self.schedule, self.total_steps = optimizer, schedule, total_steps
        self.optimizers = build_optimizers(module, optimizer)
        self.ema = Ema(module, ema_decay) if ema_decay is not None else None

    def update(self, step: int) -> dict[str, torch.Tensor | float]:
        """Clip, step, clear the gradients, move the EMA. Returns the gradient norm (on the device) and the rate."""
        scale = learning_rate_scale(step, self.schedule, self.total_steps)
        limit = self.config.clip_norm if self.config.clip_norm is not None else float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), limit)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.module)
        return {"gradient_norm": norm, "learning_rate": self.config.learning_rate * scale}

    def averaged(self) -> dict[str, torch.Tensor]:
        """The weights to keep: the EMA's, or the module's own without one."""
        return self.ema.shadow if self.ema is not None else dict(self.module.state_dict())

    def averaged_module(self) -> M:
        """A copy of the module with `averaged` weights, in evaluation mode."""
        copied = copy.deepcopy(self.module).eval().requires_grad_(False)
        copied.load_state_dict(self.averaged())
        return copied

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that `load` needs, by name."""
        named = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        named |= {f"optimizer.{k}": v for k, v in optimizer_tensors(self.module, self.optimizers).items()}
        if self.ema is not None:
            named |= {f"ema.{k}": v for k, v in self.ema.shadow.items()}
        return named

    def load(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Go on from what `tensors` gave after `step` updates."""
        self.module.load_state_dict(part(tensors, "module."))
        load_optimizer_tensors(self.module, self.optimizers, part(tensors, "optimizer."))
        if self.ema is not None:
            self.ema.updates = step
            for name, value in part(tensors, "ema.").items():
                self.ema.shadow[name].copy_(value)


def part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose name starts with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
