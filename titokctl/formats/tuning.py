"""The results of `titokctl tune`, and what it keeps on the way.

Specification: a folder with
    settings.yaml    the proposed sampling settings, in the form that `titokctl sample --settings` takes: the preset's
                     if no other settings are better
    tuning.json      format "titokctl/tuning", format_version 1, `versions` of packages, and the fields of `TuneResult`
    report.html      the same for people, with the front of cost and quality
    .titokctl.json   the list of these files (`replacing`)
Until it is finished, `.<name>.unfinished/` holds settings.json, everything that decides about the race; `product/`, the
folder when it is complete; and for each piece of drawn images `features-<setting>-<first image>.npz` with
    features (n, D)  float32, of the images from the first on
    seconds ()       float64, the time that drawing and judging them took
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from titokctl.errors import UserError
from titokctl.formats.atomic import atomic_path, check_version, read_json, write_bytes, write_json
from titokctl.formats.npz_reader import NpzReader
from titokctl.formats.replacing import seal
from titokctl.formats.run_folder import versions

FORMAT, FORMAT_VERSION = "titokctl/tuning", 1
SETTINGS, RESULT, REPORT, PRODUCT = "settings.yaml", "tuning.json", "report.html", "product"
_PIECE = re.compile(r"features-(\d{4})-(\d{8})\.npz")


class KeptFeatures:
    """The features of the images that were drawn so far, in pieces, in the folder of the unfinished work."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pieces: dict[tuple[int, int], tuple[np.ndarray, float]] = {}
        for path in sorted(folder.glob("features-*.npz")):
            if found := _PIECE.fullmatch(path.name):
                with NpzReader(path) as npz:
                    piece = npz.array("features"), float(npz.array("seconds"))
                self._pieces[int(found[1]), int(found[2])] = piece

    def add(self, setting: int, first: int, features: np.ndarray, seconds: float) -> None:
        """Keep the features (n, D) float32 of images `first` to `first + n - 1`, durably."""
        path = self._folder / f"features-{setting:04d}-{first:08d}.npz"
        with atomic_path(path, is_replaceable=True) as temporary, temporary.open("wb") as file:
            np.savez(file, features=features, seconds=np.array(seconds))
        self._pieces[setting, first] = features, seconds

    def at(self, setting: int, first: int) -> np.ndarray | None:
        """Return the features of the piece that begins with image `first`; None if there is none."""
        found = self._pieces.get((setting, first))
        return None if found is None else found[0]

    def seconds(self, setting: int, first: int) -> float:
        """Return the time that the piece took."""
        return self._pieces[setting, first][1]

    def seconds_per_image(self, setting: int) -> float:
        """Return the mean time of an image of the setting, over all pieces."""
        mine = [piece for (number, _), piece in self._pieces.items() if number == setting]
        return sum(seconds for _, seconds in mine) / sum(len(features) for features, _ in mine)

    @property
    def num_images(self) -> int:
        """The number of images of all settings."""
        return sum(len(features) for features, _ in self._pieces.values())

    @property
    def all_seconds(self) -> float:
        """The time that all of them took."""
        return sum(seconds for _, seconds in self._pieces.values())


def write_tuning(folder: Path, settings: dict[str, Any], remarks: list[str], result: dict[str, Any]) -> None:
    """Write settings.yaml, which `remarks` head as comments, and tuning.json, and list the files of the folder."""
    head = "".join(f"# {line}\n" for line in remarks)
    write_bytes(folder / SETTINGS, (head + yaml.safe_dump(settings, sort_keys=False)).encode())
    record = {"format": FORMAT, "format_version": FORMAT_VERSION, "versions": versions()}
    write_json(folder / RESULT, record | result)
    seal(folder, "tuning")


def read_tuning(folder: Path) -> dict[str, Any]:
    """Return the contents of tuning.json in `folder`. Raises UserError for anything else, or a newer version."""
    path = folder / RESULT
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{path} is not a result of `titokctl tune`", "choose another folder with -o")
    check_version(found.get("format_version", 0), FORMAT_VERSION, path, "tuning")
    return found
