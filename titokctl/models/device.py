"""Which device to work on."""

import torch


def best_device() -> str:
    """ "cuda" when a GPU can be used, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def gpus_to_use(device: str) -> str | None:
    """ "all" when `device` is "cuda" and several can be used: a process each; None otherwise."""
    return "all" if device == "cuda" and torch.cuda.device_count() > 1 else None
