"""The part of a product's lineage that may leave this machine.

Records on this machine hold absolute paths, names of its user, and its host. Fields are therefore named here one by one
that are shared, and every text in them that looks like a path is left out.
"""

import re
from collections.abc import Mapping
from typing import Any

_OF_A_SOURCE = ("kind", "num_samples", "fingerprint", "listing", "contents", "contents_whole", "labelling")
_OF_INPUTS = ("encoder_sha256", "weights_sha256", "rows_sha256", "generator_sha256", "val_fraction", "class_names",
              "class_rows", "terms", "preprocessing")  # fmt: skip
_SOURCES = ("source", "data", "validation")
_OF_WEIGHTS = ("weights_sha256", "taken", "resized", "left")
_WEIGHTS = ("init", "proxy")
_IN_METADATA = ("sampling", "step", "source_sha256")  # settings, a number, a hash
_OF_THE_DATA = ("class_names", "terms")  # which may look like a path
_PATH = re.compile(r"[/\\~]|^[A-Za-z]:|\.(yaml|yml|safetensors|h5|json)$")


def public_source(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of a source of images without its paths."""
    return _kept(source, _OF_A_SOURCE)


def public_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a product's inputs without paths."""
    found = _kept(inputs, _OF_INPUTS)
    found |= {name: public_source(inputs[name]) for name in _SOURCES if isinstance(inputs.get(name), dict)}
    return found | {name: _kept(inputs[name], _OF_WEIGHTS) for name in _WEIGHTS if isinstance(inputs.get(name), dict)}


def public_metadata(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata strings of a weights file that may be shared, but for its inputs."""
    return {name: extra[name] for name in _IN_METADATA if name in extra}


def without_paths(value: Any) -> Any:
    """Return a JSON value in which each text that looks like a path is None."""
    if isinstance(value, Mapping):
        return {key: value[key] if key in _OF_THE_DATA else without_paths(value[key]) for key in value}
    if isinstance(value, list | tuple):
        return [without_paths(one) for one in value]
    return None if isinstance(value, str) and _PATH.search(value) else value


def _kept(record: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return dict(without_paths({name: record[name] for name in names if name in record}))
