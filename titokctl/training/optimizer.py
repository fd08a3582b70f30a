"""AdamW with the published exclusions from weight decay, and its state as named tensors."""

import torch
from torch import nn

from titokctl.config.training import OptimizerConfig

_NOT_DECAYED = ("latent_tokens", "mask_token", "embed")
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to biases, norms, latent and mask tokens, nor to anything named "embed".

    Source: bytedance/1d-tokenizer, commit 942a96f (the rule goes by dimension and name there too).
    """
    return parameter.ndim > 1 and not any(part in name for part in _NOT_DECAYED)


def adamw(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the parameters of `module` that want gradients, fused where the device has it."""
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in named if is_decayed(n, p)], "weight_decay": config.weight_decay},
        {"params": [p for n, p in named if not is_decayed(n, p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=config.learning_rate, betas=config.betas, fused=True
    )


def optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's moments and step counts, named after the parameters they belong to."""
    return {
        f"{name}.{moment}": torch.as_tensor(optimizer.state[p][moment])
        for name, p in module.named_parameters()
        if p in optimizer.state
        for moment in _MOMENTS
    }


def load_optimizer_tensors(
    module: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave. Raises KeyError when a parameter's moments are missing."""
    if not tensors:
        return
    for name, p in module.named_parameters():
        if not p.requires_grad:
            continue
        state = {moment: tensors[f"{name}.{moment}"] for moment in _MOMENTS}
        # Step counts live where the fused kernel wants them: beside the parameter.
        optimizer.state[p] = {k: v.to(p.device).clone() for k, v in state.items()}
