"""`titokctl export`: a token cache in forms that other programs read."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from titokctl.distributed.stop import StopRequest
from titokctl.errors import UsageError, UserError
from titokctl.formats.atomic import atomic_path
from titokctl.formats.token_cache import TokenCache
from titokctl.progress import Progress

_ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Export:
    """What was written."""

    output: Path
    form: str
    rows: int
    view: str


def export(
    path: Path, output: Path, form: str, *, view: str = "plain", overwrite: bool = False, progress: Progress,
    stop: StopRequest,
) -> Export:  # fmt: skip
    """Write one view of the cache at `path` to `output`.

    Args:
        form: "jsonl", one {"class_id", "tokens"} a line, as the official implementation's pre-tokenizer writes and its
            trainer reads it; "npy", the ids alone as (N, K); "safetensors", `tokens`, `labels`, and the root
            attributes as metadata.
        view: name of the view.

    Raises UserError when the output exists and may not be replaced; UsageError for another form.
    """
    if form not in _WRITERS:
        raise UsageError(f"there is no form named {form!r}", f"one of: {', '.join(_WRITERS)}")
    if output.is_dir() or (output.exists() and not overwrite):
        raise UserError(f"{output} exists already", "choose another -o, or replace it with --overwrite")
    cache = TokenCache.open(path)
    ids = cache.view(view)
    output.parent.mkdir(parents=True, exist_ok=True)
    progress.start("export", len(cache), "rows")
    with atomic_path(output) as temporary:
        for rows in _WRITERS[form](temporary, cache, ids):
            progress.advance(rows)
            stop.check()
    progress.close()
    return Export(output, form, len(cache), view)


def _write_jsonl(target: Path, cache: TokenCache, ids: np.ndarray) -> Iterator[int]:
    with target.open("w", encoding="ascii") as file:
        for first in range(0, len(ids), _ROWS_AT_ONCE):
            rows = slice(first, first + _ROWS_AT_ONCE)
            labels, tokens = cache.labels[rows].tolist(), ids[rows].tolist()
            for label, row in zip(labels, tokens, strict=True):
                file.write(json.dumps({"class_id": label, "tokens": row}) + "\n")
            yield len(labels)


def _write_npy(target: Path, cache: TokenCache, ids: np.ndarray) -> Iterator[int]:
    with target.open("wb") as file:
        header = {"descr": ids.dtype.str, "fortran_order": False, "shape": ids.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, len(ids), _ROWS_AT_ONCE):
            block = np.ascontiguousarray(ids[first : first + _ROWS_AT_ONCE])
            file.write(block.data)
            yield len(block)


def _write_safetensors(target: Path, cache: TokenCache, ids: np.ndarray) -> Iterator[int]:
    about = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in cache.attrs.items()}
    save_file({"tokens": np.ascontiguousarray(ids), "labels": np.ascontiguousarray(cache.labels)}, target, about)
    yield len(ids)


_WRITERS: dict[str, Callable[[Path, TokenCache, np.ndarray], Iterator[int]]] = {
    "jsonl": _write_jsonl,
    "npy": _write_npy,
    "safetensors": _write_safetensors,
}
