"""Small token caches for tests."""

import hashlib
import json
import zlib
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np

from titokctl.formats.token_cache import CacheHeader, TokenCache
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
    source: dict | None = None,
    num_rejected: int | None = None,
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
        source=source or {"kind": "test"},
        num_rejected=num_rejected,
        views={"flip": {"size": 64}},
        class_names=class_names or tuple(f"class {c}" for c in range(classes)),
        created_by="tests",
    )
    with TokenCacheWriter(path, header, num_rows=rows, key_bytes=8 * rows) as writer:
        writer.append(ids, labels, [f"{i:06d}" for i in range(rows)], {"flip": ids[:, ::-1]})
    return path


def as_version_1(path: Path) -> Path:
    """Write the cache at `path` again in format_version 1, as its specification says."""
    cache = TokenCache.open(path, check_ids=False)
    about, rows = asdict(cache.header), {cache.header.main: cache.rows}
    rows |= {f"views/{name}": cache.view(name) for name in cache.views[1:]}
    keys, names = cache.keys.tolist(), [name.encode() for name in about.pop("class_names")]
    text = {"keys": np.array(keys, f"S{max(map(len, keys))}")}
    if names:
        text["class_names"] = np.array(names, f"S{max(1, *map(len, names))}")
    data = {name: np.array(array) for name, array in (rows | text | {"labels": cache.labels}).items()}
    lines = []
    with h5py.File(path, "w") as f:
        for name, array in sorted(data.items()):
            kind = h5py.string_dtype("utf-8", array.dtype.itemsize) if name in text else array.dtype
            f.create_dataset(name, data=array.astype(kind), **({"chunks": array.shape} if name in text else {}))
            shape = ",".join(map(str, array.shape))
            lines.append(f"/{name} {array.dtype.str} {shape} {hashlib.sha256(array.tobytes()).hexdigest()}\n")
            if name in rows:
                blocks = [array[i : i + 65_536] for i in range(0, len(array), 65_536)]
                f[f"checksums/{name}"] = np.array([zlib.crc32(block.tobytes()) for block in blocks], "<u4")
        f["checksums"].attrs["rows_per_crc"] = 65_536
        f["checksums"].attrs["sha256"] = hashlib.sha256("".join(lines).encode()).hexdigest()
        for view, preprocessing in about.pop("views").items():
            f[f"views/{view}"].attrs["preprocessing"] = json.dumps(preprocessing)
        for name, value in about.items():
            if value is not None and not (name == "token_size" and not value):
                f.attrs[name] = json.dumps(value) if isinstance(value, dict) else value
        f.attrs["format"], f.attrs["format_version"], f.attrs["complete"] = "titokctl/token-cache", 1, 1
    return path


def with_header(path: Path, **changes: object) -> Path:
    """Write the cache at `path` again, a file or a folder of parts, as if another header had been written with it."""
    if path.is_dir():
        record = json.loads((path / "manifest.json").read_text())
        record["header"] = {k: v for k, v in (record["header"] | changes).items() if v is not ...}
        return sealed(path, record)
    with h5py.File(path, "r+") as f:
        header = json.loads(f["header"][:].tobytes()) | changes
        data = np.frombuffer(json.dumps({k: v for k, v in header.items() if v is not ...}).encode(), np.uint8)
        del f["header"]
        f["header"] = data
        f["checksums"].attrs["header_sha256"] = np.bytes_(hashlib.sha256(data.tobytes()).hexdigest())
    return path


def sealed(folder: Path, manifest: dict) -> Path:
    """Write a manifest of a folder of parts with a checksum that fits."""
    covered = {name: value for name, value in manifest.items() if name != "checksum"}
    text = json.dumps(covered, sort_keys=True, separators=(",", ":"))
    manifest["checksum"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
