"""`titokctl export`: a token cache in forms that other programs read."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from titokctl.context import Context
from titokctl.errors import UsageError
from titokctl.formats.atomic import disk_errors, flush
from titokctl.formats.object_store import StorePath, is_store, path_of
from titokctl.formats.replacing import JSON, NPY, SAFETENSORS, files_to_delete, seal
from titokctl.formats.token_cache import PLAIN, TokenCache
from titokctl.formats.unfinished import Unfinished, check_output, check_output_in_store, finished_already
from titokctl.jobs.plan import WritePlan, cache_read, rows_bytes

_ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Exported:
    """The file or folder that was written, and the images' terms of use, which only safetensors and wds record."""

    output: Path
    form: str
    rows: int
    view: str
    terms: str


@dataclass(frozen=True)
class Export:
    """Write one view of a token cache in a form that other programs read.

    Args:
        path: the token cache.
        form: "jsonl", a line {"class_id", "tokens", "key"} per row, as the official pre-tokenizer writes them but for
            the key, and as the official trainer and `Decode` read them; "npy", the ids alone as (N, K); "safetensors",
            `tokens`, `labels`, and the root attributes as metadata; "wds", a folder of WebDataset shards with a sample
            per row: npy (the ids), cls (the label, where there is one), json (key and label). The rows of a Gaussian
            tokenizer are latents (N, K, C), and safetensors calls them `latents`.
        output: the file or folder to make, on a disk or in an object store; None for the cache's name with the form's
            ending, beside the cache.
        view: name of the view.
        overwrite: replace a product of this form at the output.

    Raises UsageError for another form.
    """

    path: Path
    form: str
    output: Path | None = None
    view: str = PLAIN
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.form not in _WRITERS:
            raise UsageError(f"unknown form {self.form!r}", f"one of: {', '.join(_WRITERS)}")

    @property
    def target(self) -> Path:
        """The file or folder to make."""
        ending = "-wds" if self.form == "wds" else f".{self.form}"
        return path_of(self.output or path_of(self.path).with_name(f"{self.path.stem}{ending}"))

    def plan(self, context: Context) -> WritePlan:
        """Return what would be written. Raises UserError when the output exists, or the view doesn't."""
        cache, rows = self._open()
        finished = Unfinished(self.target).is_finished(self._settings(cache), self.overwrite)
        return WritePlan(
            reads=cache_read(cache, self.view),
            output=self.target,
            count=len(cache),
            unit="rows",
            done=len(cache) if finished else 0,
            num_bytes=rows_bytes(rows) if self.form in ("npy", "safetensors") else None,
            settings={"form": self.form},
            removes=() if finished or is_store(self.target) else files_to_delete(self.target),
        )

    def run(self, context: Context) -> Exported:
        """Write the rows. Raises as `plan`; Stopped after a signal, with nothing written."""
        cache, rows = self._open()
        work, settings = Unfinished(self.target), self._settings(cache)
        made = Exported(self.target, self.form, len(cache), self.view, cache.header.terms)
        if work.is_finished(settings, self.overwrite):
            context.say(finished_already(self.target))
            return made
        context.progress.start("export", len(cache), "rows")
        with work.at_once(settings) as product, disk_errors(self.target):
            for written in _WRITERS[self.form](product, cache, rows):
                context.progress.advance(written)
                context.stop.check()
            flush(product)
        context.progress.close()
        return made

    def _settings(self, cache: TokenCache) -> dict[str, Any]:
        return {"command": "export", "cache": cache.sha256, "view": self.view, "form": self.form}

    def _open(self) -> tuple[TokenCache, np.ndarray]:
        target = self.target
        if isinstance(target, StorePath):
            check_output_in_store(target, self.overwrite)
        else:
            check_output(target, self.overwrite, _KINDS[self.form])
        cache = TokenCache.open_whole(self.path)
        rows = cache.view(self.view)
        if self.form == "jsonl" and not cache.is_discrete:
            raise UsageError(f"{self.path} holds latents, which jsonl can't hold", "take npy or safetensors")
        return cache, rows


def _write_jsonl(target: Path, cache: TokenCache, ids: np.ndarray) -> Iterator[int]:
    with target.open("w", encoding="ascii") as file:
        for first in range(0, len(ids), _ROWS_AT_ONCE):
            rows = slice(first, first + _ROWS_AT_ONCE)
            labels, tokens = cache.labels[rows].tolist(), ids[rows].tolist()
            for label, row, key in zip(labels, tokens, cache.keys[rows].tolist(), strict=True):
                file.write(json.dumps({"class_id": label, "tokens": row, "key": key.decode()}) + "\n")
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
    seal(target, "exported token cache")


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
_KINDS = {"jsonl": JSON, "npy": NPY, "safetensors": SAFETENSORS, "wds": None}
