"""Official files: a Hub-style folder (config.json + model.safetensors), a .safetensors, or an old pickled .bin."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from titokctl.errors import UserError
from titokctl.formats.atomic import atomic_path, disk_errors, read_json, write_json
from titokctl.formats.replacing import seal
from titokctl.formats.weights_file import read_tensors, write_tensors
from titokctl.weights.official.config import write_config
from titokctl.weights.official.layout import from_official, to_official
from titokctl.weights.official.recognise import recognise
from titokctl.weights.pickled import read_pickled
from titokctl.weights.store import Weights, shapes

CONFIG, TENSORS = "config.json", "model.safetensors"
_IN_FOLDERS = (TENSORS, "pytorch_model.bin")
# Stored in our file, so that official settings without a counterpart survive the conversion back.
_KEPT = "official_config"


def tensor_file(path: Path) -> Path:
    """Return the file with the tensors: `path` itself, or the one in the Hub-style folder `path`."""
    if not path.is_dir():
        return path
    for name in _IN_FOLDERS:
        if (path / name).is_file():
            return path / name
    raise UserError(f"no weights in {path}", f"expected {TENSORS} (and {CONFIG}) in it, or a run.json")


def read_official(path: Path, model: str | None = None) -> Weights:
    """Read an official file or folder and convert it, memory-mapped where the format allows it.

    Args:
        path: the file or folder; a config.json beside a file with one of the Hub's names is read, too.
        model: the released model's name, for files that can't be recognised.

    Raises:
        UserError: it can't be recognised, is damaged, or has other tensors than expected.
    """
    file = tensor_file(path)
    config_file = file.parent / CONFIG
    official = _mapping(config_file) if file.name in _IN_FOLDERS and config_file.is_file() else None
    tensors = read_tensors(file) if is_safetensors(file) else read_pickled(file)
    kind, config = recognise(shapes(tensors), official, model, str(path))
    extra = {_KEPT: json.dumps(official)} if official is not None else {}
    return Weights(kind, config, from_official(kind, config, tensors, str(file)), extra)


def write_official(folder: Path, weights: Weights) -> None:
    """Write the Hub-style folder that the official from_pretrained reads, atomically.

    Raises UserError when the network has no official form.
    """
    config = write_config(weights.kind, weights.config)
    config = _merged(json.loads(weights.extra.get(_KEPT, "{}")), config)
    tensors = to_official(weights.kind, weights.config, weights.tensors)
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        write_json(temporary / CONFIG, config)
        write_tensors(temporary / TENSORS, tensors, {"format": "pt"})
        seal(temporary, "official weights")


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return `old` updated with `new`; sections are merged, not replaced."""
    both = {key: _merged(old[key], new[key]) for key in old.keys() & new.keys() if isinstance(new[key], dict)}
    return {**old, **new, **both}


def _mapping(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a configuration")
    return value


def is_safetensors(path: Path) -> bool:
    """Return True for a safetensors file, which has a JSON object behind eight bytes of length."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return path.suffix == ".safetensors" or start[8:] == b"{"
