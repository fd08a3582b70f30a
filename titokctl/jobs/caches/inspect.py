"""`titokctl inspect`: recognise a file or folder, and describe its contents.

Files are recognised by their first bytes, folders by the marker file that each kind of ours has. Where no file has the
given name, it may be a reference to weights, such as RUN@STEP (`weights.references`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from titokctl.context import Context
from titokctl.data.sources import open_source
from titokctl.errors import UserError
from titokctl.evaluation.codebook_usage import MAX_COUNTS, count_codes, usage_of
from titokctl.formats import sample_set, weights_file
from titokctl.formats.atomic import read_json
from titokctl.formats.checkpoint import is_checkpoint, step_of, steps_in
from titokctl.formats.file_kind import described, head_of, hint_for
from titokctl.formats.gzip_stream import is_shard
from titokctl.formats.object_store import is_store, path_of
from titokctl.formats.run_folder import KINDS, open_run
from titokctl.formats.shard_set import read_set_index
from titokctl.formats.token_cache import labelled_rows
from titokctl.formats.token_parts import FORMAT as PARTS_FORMAT
from titokctl.jobs.caches.rows import open_to_look
from titokctl.weights.known import BY_NAME
from titokctl.weights.read import locate, read
from titokctl.weights.references import Located, in_runs, run_of, split_reference

_HDF5 = b"\x89HDF\r\n\x1a\n"
_KNOWN = "a token cache, a weights file, a run, RUN@STEP, a sample set, a folder of shards, or images"


@dataclass(frozen=True)
class Inspection:
    """The kind of a file or folder (`what`), facts about it, rows per class, and a record per token position."""

    path: Path
    what: str
    facts: dict[str, Any]
    classes: dict[str, int] = field(default_factory=dict)
    positions: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Inspect:
    """Describe the file or folder `path`, or the weights that it refers to: RUN@STEP, the name of a run, a model."""

    path: Path

    def run(self, context: Context) -> Inspection:
        """Return the description. Raises UserError when `path` is missing, damaged, or of an unknown kind."""
        path = path_of(self.path)
        if is_store(path):
            return _token_cache(path, context)
        if not path.exists():
            return _referred(str(path), context)
        if is_checkpoint(path):
            return _of_weights(path, Located(path))
        if path.is_dir():
            return _folder(path, context)
        if _first_bytes(path) == _HDF5:
            return _token_cache(path, context)
        if path.suffix == ".safetensors":
            return _weights(path)
        if is_shard(path):
            return _source(path, context)
        head = head_of(path)
        raise UserError(
            f"{path} was not made by titokctl: it is {described(head)}",
            hint_for(head, path, f"inspect takes {_KNOWN}"),
        )


def _referred(name: str, context: Context) -> Inspection:
    """Describe the weights that a run's name, RUN@STEP, or a known model on this machine stand for."""
    runs = {in_runs(name, context.runs, kind, lambda _: None) for kind in KINDS} - {name}
    if len(runs) > 1:
        raise UserError(f"{len(runs)} runs are named {name}", f"name one of: {', '.join(sorted(runs))}")
    reference = runs.pop() if runs else name
    if (Path(reference) / "run.json").is_file():
        return _run(Path(reference))
    is_run = (Path(split_reference(reference)[0]) / "run.json").is_file()
    if not is_run and name not in BY_NAME:
        raise UserError(f"no such file, folder, run or model: {name}", f"inspect takes {_KNOWN}")
    return _of_weights(Path(reference), locate(reference, fetch=False))


def _of_weights(path: Path, found: Located) -> Inspection:
    """Describe the weights at `found`, which `path` refers to."""
    weights = read(found)
    facts: dict[str, Any] = {"at": str(found.path)}
    if is_checkpoint(found.path):
        run, which = run_of(found.path), {"ema": "averaged", "raw": "raw"}
        facts |= {
            "run": str(run.path),
            "status": run.status,
            "step": step_of(found.path),
            "weights": which[found.which],
        }
    facts |= _counts(weights.tensors) | {"config": weights.config.model_dump(mode="json")} | dict(weights.extra)
    return Inspection(path, f"{weights.kind} weights", facts)


def _counts(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "tensors": len(tensors),
        "types": ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})),
    }


