"""Randomness keyed by what it is for, never "the next number of this process".

A draw depends on (seed, purpose, index) alone, so a resumed run needs no saved generator states and another number of
processes draws the same numbers.
"""

import hashlib

import torch


def key(seed: int, purpose: str, *index: int) -> int:
    """Return a 63-bit number from (seed, purpose, index), spread by SHA-256."""
    text = "/".join((str(seed), purpose, *map(str, index)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, purpose: str, *index: int) -> torch.Generator:
    """Return a CPU generator that starts from (seed, purpose, index)."""
    return torch.Generator().manual_seed(key(seed, purpose, *index))
