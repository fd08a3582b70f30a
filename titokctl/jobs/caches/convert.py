"""Weights from one layout to another, with nothing changed but names and shapes."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from titokctl.config.models import GeneratorConfig, TokenizerConfig
from titokctl.data.class_order import say_class_order
from titokctl.distributed.stop import StopRequest
from titokctl.dry_run import about_to_write, is_dry_run
from titokctl.errors import UsageError, UserError
from titokctl.jobs.plan import WritePlan
from titokctl.progress import Progress
from titokctl.weights.build import compare, shapes, skeleton
from titokctl.weights.known import released
from titokctl.weights.official.config import write_config
from titokctl.weights.official.files import CONFIG, TENSORS, tensor_file, write_official
from titokctl.weights.read import locate, read
from titokctl.weights.store import Weights, save

Layout = Literal["titokctl", "official"]
_CHUNK = 16 << 20


@dataclass(frozen=True)
class Converted:
    """What was written: `model` is the released model with this configuration, or None; `source_sha256` is of the
    source's tensor file; `has_pixels` is false for a tokenizer of stage 1."""

    destination: Path
    kind: str
    model: str | None
    layout: Layout
    num_tensors: int
    num_parameters: int
    source_sha256: str
    has_pixels: bool


def convert(
    source: str,
    destination: Path,
    model: str | None,
    layout: Layout,
    overwrite: bool,
    progress: Progress,
    stop: StopRequest,
) -> Converted:
    """Convert `source` (a path, run folder or known name) to our weights file or to an official folder.

    Args:
        model: the known name the source has, where it does not tell itself.
        layout: of `destination`.

    Raises:
        UserError: the source can't be read or recognised, the destination exists, or there is no official form.
    """
    _check_destination(destination, layout, overwrite)
    path = locate(source, not is_dry_run())
    weights = read(path, model)
    compare(shapes(weights.tensors), shapes(skeleton(weights.kind, weights.config).state_dict()), str(path))
    about_to_write(lambda: _plan(path, weights, destination, layout))
    digest = _sha256(tensor_file(path), progress, stop)
    if layout == "official":
        write_official(destination, weights)
        if isinstance(weights.config, GeneratorConfig):
            names = json.loads(weights.extra.get("inputs", "{}")).get("class_names", ())
            say_class_order(names, weights.config, progress.say)
    else:
        extra = {**weights.extra, "source": path.name, "source_sha256": digest}
        save(destination, replace(weights, extra=extra))
    has_pixels = not isinstance(weights.config, TokenizerConfig) or weights.config.pixel_decoder
    return Converted(
        destination, weights.kind, _known_name(weights), layout, len(weights.tensors),
        sum(t.numel() for t in weights.tensors.values()), digest, has_pixels,
    )  # fmt: skip


def _plan(path: Path, weights: Weights, destination: Path, layout: Layout) -> WritePlan:
    if layout == "official":
        write_config(weights.kind, weights.config)  # refuses what has no official form
    return WritePlan(
        reads={"weights": str(path), "kind": weights.kind, "model": _known_name(weights)},
        output=destination,
        count=len(weights.tensors),
        unit="tensors",
        num_bytes=sum(t.numel() * t.element_size() for t in weights.tensors.values()),
        settings={"layout": layout},
        replaces=destination.exists(),
        makes_folders=layout == "official",
    )


def _check_destination(destination: Path, layout: Layout, overwrite: bool) -> None:
    if layout == "titokctl" and destination.suffix != ".safetensors":
        raise UsageError(f"{destination} does not end in .safetensors", "name a file, e.g. -o weights.safetensors")
    if not destination.exists():
        return
    if not overwrite:
        raise UserError(f"{destination} exists already", "choose another -o, or --overwrite")
    if destination.is_dir() != (layout == "official"):
        wanted = "a folder" if layout == "official" else "a file"
        raise UserError(f"{destination} is not {wanted}, which is to be written", "choose another -o")
    # A folder is replaced as a whole, so it may hold nothing but what we would write into it.
    inside = destination.iterdir() if layout == "official" else ()
    strangers = sorted(path.name for path in inside if path.name not in (CONFIG, TENSORS))
    if strangers:
        found = ", ".join(strangers[:3])
        raise UserError(f"{destination} holds other files ({found}) and is left alone", "choose another -o")


def _sha256(file: Path, progress: Progress, stop: StopRequest) -> str:
    digest = hashlib.sha256()
    progress.start("reading", file.stat().st_size, unit="bytes")
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            progress.advance(len(chunk))
            stop.check("Nothing was written.")
    progress.close()
    return digest.hexdigest()


def _known_name(weights: Weights) -> str | None:
    return getattr(released(weights.config), "name", None)