def _folder(path: Path, context: Context) -> Inspection:
    if (path / "run.json").is_file():
        return _run(path)
    manifest = read_json(path / "manifest.json") if (path / "manifest.json").is_file() else None
    manifest = manifest if isinstance(manifest, dict) else {}
    if manifest.get("format") == PARTS_FORMAT:
        return _token_cache(path, context) if manifest.get("complete") else _parts(path, manifest)
    if manifest.get("format") == sample_set.FORMAT:
        return Inspection(path, "sample set", _without(sample_set.SampleSet.open(path).manifest, "format"))
    record = read_set_index(path)
    if record is not None:
        facts = {"shards": len(record["shards"]), "images": record.get("total"), "classes": len(record["class_names"])}
        return Inspection(path, "shards", facts)
    return _source(path, context)


def _token_cache(path: Path, context: Context) -> Inspection:
    cache = open_to_look(path, context)
    head, tokenizer = cache.header, cache.header.tokenizer
    facts: dict[str, Any] = {
        "rows": len(cache),
        "rejected": head.num_rejected,
        "tokens an image (K)": head.num_latent_tokens,
        "codebook (V)": head.codebook_size,
        "token size (C)": tokenizer.get("token_size"),
        "image size": head.image_size,
        "views": ", ".join(cache.views),
        "classes": int(np.count_nonzero(labelled_rows(cache.labels))),
        "class names": len(head.class_names),
        "rows without a label": int((cache.labels < 0).sum()),
        "bytes a row": head.row_bytes,
        "file bytes": cache.num_bytes,
        "encoder_sha256": head.encoder_sha256,
        "weights_sha256": head.weights_sha256,
        "contents_sha256": cache.sha256,
        "source": head.source,
        "preprocessing": head.preprocessing,
        "created by": head.created_by,
        "made with": head.made_with,
        "terms": head.terms or "not said",
    }
    positions = []
    if cache.is_discrete and head.codebook_size * head.num_latent_tokens <= MAX_COUNTS:
        counts = count_codes(cache.ids, head.codebook_size)
        usage = usage_of(counts.sum(0))
        facts |= {"codes used": usage.used, "share of codes used": usage.share, "perplexity": usage.perplexity}
        positions = [
            {"position": i, "codes used": one.used, "perplexity": one.perplexity}
            for i, one in enumerate(map(usage_of, counts))
        ]
    return Inspection(path, cache.form, facts, _by_class(np.asarray(cache.labels), cache.class_names), positions)


def _by_class(labels: np.ndarray, names: list[str]) -> dict[str, int]:
    """Return how often each label occurs, by class name, or by number where names are missing or not unique."""
    counts = labelled_rows(labels, len(names)).tolist()
    if len(set(names)) < len(names):
        names = [f"{name} ({i})" for i, name in enumerate(names)]
    return dict(zip(names or map(str, range(len(counts))), counts, strict=True))


def _weights(path: Path) -> Inspection:
    metadata = weights_file.read_metadata(path)
    if not weights_file.is_ours(metadata):
        raise UserError(f"{path} is a safetensors file, but not titokctl weights", "`titokctl convert` may make it one")
    tensors = weights_file.read_tensors(path)
    facts = _counts(tensors) | {"file bytes": path.stat().st_size}
    return Inspection(path, f"{metadata.get('kind')} weights", facts | _without(metadata, "format", "kind"))


def _run(path: Path) -> Inspection:
    run = open_run(path)
    names = ("status", "created", "finished", "product", "step", "hashes", "inputs", "settings", "versions")
    facts = {name: getattr(run, name) for name in names}
    if steps := steps_in(path / "checkpoints"):
        facts["checkpoints"] = ", ".join(f"@{step}" for step in steps)
    return Inspection(path, f"{run.kind} run", facts)


def _parts(path: Path, manifest: dict[str, Any]) -> Inspection:
    finished = sum(1 for _ in path.glob("unit-*.safetensors"))
    facts = {"finished parts": finished, "parts": manifest.get("num_units")} | (manifest.get("header") or {})
    return Inspection(path, "unfinished token cache", facts)


def _source(path: Path, context: Context) -> Inspection:
    source = open_source([path], context=context).by_position()
    facts = {"images": len(source), "problems": len(source.problems), "units of work": len(source.units)}
    facts |= _without(source.description, "kind", "folders", "beside")
    return Inspection(
        path, f"images ({source.description['kind']})", facts, _by_class(source.labels(), source.class_names)
    )


def _without(record: dict[str, Any], *names: str) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k not in names}


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(_HDF5))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
