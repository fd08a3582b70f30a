"""AdamW with the published exclusions, Muon where a recipe wants it, and their state by name."""

import re

import torch
from torch import nn

from titokctl.config.training import OptimizerConfig
from titokctl.distributed.group import Group
from titokctl.errors import UserError
from titokctl.training.muon import Muon

_NOT_DECAYED = ("latent_tokens", "mask_token", "embed", "codebook")
_BLOCK_MATRIX = re.compile(
    r"\.(attention\.(qkv|out)|mlp\.(up|down)|mlp_(in|out)|conv[12]|shortcut|upsample\.\d+)\.weight$"
)


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Return True if weight decay applies: not to biases, norms, latent and mask tokens, codes, or embeddings.

    Source: bytedance/1d-tokenizer, commit 942a96f (the rule goes by dimension and by "embed" in the name, which its
    codebook has).
    """
    return parameter.ndim > 1 and not any(part in name for part in _NOT_DECAYED)


def is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Return True if Muon may update it: matrices of attention and MLP, kernels of residual blocks."""
    return parameter.ndim >= 2 and _BLOCK_MATRIX.search(name) is not None


def build_optimizers(
    module: nn.Module, config: OptimizerConfig, group: Group | None = None
) -> list[torch.optim.Optimizer]:
    """AdamW over the parameters that want gradients (fused), and Muon over block matrices if the recipe names its rate.

    Every parameter group carries `base_lr`, the rate that the schedule scales. `group` are the processes that train the
    same module.
    """
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    matrices = [p for n, p in named if config.muon_learning_rate is not None and is_block_matrix(n, p)]
    others = [(n, p) for n, p in named if not any(p is m for m in matrices)]
    groups = [
        {"params": [p for n, p in others if is_decayed(n, p)], "weight_decay": config.weight_decay},
        {"params": [p for n, p in others if not is_decayed(n, p)], "weight_decay": 0.0},
    ]
    filled = [group for group in groups if group["params"]]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(filled, lr=config.learning_rate, betas=config.betas, fused=True)
    ]
    if matrices and config.muon_learning_rate is not None:
        optimizers.append(Muon(matrices, config.muon_learning_rate, config.muon_momentum, group))
    for optimizer in optimizers:
        for settings in optimizer.param_groups:
            settings["base_lr"] = settings["lr"]
    return optimizers


def optimizer_tensors(module: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """All state of the optimizers, named after the parameters it belongs to."""
    return {
        f"{name}.{key}": torch.as_tensor(value)
        for name, p in module.named_parameters()
        for optimizer in optimizers
        for key, value in optimizer.state.get(p, {}).items()
    }


def load_optimizer_tensors(
    module: nn.Module, optimizers: list[torch.optim.Optimizer], tensors: dict[str, torch.Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave. Raises UserError when another optimizer had a parameter then."""
    states: dict[str, dict[str, torch.Tensor]] = {}
    for full, value in tensors.items():
        name, _, key = full.rpartition(".")
        states.setdefault(name, {})[key] = value
    parameters = dict(module.named_parameters())
    for optimizer in optimizers:
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, state in states.items():
            p = parameters[name]
            if id(p) in owned:
                if ("mean" in state) != isinstance(optimizer, Muon):
                    raise UserError(
                        f"{name} was trained by another optimizer, in an earlier version of titokctl",
                        "start over with --overwrite, or resume with that version",
                    )
                optimizer.state[p] = {key: value.to(p.device).clone() for key, value in state.items()}
