"""Codebook usage of a set of ids: the share of codes that occur, and the perplexity.

Perplexity is exp(H), H the entropy of the codes' frequencies in nats: V when all occur equally often, 1 when one does.
Letters: N rows, K latent tokens, V codebook size.
"""

from dataclasses import dataclass

import numpy as np

_IDS_AT_ONCE = 1 << 21
MAX_COUNTS = 1 << 26  # 512 MiB of counters


@dataclass(frozen=True)
class CodebookUsage:
    """Number of codes of `size` that occur, and the perplexity: exp of the entropy of their frequencies."""

    used: int
    size: int
    perplexity: float

    @property
    def share(self) -> float:
        """`used` / `size`."""
        return self.used / self.size


def usage_of(counts: np.ndarray) -> CodebookUsage:
    """From how often each code occurs, (V,); a perplexity of 0 for no counts at all."""
    shares = counts[counts > 0] / max(counts.sum(), 1)
    entropy = -(shares * np.log(shares)).sum()
    return CodebookUsage(len(shares), len(counts), float(np.exp(entropy)) if len(shares) else 0.0)


def count_codes(ids: np.ndarray, codebook_size: int) -> np.ndarray:
    """(K, V) int64: how often each code occurs at each position of ids (N, K), read block by block.

    Raises ValueError when V x K is above MAX_COUNTS.
    """
    k = ids.shape[1]
    if k * codebook_size > MAX_COUNTS:
        raise ValueError(f"expected V x K of at most {MAX_COUNTS:,}, got {codebook_size:,} x {k:,}")
    counts = np.zeros(k * codebook_size, np.int64)
    offsets = np.arange(k, dtype=np.int64) * codebook_size
    rows = max(_IDS_AT_ONCE // k, 1)
    for first in range(0, len(ids), rows):
        block = ids[first : first + rows] + offsets  # position k counts in its own V counters
        counts += np.bincount(block.reshape(-1), minlength=k * codebook_size)
    return counts.reshape(k, codebook_size)
