"""The results of judging a set of images, kept beside it.

Specification: JSON with format "titokctl/evaluation", format_version 1, `metrics` (names to numbers), `samples`,
`reference` and `extractor` (what was compared, by what), `warnings`, `versions`; `key`, which changes with the images
and with what looks at them, and `earlier`: a list of results for the same images, the newest first, with the fields
from `metrics` to `versions`. Metrics of one reference and the same versions stand together. Files without the last two
are read, too.
"""

from pathlib import Path
from typing import Any

from titokctl.errors import UserError
from titokctl.formats.atomic import check_version, read_json, write_json
from titokctl.formats.run_folder import versions

FORMAT = "titokctl/evaluation"
FORMAT_VERSION = 1
_FIELDS: dict[str, type] = {"metrics": dict, "samples": dict, "reference": dict, "extractor": dict, "warnings": list}


def keep_evaluation(path: Path, fields: dict[str, Any], key: str) -> None:
    """Write a result, and keep those that `path` has of the same images, as `key` tells, and of other references.

    Args:
        fields: those of the specification must be there.

    Raises UserError for a file of a newer titokctl, which stays.
    """
    new = {name: fields[name] for name in _FIELDS} | {"versions": versions()}
    earlier = []
    for old in _kept(path, key):
        if all(old[name] == new[name] for name in ("reference", "extractor", "versions")):
            new["metrics"] = old["metrics"] | new["metrics"]
        elif old["reference"] != new["reference"] or old["metrics"].keys() - new["metrics"].keys():
            earlier.append({name: old[name] for name in new})
    write_json(path, {"format": FORMAT, "format_version": FORMAT_VERSION, "key": key, **new, "earlier": earlier})


def read_evaluations(path: Path) -> list[dict[str, Any]]:
    """The kept results in `path`, the newest first, each with the `key` of its images ("" where none was recorded).

    Raises UserError for anything else, or results of a newer titokctl.
    """
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{path} is no result of `titokctl fid`")
    check_version(found.get("format_version", 0), FORMAT_VERSION, path, "evaluation")
    earlier = found.get("earlier", [])
    wrong = [] if isinstance(earlier, list) and all(isinstance(old, dict) for old in earlier) else ["earlier"]
    results = [found] if wrong else [found, *earlier]
    for result in results:
        wrong += [name for name, kind in _FIELDS.items() if not isinstance(result.get(name), kind)]
        if isinstance(numbers := result.get("metrics"), dict):
            wrong += [name for name, value in numbers.items() if not isinstance(value, int | float)]
    if wrong:
        raise UserError(f"{path} is damaged: {', '.join(wrong)}", "judge the samples again with `titokctl fid`")
    return [{"versions": {}, **result, "key": found.get("key", "")} for result in results]


def _kept(path: Path, key: str) -> list[dict[str, Any]]:
    """The results in `path` that are of the images with `key`; none of a file that is damaged or not there.

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
