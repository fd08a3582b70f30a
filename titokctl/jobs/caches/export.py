"""`titokctl export`: a token cache in forms that other programs read."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from titokctl.distributed.stop import StopRequest
from titokctl.dry_run import about_to_write
from titokctl.errors import UsageError, UserError
from titokctl.formats.atomic import atomic_path
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs.plan import WritePlan, cache_read, rows_bytes
from titokctl.progress import Progress

_ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Export:
    """What was written, and the terms under which the images stand; of the forms only safetensors and wds hold them."""

    output: Path
    form: str
    rows: int
    view: str
    terms: str


def export(
    path: Path, output: Path, form: str, *, view: str = "plain", overwrite: bool = False, progress: Progress,
    stop: StopRequest,
) -> Export:  # fmt: skip
    """Write one view of the cache at `path` to `output`.

    Args:
        form: "jsonl", one {"class_id", "tokens"} a line, as the official implementation's pre-tokenizer writes and its
            trainer reads it; "npy", the ids alone as (N, K); "safetensors", `tokens`, `labels`, and the root
            attributes as metadata; "wds", a folder of WebDataset shards with a sample a row: npy (the ids), cls (the
            label, where there is one), json (key and label). Of a Gaussian tokenizer the rows are latents (N, K, C),
            and safetensors calls them `latents`.
        view: name of the view.

    Raises UserError when the output exists and may not be replaced; UsageError for another form.
    """
    if form not in _WRITERS:
        raise UsageError(f"there is no form named {form!r}", f"one of: {', '.join(_WRITERS)}")
    if output.is_dir() or (output.exists() and not overwrite):
        raise UserError(f"{output} exists already", "choose another -o, or replace it with --overwrite")
    cache = TokenCache.open(path)
    ids = cache.view(view)
    if form == "jsonl" and not cache.is_discrete:
        raise UsageError(f"{path} holds latents, which the form jsonl has no place for", "take npy or safetensors")
    about_to_write(
        lambda: WritePlan(
            reads=cache_read(cache, view),
            output=output,
            count=len(cache),
            unit="rows",
            num_bytes=rows_bytes(ids) if form in ("npy", "safetensors") else None,
            settings={"form": form},
            replaces=output.exists(),
        )
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    progress.start("export", len(cache), "rows")
    with atomic_path(output) as temporary:
        for rows in _WRITERS[form](temporary, cache, ids):
            progress.advance(rows)
            stop.check()
    progress.close()
    return Export(output, form, len(cache), view, cache.header.terms)


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
        header = {"descr": np.dtype(ids.dtype).str, "fortran_order": False, "shape": tuple(ids.shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, len(ids), _ROWS_AT_ONCE):
            block = np.ascontiguousarray(ids[first : first + _ROWS_AT_ONCE])
            file.write(block.data)
            yield len(block)


def _write_safetensors(target: Path, cache: TokenCache, ids: np.ndarray) -> Iterator[int]:
    about = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in cache.attrs.items()}
    save_file(
        {cache.header.main: np.ascontiguousarray(ids), "labels": np.ascontiguousarray(cache.labels)}, target, about
    )
    yield len(ids)


def _write_wds(target: Path, cache: TokenCache, ids: np.ndarray) -> Iterator[int]:
    target.mkdir()
    for number, first in enumerate(range(0, len(ids), _ROWS_AT_ONCE)):
        block = np.asarray(ids[first : first + _ROWS_AT_ONCE])
        with tarfile.open(target / f"tokens-{number:06d}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for i, row in enumerate(block, start=first):
                for ending, data in _members(cache, i, row).items():
                    member = tarfile.TarInfo(f"{i:09d}.{ending}")
                    member.size, member.mode = len(data), 0o444
                    tar.addfile(member, io.BytesIO(data))
        yield len(block)


def _members(cache: TokenCache, i: int, row: np.ndarray) -> dict[str, bytes]:
    array = io.BytesIO()
    np.save(array, row, allow_pickle=False)
    label = int(cache.labels[i])
    terms = {"terms": cache.header.terms} if cache.header.terms else {}
    about = json.dumps({"key": cache.key(i), "label": label} | terms, ensure_ascii=False).encode()
    return {"npy": array.getvalue(), "json": about} | ({"cls": str(label).encode()} if label >= 0 else {})


_WRITERS: dict[str, Callable[[Path, TokenCache, np.ndarray], Iterator[int]]] = {
    "jsonl": _write_jsonl,
    "npy": _write_npy,
    "safetensors": _write_safetensors,
    "wds": _write_wds,
}
