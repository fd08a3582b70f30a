"""Randomness keyed by what it is for, never "the next number of this process".

A draw depends on (seed, purpose, index) alone, so a resumed run needs no saved generator states and another number of
processes draws the same numbers.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Let torch use only kernels that give the same bits each time, if `wanted`; it raises where it has none."""
    if not wanted:
        yield
        return
    # cuBLAS reads this when it is used for the first time; without it torch refuses to be deterministic on a GPU.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def key(seed: int, purpose: str, *index: int) -> int:
    """Return a 63-bit number from (seed, purpose, index), spread by SHA-256."""
    text = "/".join((str(seed), purpose, *map(str, index)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, purpose: str, *index: int) -> torch.Generator:
    """Return a CPU generator that starts from (seed, purpose, index)."""
    return torch.Generator().manual_seed(key(seed, purpose, *index))
