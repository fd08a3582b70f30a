"""`titokctl neighbors`: nearly equal images within a cache, or between two (leakage from training to held-out)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titokctl.context import Context
from titokctl.errors import UsageError, UserError
from titokctl.evaluation.near_duplicates import near_pairs
from titokctl.jobs.caches.rows import open_to_look


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of rows whose ids differ in at most `max_distance` positions.

    Args:
        compared: how many pairs of rows were compared.
        pairs, by_distance: how many were found, in all and at each distance from 0 on.
        rows, others: how many rows of either side are in a pair.
        share_of_others: `others` as a share of that side's rows.
        closest: the closest pairs with their rows, keys and labels.
    """

    max_distance: int
    compared: int
    pairs: int
    by_distance: list[int]
    rows: int
    others: int
    share_of_others: float
    closest: list[dict[str, Any]]


@dataclass(frozen=True)
class Neighbors:
    """Find near-duplicates among the plain crops of a cache, or between two caches.

    Args:
        path: the token cache.
        other: a second one; pairs are then between the two.
        max_distance: how many ids may differ; None for a quarter of them.
        num_pairs: how many of the closest pairs to list.
    """

    path: Path
    other: Path | None = None
    max_distance: int | None = None
    num_pairs: int = 20

    def run(self, context: Context) -> NearDuplicates:
        """Compare all pairs.

        Raises UserError when the caches are from different tokenizers, UsageError for an impossible distance.
        """
        a = open_to_look(self.path, context)
        b = a if self.other is None else open_to_look(self.other, context)
        if a.header.encoder_sha256 != b.header.encoder_sha256:
            raise UserError(
                f"{self.path} and {self.other} are from different tokenizers, so their ids can't be compared",
                "compare caches made with the same encoder",
            )
        distance = a.num_latent_tokens // 4 if self.max_distance is None else self.max_distance
        if not 0 <= distance < a.num_latent_tokens:
            raise UsageError(
                f"--max-distance {distance} must be below {a.num_latent_tokens}, the number of tokens per image"
            )
        found = near_pairs(a.ids, None if b is a else b.ids, distance, self.num_pairs)
        closest = [
            {"distance": d, "row": i, "key": a.key(i), "label": int(a.labels[i]),
             "other_row": j, "other_key": b.key(j), "other_label": int(b.labels[j])}
            for d, i, j in found.closest
        ]  # fmt: skip
        n = len(a.labels)
        return NearDuplicates(
            max_distance=distance,
            compared=n * (n - 1) // 2 if b is a else n * len(b.labels),
            pairs=sum(found.by_distance),
            by_distance=found.by_distance,
            rows=int(found.rows.sum()),
            others=int(found.others.sum()),
            share_of_others=float(found.others.mean()),
            closest=closest,
        )
