"""`titokctl convert`: weights from one layout to the other; only names and shapes change, unless they are rounded."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from titokctl.config.models import GeneratorConfig, TokenizerConfig
from titokctl.context import Context
from titokctl.data.sources.imagenet import say_class_order
from titokctl.errors import UsageError
from titokctl.formats.replacing import SAFETENSORS, files_to_delete
from titokctl.formats.settings_record import recorded_settings
from titokctl.formats.unfinished import Unfinished, check_output, finished_already
from titokctl.jobs.plan import WritePlan
from titokctl.weights.known import released
from titokctl.weights.official.config import write_config
from titokctl.weights.official.files import tensor_file, write_official
from titokctl.weights.read import locate, read
from titokctl.weights.store import Weights, check_finite, compare, save, shapes, skeleton

Layout = Literal["titokctl", "official"]
Dtype = Literal["keep", "bf16"]
_CHUNK = 16 << 20


@dataclass(frozen=True)
class Converted:
    """The weights that were written.

    Args:
        model: the released model with this configuration, or None.
        source_sha256: of the source's tensor file.
        has_pixels: false for a tokenizer from stage 1, which decodes to proxy codes.
    """

    destination: Path
    kind: str
    model: str | None
    layout: Layout
    num_tensors: int
    num_parameters: int
    source_sha256: str
    has_pixels: bool


@dataclass(frozen=True)
class Convert:
    """Convert weights to our file, or to a folder in the official layout.

    Args:
        source: a path, run folder, or known name.
        output: a .safetensors file, or the folder to make for `to="official"`.
        model: the known name of the source, where its files don't say it.
        to: the layout to write.
        overwrite: replace a product of this layout at the output.
        dtype: "bf16" rounds the values to half the size; "keep" keeps them. Rounded weights are another network: ids
            and hashes differ from those of the source. They are made to be passed on, so they don't record where the
            token cache and the images of a generator lie.

    Raises UsageError when the output's name doesn't fit the layout.
    """

    source: str
    output: Path
    model: str | None = None
    to: Layout = "titokctl"
    overwrite: bool = False
    dtype: Dtype = "keep"

    def __post_init__(self) -> None:
        if self.dtype != "keep" and self.to == "official":
            raise UsageError("--dtype is for titokctl files", "leave out --dtype, or --to official")
        if self.to == "titokctl" and self.output.suffix != ".safetensors":
            raise UsageError(f"{self.output} does not end in .safetensors", "name a file, e.g. -o weights.safetensors")

    def plan(self, context: Context) -> WritePlan:
        """Return what would be written.

        Raises UserError when the output exists, the source can't be read or recognised, or has no official form.
        """
        path, weights = self._read(fetch=False)
        if self.to == "official":
            write_config(weights.kind, weights.config)  # raises when there is no official form
        finished = self._finished(path, context) is not None
        return WritePlan(
            reads={"weights": str(path), "kind": weights.kind, "model": _known_name(weights)},
            output=self.output,
            count=len(weights.tensors),
            unit="tensors",
            done=len(weights.tensors) if finished else 0,
            num_bytes=sum(t.numel() * t.element_size() for t in weights.tensors.values()),
            settings={"layout": self.to},
            removes=() if finished else files_to_delete(self.output),
        )

    def run(self, context: Context) -> Converted:
        """Write the weights. Raises as `plan`; Stopped after a signal, with nothing written."""
        path, weights = self._read(fetch=True)
        if (digest := self._finished(path, context)) is not None:
            context.say(finished_already(self.output))
            return self._result(weights, digest)
        digest = _sha256(path, context)
        with Unfinished(self.output).at_once(self._settings(path, digest)) as product:
            if self.to == "official":
                write_official(product, weights)
            else:
                extra = {**weights.extra, "source": path.name, "source_sha256": digest}
                save(product, replace(weights, extra=extra))
        if self.to == "official" and isinstance(weights.config, GeneratorConfig):
            names = json.loads(weights.extra.get("inputs", "{}")).get("class_names", ())
            say_class_order(names, weights.config, context.say)
        return self._result(weights, digest)

    def _finished(self, path: Path, context: Context) -> str | None:
        """Return the SHA-256 of the source if the output was made from it before; None if it is to be made."""
        if self.overwrite or recorded_settings(self.output) is None:
            return None
        digest = _sha256(path, context)
        return digest if Unfinished(self.output).is_finished(self._settings(path, digest)) else None

    def _settings(self, path: Path, digest: str) -> dict[str, Any]:
        return {
            "command": "convert",
            "source": path.name,
            "source_sha256": digest,
            "model": self.model,
            "layout": self.to,
            "dtype": self.dtype,
        }

    def _result(self, weights: Weights, digest: str) -> Converted:
        return Converted(
            destination=self.output,
            kind=weights.kind,
            model=_known_name(weights),
            layout=self.to,
            num_tensors=len(weights.tensors),
            num_parameters=sum(t.numel() for t in weights.tensors.values()),
            source_sha256=digest,
            has_pixels=not isinstance(weights.config, TokenizerConfig) or weights.config.pixel_decoder,
        )

    def _read(self, fetch: bool) -> tuple[Path, Weights]:
        self._check_output()
        found = locate(self.source, fetch)
        path, weights = found.path, read(found, self.model)
        compare(shapes(weights.tensors), shapes(skeleton(weights.kind, weights.config).state_dict()), str(path))
        check_finite(weights.tensors, str(path))
        if self.dtype == "bf16":
            rounded = {n: t.bfloat16() if t.is_floating_point() else t for n, t in weights.tensors.items()}
            weights = replace(weights, tensors=rounded, extra=_portable(weights.extra))
        return path, weights

    def _check_output(self) -> None:
        check_output(self.output, self.overwrite, None if self.to == "official" else SAFETENSORS)


def _sha256(weights: Path, context: Context) -> str:
    """Return the SHA-256 of a file of weights, of the one in a folder, or of a checkpoint's list of hashes."""
    marker = weights / "state.json"
    file = marker if marker.is_file() else tensor_file(weights)
    digest, progress = hashlib.sha256(), context.progress
    progress.start("reading", file.stat().st_size, unit="bytes")
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            progress.advance(len(chunk))
            context.stop.check("Nothing was written.")
    progress.close()
    return digest.hexdigest()


def _known_name(weights: Weights) -> str | None:
    return getattr(released(weights.config), "name", None)


def _portable(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata without places on the machine that trained a generator: of files and folders names remain."""
    inputs = json.loads(extra.get("inputs") or "{}")
    if not inputs:
        return dict(extra)
    kept = {
        name: value if name == "class_names" else _named(value) for name, value in inputs.items() if name != "cache"
    }
    return {**extra, "inputs": json.dumps(kept)}


def _named(value: Any) -> Any:
    """Return a record in which every absolute path is the name of its file."""
    if isinstance(value, dict):
        return {name: _named(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_named(each) for each in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
