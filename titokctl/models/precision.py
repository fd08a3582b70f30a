"""One context for the precision of arithmetic: autocast, and TF32 for matrix products and convolutions together.

cuDNN's convolutions follow another switch than matrix products; a product that is "float32" for one and TF32 for the
other is neither, so nothing else in the package touches these switches.
"""

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

Precision = Literal["float32", "tf32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bf16", "fp16")
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def low_dtype(name: Precision) -> torch.dtype | None:
    """The 16-bit type of a precision; None for those whose numbers stay float32."""
    return _AUTOCAST.get(name)


@contextlib.contextmanager
def precision(name: Precision, device: torch.device | str) -> Iterator[None]:
    """Do the block's arithmetic in `name` on `device`; the switches are as before afterwards.

    "float32" is exact float32 on every device. Raises ValueError for fp16 on a CPU, which has no use for it.
    """
    kind = torch.device(device).type
    if name not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {name!r}")
    if name == "fp16" and kind == "cpu":
        raise ValueError("fp16 is for GPUs; on a CPU use float32 or bf16")
    matmul, conv = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    allowed = name != "float32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        dtype = _AUTOCAST.get(name)
        with torch.autocast(kind, dtype=dtype) if dtype else contextlib.nullcontext():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, conv


@contextlib.contextmanager
def training_attention(device: torch.device | str) -> Iterator[None]:
    """Let scaled_dot_product_attention take its plain form where that trains faster: on a CPU.

    The fused CPU kernel's backward pass costs more than it saves for the 33 to 300 positions of these models (a
    training step of the tiny tokenizer takes 1.3 to 1.6 times as long with it). GPUs choose for themselves.
    """
    if torch.device(device).type == "cpu":
        with sdpa_kernel(SDPBackend.MATH):
            yield
    else:
        yield
