"""Weights by path or name, in any form they have on disk."""

import difflib
import json
import re
from pathlib import Path

from titokctl.errors import UserError
from titokctl.formats import checkpoint
from titokctl.formats.run_folder import KINDS, RunFolder, runs_root
from titokctl.formats.weights_file import is_ours, read_metadata
from titokctl.weights import hub, local
from titokctl.weights.hashes import encoder_sha256 as hash_of
from titokctl.weights.known import BY_NAME, named, of_kind
from titokctl.weights.official.files import is_safetensors, read_official, tensor_file
from titokctl.weights.references import Located, in_runs, locate_run, run_of
from titokctl.weights.store import Weights, build, config_of, read_own

# The entry of a product's `inputs` that says how its images were decoded; absent for what is usual.
PREPROCESSING = "preprocessing"


def locate(path_or_name: str | Path, fetch: bool = True, kind: str | None = None) -> Located:
    """Return where weights are: at a path, in a run, or of a known model by its name (`references`).

    Names of runs are those in the usual runs folder (TITOKCTL_RUNS, else ./runs).

    Args:
        kind: the kind of network that is wanted; "generator" lets a tokenizer's name stand for its generator.
        fetch: download a released model that is not on this machine; a dry run passes False.

    Raises:
        UserError: nothing is there, with the nearest known name; or the model can't be downloaded.
    """
    name = str(path_or_name)
    found = locate_run(name)
    if found is not None:
        return found
    if Path(name).exists():
        return Located(Path(name))
    if known := named(name, kind):
        return Located(local.where(known) or hub.download(known, fetch))
    runs = [in_runs(name, runs_root(), one, lambda _: None) for one in ((kind,) if kind else KINDS)]
    fitting = [path for path in runs if path != name]
    if len(fitting) == 1 and (found := locate_run(fitting[0])):
        return found
    if fitting:
        raise UserError(f"{len(fitting)} runs are named {name}", f"name one of: {', '.join(fitting)}")
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


def read(found: Located | Path, model: str | None = None) -> Weights:
    """Read weights from a file or folder, ours or official, memory-mapped where the format allows it.

    Args:
        found: a path, or what `locate` returns. Of a checkpoint's path, the averaged weights are read.
        model: the released model's name, for official files that don't contain their configuration.

    Raises:
        UserError: they can't be read or recognised.
    """
    path, which = (found.path, found.which) if isinstance(found, Located) else (found, "ema")
    if checkpoint.is_checkpoint(path):
        return _of_checkpoint(path, which)
    file = tensor_file(path)
    if is_safetensors(file) and is_ours(read_metadata(file)):
        return read_own(file)
    return read_official(path, model)


def trained_with_exif(path_or_name: str | Path, fetch: bool = True) -> bool:
    """Return True if a tokenizer records that the EXIF orientation was applied to its training images."""
    path = locate(path_or_name, fetch).path
    try:
        inputs = json.loads(_metadata(path).get("inputs", "{}"))
    except ValueError:
        return False
    recorded = inputs.get(PREPROCESSING) if isinstance(inputs, dict) else None
    return isinstance(recorded, dict) and recorded.get("exif") is True


def _metadata(path: Path) -> dict[str, str]:
    """Return the metadata strings of weights; {} for a layout that has none."""
    if checkpoint.is_checkpoint(path):
        return run_extra(run_of(path))
    file = tensor_file(path)
    return read_metadata(file) if is_safetensors(file) else {}


def _of_checkpoint(path: Path, which: str) -> Weights:
    """Read the trained network out of a checkpoint's state; its run says what network it is."""
    run, state = run_of(path), checkpoint.load(path)
    prefix = re.compile(rf"(tokenizer|generator)\.{'ema' if which == 'ema' else 'module'}\.")
    tensors = {prefix.sub("", name, 1): tensor for name, tensor in state.tensors.items() if prefix.match(name)}
    if not tensors:
        other = f"{run.path}@{checkpoint.step_of(path)}:{'raw' if which == 'ema' else 'ema'}"
        raise UserError(f"{path} does not contain {which} weights", f"name the others: {other}")
    return Weights(run.kind, config_of(run.kind, json.dumps(run.settings.get("model")), path), tensors, run_extra(run))


def run_extra(run: RunFolder) -> dict[str, str]:
    """Return the metadata that the weights of a training run have: what they were made from, how to draw with them."""
    inputs = {name: value for name, value in run.inputs.items() if name not in ("identity", "data", "validation")}
    extra = {"inputs": json.dumps(inputs)} if inputs else {}
    return extra | ({"sampling": json.dumps(run.settings["sampling"])} if "sampling" in run.settings else {})
