"""`titokctl neighbors`: nearly equal images within a cache, or between two (leakage from training to held-out)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titokctl.errors import UsageError, UserError
from titokctl.evaluation.near_duplicates import near_pairs
from titokctl.formats.token_cache import TokenCache


@dataclass(frozen=True)
class Neighbors:
    """Pairs of rows whose ids differ in at most `max_distance` positions.

    `compared` counts the pairs of rows looked at, `pairs` those found, `by_distance` those at each distance from 0 on;
    `rows` and `others` say how many rows of either side have any; `closest` are the closest pairs with their keys.
    """

    max_distance: int
    compared: int
    pairs: int
    by_distance: list[int]
    rows: int
    others: int
    share_of_others: float
    closest: list[dict[str, Any]]


def neighbors(path: Path, other: Path | None = None, *, max_distance: int | None = None, shown: int = 20) -> Neighbors:
    """Find near-duplicates in the plain crops.

    Args:
        other: a second cache; pairs are then between the two.
        max_distance: positions that may differ; None for a quarter of them.

    Raises UserError when the caches are of different tokenizers, UsageError for a distance that is none.
    """
    a, b = TokenCache.open(path), None if other is None else TokenCache.open(other)
    if b is not None and a.header.encoder_sha256 != b.header.encoder_sha256:
        raise UserError(f"{path} and {other} are of different tokenizers, so their ids can't be compared")
    distance = a.num_latent_tokens // 4 if max_distance is None else max_distance
    if not 0 <= distance < a.num_latent_tokens:
        raise UsageError(f"a distance of {distance} is not below the {a.num_latent_tokens} tokens of an image")
    found = near_pairs(a.ids, None if b is None else b.ids, distance, shown)
    right = b or a
    closest = [
        {"distance": d, "row": i, "key": a.key(i), "label": int(a.labels[i]),
         "other_row": j, "other_key": right.key(j), "other_label": int(right.labels[j])}
        for d, i, j in found.closest
    ]  # fmt: skip
    n = len(a.labels)
    return Neighbors(
        max_distance=distance,
        compared=n * (n - 1) // 2 if b is None else n * len(b.labels),
        pairs=sum(found.by_distance),
        by_distance=found.by_distance,
        rows=int(found.rows.sum()),
        others=int(found.others.sum()),
        share_of_others=float(found.others.mean()),
        closest=closest,
    )
