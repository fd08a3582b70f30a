"""Results of commands that judge images: `fid`, `reconstruct` and `reproduce`.

Specification: each is JSON with a format, format_version 1 and `versions` of packages.

- `<set>.evaluation-<network>.json` beside a set of images, format "titokctl/evaluation": `metrics` (names to numbers),
  `samples`, `reference` and `extractor` (what was compared, by what), `warnings`; `key`, which changes with the images
  and with the network; and `earlier`, a list of results for the same images, the newest first, with the fields from
  `metrics` to `versions`. Metrics of one reference, of equal `samples` and versions, are in one result. `key` and
  `earlier` may be missing.
- `reconstruction.json`, format "titokctl/reconstruction": the fields of `ReconstructResult`. Beside it
  `reconstructions.png` shows images above their reconstructions. Both are written into `.reconstruction.unfinished/`
  before the first gets its name.
- `reproduction.json` in the folder of a sample set, format "titokctl/reproduction": the fields of `Reproduction`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from titokctl.errors import UserError
from titokctl.formats.atomic import check_version, disk_errors, read_json, write_json
from titokctl.formats.picture import save_png
from titokctl.formats.run_folder import versions
from titokctl.formats.unfinished import Unfinished, publish

FORMAT = "titokctl/evaluation"
FORMAT_VERSION = 1
RECONSTRUCTION, RECONSTRUCTION_PICTURE = "reconstruction.json", "reconstructions.png"
REPRODUCTION = "reproduction.json"


class _Named(BaseModel, strict=True, extra="allow"):
    name: str


class _Set(BaseModel, strict=True, extra="allow"):
    path: str


class _Samples(_Set):
    count: int


class _Result(BaseModel, strict=True):
    metrics: dict[str, float]
    samples: _Samples
    reference: _Set
    extractor: _Named
    warnings: list[str]
    versions: dict[str, str] = Field(default_factory=dict)


class _File(_Result):
    key: str = ""
    earlier: list[_Result] = Field(default_factory=list)


_FIELDS = [name for name in _Result.model_fields if name != "versions"]


def keep_evaluation(path: Path, fields: dict[str, Any], key: str) -> None:
    """Write a result, and keep those that `path` has of the same images, as `key` tells, and of other references.

    Args:
        fields: those of the specification must be there.

    Raises UserError for a file of a newer titokctl, which stays.
    """
    new = {name: fields[name] for name in _FIELDS} | {"versions": versions()}
    earlier = []
    for old in _kept(path, key):
        if all(old[name] == new[name] for name in ("samples", "reference", "extractor", "versions")):
            new["metrics"] = old["metrics"] | new["metrics"]
        elif (
            any(old[name] != new[name] for name in ("samples", "reference"))
            or old["metrics"].keys() - new["metrics"].keys()
        ):
            earlier.append({name: old[name] for name in new})
    write_json(path, {"format": FORMAT, "format_version": FORMAT_VERSION, "key": key, **new, "earlier": earlier})


def read_evaluations(path: Path) -> list[dict[str, Any]]:
    """Return the kept results in `path`, the newest first, each with the `key` of its images, "" without one.

    Raises UserError for anything else, or results of a newer titokctl.
    """
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{path} is not a result of `titokctl fid`")
    check_version(found.get("format_version", 0), FORMAT_VERSION, path, "evaluation")
    try:
        file = _File.model_validate(found)
    except ValidationError as error:
        wrong = ", ".join(dict.fromkeys(".".join(map(str, one["loc"])) for one in error.errors()))
        raise UserError(f"{path} is damaged: {wrong}", "judge the samples again with `titokctl fid`") from error
    return [result.model_dump(exclude={"earlier"}) | {"key": file.key} for result in (file, *file.earlier)]


def unfinished_reconstruction(folder: Path) -> Unfinished:
    """Return the folder in which both results of `titokctl reconstruct` lie until each gets its name in `folder`."""
    return Unfinished(folder / RECONSTRUCTION, folder / ".reconstruction.unfinished")


def read_reconstruction(folder: Path) -> dict[str, Any]:
    """Return the fields of the result in `folder`. Raises UserError for anything else, or one of a newer titokctl."""
    path = folder / RECONSTRUCTION
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != "titokctl/reconstruction":
        raise UserError(f"{path} is not a result of `titokctl reconstruct`", "choose another folder with -o")
    check_version(found.get("format_version", 0), FORMAT_VERSION, path, "reconstruction")
    return found


def write_reconstruction(
    folder: Path, fields: dict[str, Any], picture: np.ndarray, settings: Mapping[str, Any]
) -> None:
    """Write the results of `titokctl reconstruct` into `folder`: numbers, and a picture (h, w, 3) uint8.

    `settings` are those that decide about them, as for `settings_record`.
    """
    work = unfinished_reconstruction(folder)
    with work.locked(), disk_errors(folder):
        save_png(work.folder / RECONSTRUCTION_PICTURE, picture)
        _write(work.folder / RECONSTRUCTION, "titokctl/reconstruction", fields)
        publish(work.folder / RECONSTRUCTION_PICTURE, folder / RECONSTRUCTION_PICTURE)
        work.publish(work.folder / RECONSTRUCTION, settings)


def write_reproduction(folder: Path, fields: dict[str, Any]) -> None:
    """Write the result of `titokctl reproduce` into the folder of its sample set."""
    _write(folder / REPRODUCTION, "titokctl/reproduction", fields)


def _write(path: Path, kind: str, fields: dict[str, Any]) -> None:
    write_json(path, {"format": kind, "format_version": FORMAT_VERSION, "versions": versions()} | fields)


def _kept(path: Path, key: str) -> list[dict[str, Any]]:
    """Return the results in `path` that are of the images with `key`; none if the file is damaged or missing.

    Raises UserError for results of a newer titokctl.
    """
    try:
        found = read_json(path)
    except UserError:
        return []
    if isinstance(found, dict) and found.get("format") == FORMAT:
        check_version(found.get("format_version", 0), FORMAT_VERSION, path, "evaluation")
    try:
        return [result for result in read_evaluations(path) if result["key"] == key]
    except UserError:
        return []
