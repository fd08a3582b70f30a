"""Weights by path or name, in any form they have on disk."""

import difflib
import json
from pathlib import Path

from titokctl.errors import UserError
from titokctl.formats.run_folder import open_run
from titokctl.formats.weights_file import is_ours, read_metadata
from titokctl.weights import hub, local
from titokctl.weights.build import build
from titokctl.weights.hashes import encoder_sha256 as hash_of
from titokctl.weights.known import BY_NAME, named, of_kind
from titokctl.weights.official.files import is_safetensors, read_official, tensor_file
from titokctl.weights.store import Weights, read_own

# The entry of a product's `inputs` that says how its images were decoded; absent for what is usual.
PREPROCESSING = "preprocessing"


def locate(path_or_name: str | Path, fetch: bool = True, kind: str | None = None) -> Path:
    """Return the file or folder of weights: a path, the product of a run folder, or a model by its name.

    Args:
        kind: the kind of network that is wanted; "generator" lets a tokenizer's name stand for its generator.
        fetch: download a released model that is not on this machine; a dry run passes False.

    Raises:
        UserError: nothing is there, with the nearest known name; or the model can't be downloaded.
    """
    path = Path(path_or_name)
    if (path / "run.json").is_file():
        return _product(path)
    if path.exists():
        return path
    name = str(path_or_name)
    if known := named(name, kind):
        return local.where(known) or hub.download(known, fetch)
    near = difflib.get_close_matches(name, BY_NAME, n=2)
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else "`titokctl runs ls` and `titokctl weights ls` list what there is"
    )
    raise UserError(f"no weights found: {name} is neither a path nor a known name", hint)


def name_with_encoder(encoder_sha256: str) -> str | None:
    """Return the name of the released tokenizer on this machine whose encoder has this hash, or None."""
    for known in of_kind("tokenizer"):
        path = local.where(known)
        if path is None:
            continue
        tokenizer = build(read(path), str(path), "cpu", None)
        if hash_of(tokenizer) == encoder_sha256:  # type: ignore[arg-type]
            return known.name
    return None


def read(path: Path, model: str | None = None) -> Weights:
    """Read weights from a file or folder, ours or official, memory-mapped where the format allows it.

    Args:
        model: the released model's name, for official files that don't contain their configuration.

    Raises:
        UserError: they can't be read or recognised.
    """
    file = tensor_file(path)
    if is_safetensors(file) and is_ours(read_metadata(file)):
        return read_own(file)
    return read_official(path, model)


def trained_with_exif(path_or_name: str | Path, fetch: bool = True) -> bool:
    """Return True if a tokenizer records that the EXIF orientation was applied to its training images."""
    file = tensor_file(locate(path_or_name, fetch))
    if not is_safetensors(file):
        return False
    try:
        inputs = json.loads(read_metadata(file).get("inputs", "{}"))
    except ValueError:
        return False
    recorded = inputs.get(PREPROCESSING) if isinstance(inputs, dict) else None
    return isinstance(recorded, dict) and recorded.get("exif") is True


def _product(folder: Path) -> Path:
    run = open_run(folder)
    if not run.is_finished or not run.product:
        raise UserError(f"the run {folder} is not finished", "run its command again to resume it")
    return run.product_path
