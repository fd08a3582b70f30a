"""From a run back to the images it came from: which product was made by which, by the hashes they recorded."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titokctl.formats.run_folder import RunFolder, finished_runs

_MISSING = "not in this runs folder"


@dataclass(frozen=True)
class Link:
    """One product on the way: what it is, where it was found (or that it was not), and the hash that names it."""

    what: str
    where: str
    sha256: str


def lineage_of(run: RunFolder, root: Path) -> list[Link]:
    """The products between `run` and its images, the run itself first.

    Args:
        run: any run.
        root: the runs folder in which the others are looked for.
    """
    own = run.hashes.get("ids_sha256") or run.hashes.get("weights_sha256", "")
    return [Link(run.kind, str(run.path), own), *_before(run.inputs, root)]


def _before(inputs: dict[str, Any], root: Path) -> Iterator[Link]:
    if "generator_sha256" in inputs:
        found = _with_hash(root, "generator", "weights_sha256", inputs["generator_sha256"])
        yield Link("generator", str(found.path) if found else _MISSING, inputs["generator_sha256"])
    if "cache" in inputs:
        there = "" if Path(inputs["cache"]).exists() else " (no longer there)"
        yield Link("token cache", inputs["cache"] + there, inputs.get("identity", "").split("/")[0])
    if "encoder_sha256" in inputs:
        found = _with_hash(root, "tokenizer", "encoder_sha256", inputs["encoder_sha256"])
        yield Link("tokenizer (encoder)", str(found.path) if found else _MISSING, inputs["encoder_sha256"])
    for name in ("source", "data", "validation"):
        if isinstance(inputs.get(name), dict):
            yield _images({"source": "images", "data": "images", "validation": "held-out images"}[name], inputs[name])


def _with_hash(root: Path, kind: str, name: str, value: str) -> RunFolder | None:
    return next((run for run in finished_runs(root, kind) if run.hashes.get(name) == value), None)


def _images(what: str, source: dict[str, Any]) -> Link:
    paths = source.get("paths") or [source.get("path", "unknown")]
    more = f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
    count = f", {source['num_samples']:,} images" if isinstance(source.get("num_samples"), int) else ""
    return Link(what, f"{paths[0]}{more}{count}", source.get("fingerprint", ""))
