"""Muon: momentum whose direction is made orthogonal, for the matrices and kernels inside blocks.

Small models on few images are far from converged when an hour of CPU time is over; this reaches the same loss in about
half the steps of AdamW there. Published recipes don't use it. Source: Jordan et al. 2024 (Muon), with the scaling by
0.2 x sqrt(larger side) of Liu et al. 2025 (arXiv 2502.16982), so that rates are those of AdamW.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

from titokctl.distributed.group import Group
from titokctl.distributed.reduce import gathered

# Of the quintic iteration in the source: it brings all singular values near 1 in five rounds.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """Updates matrices only; matrices of one shape are orthogonalized in one batch, by the processes in turn.

    Args:
        matrices: parameters of two dimensions; of more, all but the first are taken as one (a convolution's kernel).
        lr: learning rate, of AdamW's size.
        momentum: of the running mean of gradients (Nesterov's form).
        group: processes with the same matrices and gradients; each orthogonalizes its share. None for this one alone.
    """

    def __init__(
        self, matrices: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95, group: Group | None = None
    ) -> None:
        super().__init__(list(matrices), {"lr": lr, "momentum": momentum})
        self._rank, self._processes = (0, 1) if group is None else (group.rank, group.world_size)
        self._group = group

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of all matrices that have a gradient.

        Nothing changes when `found_inf`, a device flag as fused optimizers of torch read it, is 1.
        """
        for settings in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
            for p in settings["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            alike = list(by_shape.values())
            ahead = [self._ahead(matrices, settings["momentum"]) for matrices in alike]
            for matrices, directions in zip(alike, self._orthogonal(ahead), strict=True):
                self._move(matrices, directions, settings["lr"])

    def _ahead(self, matrices: list[torch.nn.Parameter], momentum: float) -> torch.Tensor:
        """Update the means of n matrices; return this process's share of the directions, (n / processes, ...).

        Shares are of one size: the last may have zeros at its end.
        """
        gradients = [p.grad for p in matrices if p.grad is not None]
        means = [self._mean(p) for p in matrices]
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None:
            # A mean moved towards itself stays as it is.
            gradients = [torch.where(found_inf == 0, g, m) for g, m in zip(gradients, means, strict=True)]
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        mine = slice(self._rank, None, self._processes)
        share = [torch.lerp(g, m, momentum) for g, m in zip(gradients[mine], means[mine], strict=True)]
        if len(share) < -(-len(matrices) // self._processes):
            share.append(torch.zeros_like(means[0]))
        return torch.stack(share).flatten(2)

    def _orthogonal(self, ahead: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the directions of all processes, (processes, n, rows, columns), for the share (n, ...) of this one."""
        found = [orthogonal(directions) for directions in ahead]
        if self._group is None or self._processes == 1:
            return [directions[None] for directions in found]
        flat = gathered(torch.cat([directions.flatten() for directions in found])[None], self._group)
        parts = flat.split([directions.numel() for directions in found], dim=1)
        return [part.view(-1, *directions.shape) for part, directions in zip(parts, found, strict=True)]

    def _move(self, matrices: list[torch.nn.Parameter], directions: torch.Tensor, lr: float) -> None:
        found_inf = getattr(self, "found_inf", None)
        moves = directions.to(matrices[0].dtype)
        if found_inf is not None:
            moves.mul_(1 - found_inf)
        scale = 0.2 * max(moves.shape[2:]) ** 0.5
        steps = [moves[i % self._processes, i // self._processes].view_as(p) for i, p in enumerate(matrices)]
        torch._foreach_add_(list[torch.Tensor](matrices), steps, alpha=-lr * scale)

    def _mean(self, p: torch.nn.Parameter) -> torch.Tensor:
        state = self.state[p]
        if "mean" not in state:
            state["mean"] = torch.zeros_like(p)
        return state["mean"]


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """(n, rows, columns) to bfloat16 matrices with the same singular vectors and singular values near 1: 0.7 to 1.2.

    The iteration forgives bfloat16, in which it works.
    """
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT.contiguous() if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    # Sums that are part of the products: as operations of their own they take longer than the products.
    for _ in range(_ROUNDS):
        square = torch.bmm(x, x.mT)
        square = torch.baddbmm(square, square, square, beta=_B, alpha=_C)
        x = torch.baddbmm(x, square, x, beta=_A)
    return x.mT.contiguous() if tall else x
