"""The folder of `titokctl demo`.

Specification: `demo.json`, {"format": "titokctl/demo", "format_version": 1}, marks the folder, whose files the demo may
replace. `results.json` is an object with `folder`, `report`, `about`, `images` (number by split), `tokenizer` and
`generator` (their last metrics), `baselines`, `scores`, `kid_ratio`, `seconds` (of each step in the last run), and
`bundled` (what the bundled models give, or null). It has no version: it is for people, and to compare runs of one
release.
"""

from pathlib import Path
from typing import Any

from titokctl.errors import UserError
from titokctl.formats.atomic import write_json
from titokctl.formats.folder_lock import contents_of, folder_lock

FORMAT, FORMAT_VERSION = "titokctl/demo", 1
_MARKER, _RESULTS = "demo.json", "results.json"


def claim(folder: Path) -> None:
    """Mark `folder` as a demo's. Raises UserError for a folder with other files, which could be overwritten."""
    marker = folder / _MARKER
    if marker.is_file():
        return
    if folder.is_dir() and contents_of(folder):
        raise UserError(f"{folder} holds other files, which the demo could overwrite", "choose another folder with -o")
    with folder_lock(folder):
        write_json(marker, {"format": FORMAT, "format_version": FORMAT_VERSION})


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Write the results, atomically."""
    write_json(folder / _RESULTS, results)
