"""The device to work on, and the batch sizes that keep it busy."""

import contextlib
from typing import Literal

import torch

from titokctl.errors import UsageError

Batched = Literal["encode", "draw", "decode", "reconstruct", "inception", "lite0", "lite2"]
# Images at once on a CPU and on a GPU. Those of "encode" and "draw" are also the sizes of canonical tiles, so they
# decide which bytes are made. On a CPU, large maps fall out of the cache: one core does 56 images/s through lite0 in
# batches of 4, 47 in batches of 8, 39 in batches of 64.
_BATCH_SIZES: dict[Batched, tuple[int, int]] = {
    "encode": (16, 128),
    "draw": (16, 256),
    "decode": (8, 64),
    "reconstruct": (16, 64),
    "inception": (8, 64),
    "lite0": (4, 128),
    "lite2": (4, 128),
}


def default_batch_size(device: str | torch.device, what: Batched) -> int:
    """Return how many images `device` takes at once for this kind of work when the user names no number."""
    on_cpu, on_gpu = _BATCH_SIZES[what]
    return on_cpu if torch.device(device).type == "cpu" else on_gpu


def current_device(device: str | torch.device) -> contextlib.AbstractContextManager[object]:
    """Make `device` the current one of this thread, for events and pinned memory; nothing to do for a CPU.

    A thread begins on GPU 0, whatever the thread that started it works on.
    """
    device = torch.device(device)
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def send(tensor: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    """Return a tensor of the host on `device`; the host does not wait for a GPU.

    The copy goes through pinned memory, which comes from a pool and returns to it.
    """
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    with current_device(device):
        return tensor.pin_memory().to(device, non_blocking=True)


def host_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: str | torch.device) -> torch.Tensor:
    """Return zeros on the host, to be filled and sent to `device`: in pinned memory if that is a GPU."""
    with current_device(device):
        return torch.zeros(shape, dtype=dtype, pin_memory=torch.device(device).type == "cuda")


def in_float64(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float64, on its device or, since an Apple GPU has no float64, on the host."""
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()


def best_device() -> str:
    """ "cuda" when a GPU can be used, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_named(wanted: str | None, default: str | None = None) -> str:
    """The device that the user wants: "cpu", "cuda", one GPU of several as "cuda:1", or "mps", an Apple GPU.

    Args:
        wanted: as typed; None for `default`, and without one for the best there is.

    Raises UsageError for another word, and for a GPU that is not there.
    """
    if wanted is None:
        return default or best_device()
    kind, _, number = wanted.partition(":")
    if wanted == "mps":
        if not torch.backends.mps.is_available():
            raise UsageError("--device mps: this machine has no Apple GPU", "leave it out, or use --device cpu")
        return wanted
    if kind not in ("cpu", "cuda") or (":" in wanted and not (number.isascii() and number.isdigit())):
        raise UsageError(f"unknown device {wanted!r}", "one of: cpu, cuda, cuda:1 for the second GPU, mps")
    if kind == "cpu":
        return kind
    if not torch.cuda.is_available():
        raise UsageError(
            f"--device {wanted}: no CUDA device found on this machine", "leave it out, or use --device cpu"
        )
    if number and int(number) >= torch.cuda.device_count():
        raise UsageError(f"--device {wanted}: there are {torch.cuda.device_count()} GPUs here, counted from 0")
    return wanted


def gpus_to_use(device: str) -> str | None:
    """ "all" when `device` is "cuda" and several can be used: a process each; None otherwise."""
    return "all" if device == "cuda" and torch.cuda.device_count() > 1 else None
