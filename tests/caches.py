"""Small token caches for tests."""

from pathlib import Path

import numpy as np

from titokctl.formats.token_cache import CacheHeader
from titokctl.formats.token_cache_writer import TokenCacheWriter

TOKENS, CODES = 8, 16


def write_cache(
    path: Path,
    rows: int,
    *,
    codes: int = CODES,
    tokens: int = TOKENS,
    classes: int = 3,
    class_names: tuple[str, ...] = (),
    seed: int = 0,
    **hashes: str,
):
    """A cache of `rows` random rows in which the first id tells the class; labels are -1 when `classes` is 0.

    Latents of 4 channels instead of ids when `codes` is 0.
    `hashes` are encoder_sha256 and weights_sha256 of the tokenizer that it says it is from.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows) if classes else np.full(rows, -1)
    if codes:
        ids = rng.integers(0, codes, (rows, tokens)).astype(np.uint16)
        ids[:, 0] = np.maximum(labels, 0)
    else:
        ids = rng.normal(size=(rows, tokens, 4)).astype(np.float16)
    header = CacheHeader(
        tokenizer={},
        **({"encoder_sha256": "e" * 64, "weights_sha256": "f" * 64} | hashes),
        codebook_size=codes,
        token_size=0 if codes else 4,
        num_latent_tokens=tokens,
        image_size=64,
        preprocessing={"size": 64},
        source={"kind": "test"},
        views={"flip": {"size": 64}},
        class_names=class_names or tuple(f"class {c}" for c in range(classes)),
        created_by="tests",
    )
    with TokenCacheWriter(path, header, num_rows=rows, key_bytes=8) as writer:
        writer.append(ids, labels, [f"{i:06d}" for i in range(rows)], {"flip": ids[:, ::-1]})
    return path
