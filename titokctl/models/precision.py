"""One context for the precision of arithmetic: autocast, and TF32 for matrix products and convolutions together.

torch has two sets of switches for float32 arithmetic, `allow_tf32` and `fp32_precision`. Once a program has used the
second, reading the first may raise an error. Nothing else in the package touches either.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch

Precision = Literal["float32", "tf32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bf16", "fp16")
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def low_dtype(name: Precision) -> torch.dtype | None:
    """The 16-bit type of a precision; None for those whose numbers stay float32."""
    return _AUTOCAST.get(name)


@contextlib.contextmanager
def precision(name: Precision, device: torch.device | str) -> Iterator[None]:
    """Do the block's arithmetic in `name` on `device`; the switches are as before afterwards.

    "float32" is exact float32 on every device, and so is what stays float32 under "bf16" and "fp16": TF32 is for
    "tf32" alone. fp16 on a CPU is slow.
    """
    kind = torch.device(device).type
    if name not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {name!r}")
    restore = _switches()
    tf32 = name == "tf32" and kind == "cuda"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    for switch in _new_switches():
        switch.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        dtype = _AUTOCAST.get(name)
        with torch.autocast(kind, dtype=dtype) if dtype else contextlib.nullcontext():
            yield
    finally:
        restore()


def _switches() -> Callable[[], None]:
    """Return a function that sets all switches to what they are now."""
    backends: Any = torch.backends
    new = _new_switches()
    values = [switch.fp32_precision for switch in new]
    # torch refuses to tell an old switch that disagrees with the new one, and so tells it all the same.
    allowed = _told(lambda: backends.cuda.matmul.allow_tf32, values[0] != "tf32")
    products = _told(torch.get_float32_matmul_precision, "high" if allowed else "highest")
    convolutions = _told(lambda: backends.cudnn.allow_tf32, values[1] != "tf32")

    def restore() -> None:
        torch.set_float32_matmul_precision(products)
        backends.cudnn.allow_tf32 = convolutions
        for switch, value in zip(new, values, strict=True):
            switch.fp32_precision = value

    return restore


def _new_switches() -> list[Any]:
    """Return the switches `fp32_precision`, those of products and convolutions on a GPU first.

    Those of mkldnn are a CPU's, whose float32 arithmetic may be bfloat16 in truth.
    """
    backends: Any = torch.backends
    return [
        backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul, backends.mkldnn.conv
    ]  # fmt: skip


def _told(read: Callable[[], Any], otherwise: Any) -> Any:
    try:
        return read()
    except RuntimeError:
        return otherwise


@contextlib.contextmanager
def backward_precision(device: torch.device | str, *forward: Precision) -> Iterator[None]:
    """Do a backward pass in the most exact of the precisions `forward` in which its parts were computed.

    Autocast belongs to the forward pass alone, but the switches for TF32 are read again by each backward operation.
    """
    with precision("float32" if "float32" in forward else "tf32", device):
        yield
