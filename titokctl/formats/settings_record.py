"""The settings that made a finished product, recorded so that the same command again finds the product.

Specification: a folder that lists its files in `.titokctl.json` (`replacing`) or index.json (`shard_set`) has the
settings there, as `settings`; they count only while its files have the sizes that are listed. A file has them beside it
in `.<name>.settings.json`: format "titokctl/settings", format_version 1, `settings` (JSON values), and `size` and
`changed_ns` (time of the last change in nanoseconds) of the file. The record is written before the file gets its name,
and one whose size or time is not that of the file is ignored. So after a crash at any moment no record describes
another file, and a file that was changed or copied counts as one of unknown origin.
In an object store, where nothing is written again, a file's record has no `changed_ns` and is written after the file.
"""

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from titokctl.errors import UserError
from titokctl.formats.atomic import disk_errors, flush, read_json, read_object, write_json
from titokctl.formats.object_store import ObjectFolder, StorePath
from titokctl.formats.replacing import SEAL, SHARDS_INDEX, listing_of

FORMAT = "titokctl/settings"
FORMAT_VERSION = 1


def record_settings(product: Path, output: Path, settings: Mapping[str, Any]) -> None:
    """Record what made `product`, a finished file or sealed folder that is about to be renamed to `output`."""
    if product.is_dir():
        path = _list_of(product)
        write_json(path, read_json(path) | {"settings": dict(settings)})
        return
    flush(product)
    about = {"format": FORMAT, "format_version": FORMAT_VERSION, **_state(product), "settings": dict(settings)}
    with disk_errors(output):
        write_json(_beside(output), about)


def recorded_settings(output: Path) -> dict[str, Any] | None:
    """Return the settings that made the product at `output`; None for anything of unknown origin, or nothing."""
    if isinstance(output, StorePath):
        return _recorded_in_store(output)
    try:
        mode = output.lstat().st_mode
    except OSError:
        return None
    if stat.S_ISDIR(mode):
        found = read_object(_list_of(output)) if _is_whole(output) else {}
    elif stat.S_ISREG(mode):
        found, state = read_object(_beside(output)), {"format": FORMAT, **_state(output)}
        found = found if all(found.get(name) == value for name, value in state.items()) else {}
    else:
        return None
    settings = found.get("settings")
    return settings if isinstance(settings, dict) else None


def publish_to_store(product: Path, output: StorePath, settings: Mapping[str, Any]) -> None:
    """Write a finished file or sealed folder to an address in an object store, with the settings that made it.

    Raises UserError when other contents have the name by now.
    """
    store = ObjectFolder(StorePath(output.parent))
    if product.is_dir():
        record_settings(product, output, settings)
    for path in sorted(path for path in [product, *product.rglob("*")] if path.is_file()):
        name = path.relative_to(product.parent).as_posix()
        if not store.create_file(name, path):
            raise UserError(f"{output.parent / name} exists already, with other contents", "choose another -o")
    if product.is_file():
        about = {"format": FORMAT, "format_version": FORMAT_VERSION, "size": product.stat().st_size}
        store.create(_beside(output).name, json.dumps(about | {"settings": dict(settings)}).encode())


def _recorded_in_store(output: StorePath) -> dict[str, Any] | None:
    beside, inside = ObjectFolder(StorePath(output.parent)), ObjectFolder(output)
    found, sizes = _parsed(beside.read(_beside(output).name)), beside.sizes()
    if found.get("format") != FORMAT or found.get("size") != sizes.get(output.name):
        found = _parsed(inside.read(SEAL))
        listed, sizes = found.get("files"), inside.sizes()
        if not isinstance(listed, dict) or any(sizes.get(name) != size for name, size in listed.items()):
            return None
    settings = found.get("settings")
    return settings if isinstance(settings, dict) else None


def _parsed(data: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(data or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_whole(folder: Path) -> bool:
    """Return True if every file of the product in `folder` is there with its listed size; others may lie beside."""
    listed = listing_of(folder)
    try:
        sizes = {name: size for name, size in (listed or {}).items() if size is not None}
        return listed is not None and all((folder / name).lstat().st_size == size for name, size in sizes.items())
    except OSError:
        return False


def _list_of(folder: Path) -> Path:
    return folder / (SEAL if (folder / SEAL).is_file() else SHARDS_INDEX)


def _beside(output: Path) -> Path:
    return output.with_name(f".{output.name}.settings.json")


def _state(file: Path) -> dict[str, int]:
    found = os.lstat(file)
    return {"size": found.st_size, "changed_ns": found.st_mtime_ns}
