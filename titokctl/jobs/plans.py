"""What dry runs say of things that several commands read, and how large what they write becomes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from titokctl.data.sources import Source
from titokctl.formats.token_cache import TokenCache
from titokctl.formats.token_header import CacheHeader

_LABEL_BYTES = 4
_NAMED = 3


def source_read(paths: Sequence[Path | str], source: Source) -> dict[str, Any]:
    """A source of images: where it is and what is in it, before any image is decoded."""
    named = [str(path) for path in paths[:_NAMED]]
    more = [f"and {len(paths) - _NAMED:,} more"] if len(paths) > _NAMED else []
    facts = {"source": ", ".join(named + more), "images": len(source), "classes": len(source.class_names)}
    return facts | ({"unusable": len(source.problems)} if source.problems else {})


def cache_read(cache: TokenCache, view: str | None = None) -> dict[str, Any]:
    """A token cache, and which view of it is read."""
    facts = {"tokens": str(cache.path), "rows": len(cache), "tokens_a_row": cache.header.num_latent_tokens}
    return facts | ({"view": view} if view else {})


def cache_bytes(header: CacheHeader, rows: int, key_bytes: int) -> int:
    """About how large a token cache becomes that isn't compressed."""
    return rows * (header.row_bytes + _LABEL_BYTES + key_bytes)


def image_bytes(image_format: str, images: int, image_size: int) -> int | None:
    """About how large the images of a set become; None where that depends on what they look like."""
    return images * image_size**2 * 3 if image_format == "npz" else 0 if image_format == "none" else None


def rows_bytes(rows: np.ndarray) -> int:
    """How large all rows of a view are, without reading them."""
    return int(np.prod(rows.shape)) * rows.dtype.itemsize
