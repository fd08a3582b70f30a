"""A module with its optimizer, its schedule and its EMA: everything that an optimizer step changes."""

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import nn

from titokctl.config.training import OptimizerConfig, ScheduleConfig
from titokctl.distributed.group import Group
from titokctl.distributed.reduce import GradientSums
from titokctl.training.loss_scale import LossScale
from titokctl.training.optimizer import build_optimizers, load_optimizer_tensors, optimizer_tensors

M = TypeVar("M", bound=nn.Module)


def learning_rate_scale(step: int, schedule: ScheduleConfig, total_steps: int) -> float:
    """Return the factor of the recipe's learning rates at optimizer step `step` (0-based).

    step / warm-up at first, so that the first step has 0 as in the official code, then the schedule towards
    `end_fraction`, where it stays from `total_steps` on.
    """
    if step < schedule.warmup_steps:
        return step / schedule.warmup_steps
    if schedule.kind == "constant":
        return 1.0
    if schedule.kind == "warmup-stable-decay":
        left = max(0, total_steps - step) / schedule.decay_steps
        return schedule.end_fraction + (1 - schedule.end_fraction) * min(1.0, left)
    done = min(1.0, (step - schedule.warmup_steps) / max(1, total_steps - schedule.warmup_steps))
    return schedule.end_fraction + (1 - schedule.end_fraction) * (1 + math.cos(math.pi * done)) / 2


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


class Learner(Generic[M]):
    """Updates one module.

    A step whose gradients are not all finite is skipped, on each process alike and without waiting for the
    device: the optimizers read a flag there, and counters of such steps stay there until metrics are read.

    Args:
        module: the module in training mode, with the same weights on every process.
        optimizer, schedule: from the recipe.
        total_steps: length of the schedule.
        ema_decay: null keeps no EMA (discriminators).
        group: the processes whose gradients are summed.
        scales_loss: multiply losses by a `LossScale`, as fp16 needs.
    """

    def __init__(
        self,
        module: M,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        total_steps: int,
        ema_decay: float | None,
        group: Group,
        scales_loss: bool = False,
    ) -> None:
        self.module = module
        self.config, self.schedule, self.total_steps = optimizer, schedule, total_steps
        self.optimizers = build_optimizers(module, optimizer, group)
        self.ema = Ema(module, ema_decay) if ema_decay is not None else None
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._sums = GradientSums(self._parameters, group)
        device = self._parameters[0].device
        self._skips = torch.zeros(2, dtype=torch.int64, device=device)  # in all, in a row
        self._most = torch.zeros((), dtype=torch.int64, device=device)
        self._scale = LossScale(device) if scales_loss else None
        # On a CPU reading it takes no time, and on an Apple GPU torch's fused AdamW ignores it.
        self._is_flag_read = device.type == "cuda"

    def backward(self, loss: torch.Tensor, is_last: bool = True) -> None:
        """Add the gradients of a scalar loss, which is multiplied by the loss scale, if there is one.

        Args:
            is_last: whether no other loss comes before `update`. Processes exchange gradients while these are computed.
        """
        self._sums.backward(loss if self._scale is None else loss * self._scale.factor, is_last)

    def update(self, step: int) -> dict[str, torch.Tensor | float]:
        """Wait for the sums of gradients over processes, clip, step, clear the gradients, move the EMA.

        Returns the gradient norm, the rate, how many steps were skipped, in all and at most in a row, and the loss
        scale if there is one; tensors are on the device.
        """
        scale = learning_rate_scale(step, self.schedule, self.total_steps)
        self._sums.finish()
        if self._scale is not None:
            self._scale.unscale([p.grad for p in self._parameters if p.grad is not None])
        limit = self.config.clip_norm if self.config.clip_norm is not None else float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, limit)
        self.is_finite = norm.isfinite()
        self._count()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * scale
            if self._is_flag_read:
                # What torch's GradScaler tells fused optimizers, which then leave everything as it is.
                optimizer.found_inf = (~self.is_finite).float()  # type: ignore[attr-defined]
            if self._is_flag_read or self.is_finite:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.module)
        found: dict[str, torch.Tensor | float] = {
            "gradient_norm": norm,
            "learning_rate": self.config.learning_rate * scale,
            "skipped_steps": self._skips[0],
            "skipped_in_a_row": self._most,
        }
        if self._scale is not None:
            found["loss_scale"] = self._scale.factor.clone()
            self._scale.update(self.is_finite)
        return found

    def _count(self) -> None:
        """Count a skipped step. Many in a row end a run; those that a large loss scale may cause are not among them."""
        skipped = (~self.is_finite).long()
        diverges = skipped if self._scale is None else skipped * self._scale.is_smallest()
        self._skips.copy_(torch.stack([self._skips[0] + skipped, (self._skips[1] + diverges) * skipped]))
        torch.maximum(self._most, self._skips[1], out=self._most)

    def averaged(self) -> dict[str, torch.Tensor]:
        """Return the weights to keep: the EMA's, or the module's own without an EMA."""
        return self.ema.shadow if self.ema is not None else dict(self.module.state_dict())

    def averaged_module(self) -> M:
        """Return a copy of the module with `averaged` weights, in eval mode."""
        copied = copy.deepcopy(self.module).eval().requires_grad_(False)
        copied.load_state_dict(self.averaged())
        return copied

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return everything that `load` needs, by name."""
        named = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        named |= {f"optimizer.{k}": v for k, v in optimizer_tensors(self.module, self.optimizers).items()}
        if self.ema is not None:
            named |= {f"ema.{k}": v for k, v in self.ema.shadow.items()}
        if self._scale is not None:
            named |= {f"loss_scale.{k}": v for k, v in self._scale.tensors().items()}
        return named | {"skipped_steps": self._skips}

    def load(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Continue from what `tensors` returned after `step` updates."""
        self.module.load_state_dict(part(tensors, "module."))
        load_optimizer_tensors(self.module, self.optimizers, part(tensors, "optimizer."))
        self._skips.copy_(tensors.get("skipped_steps", self._skips))
        if self._scale is not None:
            self._scale.load(part(tensors, "loss_scale."))
        if self.ema is not None:
            self.ema.updates = step
            for name, value in part(tensors, "ema.").items():
                self.ema.shadow[name].copy_(value)


def part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors whose name starts with `prefix`, under names without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
