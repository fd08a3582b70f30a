"""A sample set: images drawn by a generator, their ids, and what made them.

Specification: a folder with
    manifest.json   format "titokctl/sample-set", format_version 1, num_images, image_size, images (the name of what
                    holds them, ids.h5 when none were kept), image_format, settings, and more about how they were made;
                    written last, so a folder without it holds no finished set
    images.npz, images/ or shards/
                    the images, as `image_output` says
    ids.h5          a token cache (`token_cache`) with the ids and labels of the same images, in the same order
    grid.png        the first 64 images
While it is being written, `.unfinished/` holds settings.json, the images so far, the chunks of `chunk_writer`, and what
is worked out from the images on the way (`*.raw`). Which settings an unfinished set belongs to says settings.json.
A run folder whose samples lie elsewhere holds location.json instead: {"folder": absolute path}.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from titokctl.config.differences import flat_differences
from titokctl.errors import UserError
from titokctl.formats.atomic import check_version, read_json, write_json
from titokctl.formats.image_output import PRODUCTS

FORMAT = "titokctl/sample-set"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
IDS = "ids.h5"
GRID = "grid.png"
LOCATION = "location.json"
SETTINGS = "settings.json"
UNFINISHED = ".unfinished"
_NOT_CONTENT = {".lock", "run.json", LOCATION}

State = Literal["empty", "unfinished", "finished", "foreign"]


@dataclass(frozen=True)
class SampleSet:
    """A finished sample set."""

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: Path | str) -> "SampleSet":
        """Read a sample set, given its folder or the run folder that points to it.

        Raises UserError when there is none, or an unfinished one, or one of a newer format.
        """
        folder = _followed(Path(path))
        if state_of(folder) != "finished":
            hint = "run the `titokctl sample` command that made it again" if state_of(folder) == "unfinished" else ""
            raise UserError(f"{folder} holds no finished sample set", hint)
        manifest = read_json(folder / MANIFEST)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise UserError(f"{folder / MANIFEST} is not the manifest of a sample set")
        check_version(manifest.get("format_version", 0), FORMAT_VERSION, folder, "sample set")
        if manifest.get("images") not in (*PRODUCTS.values(), IDS):
            raise UserError(f"{folder / MANIFEST} names no images this titokctl knows: {manifest.get('images')!r}")
        return cls(folder, manifest)

    @property
    def images(self) -> Path:
        """The .npz, the folder of image files or of shards, or the ids where no images were kept."""
        return self.folder / self.manifest["images"]

    @property
    def ids(self) -> Path:
        """The token cache with the ids of the images."""
        return self.folder / IDS


def state_of(folder: Path) -> State:
    """Whether a folder holds a finished set, an unfinished one, nothing, or something that is not ours."""
    if (folder / MANIFEST).is_file():
        return "finished"
    if (folder / UNFINISHED / SETTINGS).is_file():
        return "unfinished"
    if not folder.exists():
        return "empty"
    if not folder.is_dir():
        return "foreign"
    return "foreign" if {p.name for p in folder.iterdir()} - _NOT_CONTENT - {UNFINISHED} else "empty"


def changed_settings(folder: Path, settings: dict[str, Any]) -> list[str]:
    """Differences, "a.b: old -> new", between `settings` and those of the finished or unfinished set in `folder`."""
    if state_of(folder) == "finished":
        return flat_differences(SampleSet.open(folder).manifest["settings"], settings)
    return flat_differences(read_json(folder / UNFINISHED / SETTINGS), settings)


def remove(folder: Path) -> None:
    """Remove the set in `folder`, finished or not, and leave everything else that is there.

    Raises UserError when what looks like a finished set is not ours.
    """
    state = state_of(folder)
    if state not in ("finished", "unfinished"):
        return
    if state == "finished":
        SampleSet.open(folder)
    # The manifest first: what is left after a kill is no finished set.
    for name in (MANIFEST, *PRODUCTS.values(), IDS, GRID, UNFINISHED):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def record_location(run: Path, folder: Path) -> None:
    """Let the run folder `run` point to the set in `folder`."""
    write_json(run / LOCATION, {"folder": str(folder.absolute())})


def _followed(path: Path) -> Path:
    """The folder of the set: `path`, or where the run folder `path` says its samples lie."""
    if not (path / LOCATION).is_file() or (path / MANIFEST).exists():
        return path
    record = read_json(path / LOCATION)
    if not isinstance(record, dict) or not isinstance(record.get("folder"), str):
        raise UserError(f"{path / LOCATION} names no folder")
    return Path(record["folder"])
