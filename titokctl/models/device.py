"""Which device to work on."""

import torch


def best_device() -> str:
    """ "cuda" when a GPU can be used, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"
