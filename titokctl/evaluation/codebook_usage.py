"""How much of a codebook a set of ids uses: the share of codes that occur, and the perplexity.

Perplexity is exp(H), H the entropy of the codes' frequencies in nats: V when all occur equally often, 1 when one does.
Letters: N rows, K latent tokens, V codebook size.
"""

from dataclasses import dataclass

import numpy as np

_IDS_AT_ONCE = 1 << 21
MAX_COUNTS = 1 << 26  # 512 MiB of counters


@dataclass(frozen=True)
class CodebookUsage:
    """Of all ids, and of the ids at each of the K positions alone."""

    codes_used: int
    perplexity: float
    codes_used_by_position: list[int]
    perplexity_by_position: list[float]


def codebook_usage(ids: np.ndarray, codebook_size: int) -> CodebookUsage:
    """Usage of ids (N, K) in [0, V), read block by block. Raises ValueError when V x K is above MAX_COUNTS."""
    counts = count_codes(ids, codebook_size)
    total = counts.sum(0)
    return CodebookUsage(
        codes_used=int((total > 0).sum()),
        perplexity=perplexity(total),
        codes_used_by_position=(counts > 0).sum(1).tolist(),
        perplexity_by_position=[perplexity(row) for row in counts],
    )


def count_codes(ids: np.ndarray, codebook_size: int) -> np.ndarray:
    """(K, V) int64: how often each code stands at each position of ids (N, K)."""
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


def perplexity(counts: np.ndarray) -> float:
    """exp of the entropy of the distribution that `counts` (V,) are proportional to; 0 for no counts at all."""
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0
