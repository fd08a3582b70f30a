"""The result of judging a set of images, kept beside it.

Specification: JSON with format "titokctl/evaluation", format_version 1, `metrics` (names to numbers), `samples`,
`reference` and `extractor` (what was compared, by what), `warnings`, `versions`.
"""

from pathlib import Path
from typing import Any

from titokctl.errors import UserError
from titokctl.formats.atomic import read_json, write_json
from titokctl.formats.run_folder import versions

FORMAT = "titokctl/evaluation"
FORMAT_VERSION = 1
_FIELDS: dict[str, type] = {"metrics": dict, "samples": dict, "reference": dict, "extractor": dict, "warnings": list}


def write_evaluation(path: Path, fields: dict[str, Any]) -> None:
    """Write `fields`, of which those of the specification must be there."""
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, "versions": versions()}
    write_json(path, header | {name: fields[name] for name in _FIELDS})


def read_evaluation(path: Path) -> dict[str, Any]:
    """The fields of a kept result. Raises UserError for anything else, or one of a newer titokctl."""
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{path} is no result of `titokctl fid`")
    if found.get("format_version", 0) > FORMAT_VERSION:
        raise UserError(
            f"{path} was written by a newer titokctl (evaluation {found['format_version']})", "upgrade titokctl"
        )
    wrong = [name for name, kind in _FIELDS.items() if not isinstance(found.get(name), kind)]
    wrong += [name for name, value in (found.get("metrics") or {}).items() if not isinstance(value, int | float)]
    if wrong:
        raise UserError(f"{path} is damaged: {', '.join(wrong)}", "judge the samples again with `titokctl fid`")
    return found
