"""Zip archives of images."""

import json
import os
import zipfile
from pathlib import Path

import pytest
from image_files import encoded, noise

from titokctl.data.sources import open_source
from titokctl.data.sources.source import difference
from titokctl.errors import UserError

PNG = encoded(noise(6, 6))


def archive(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as out:
        for name, data in members.items():
            out.writestr(name, data)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_everything_in_an_archive_is_accounted_for(tmp_path: Path, method: int) -> None:
    members = {
        "00000/img00000000.png": PNG, "00000/img00000001.bmp": encoded(noise(6, 6), "BMP"), "odd": PNG,
        "notes.txt": b"x", "__MACOSX/._a.png": b"x", ".hidden/1.png": PNG,
        "dataset.json": json.dumps({"labels": [["00000/img00000001.bmp", 4]]}).encode(), "folder/": b"",
    }  # fmt: skip
    source = open_source([archive(tmp_path / "a.zip", members, method)]).by_position()
    assert source.keys() == ["00000/img00000000", "00000/img00000001", "odd"]
    assert source.labels().tolist() == [-1, 4, -1]
    assert source.passed_over == {".txt": 1, "hidden": 2}
    assert source.description["label_files"] == 1
    assert source.remarks == ["labels from labels in dataset.json; 2 images without one (-1)"]
    assert source.sample(0).data == PNG


def test_an_archive_without_labels_says_so(tmp_path: Path) -> None:
    source = open_source([archive(tmp_path / "a.zip", {"cat/1.png": PNG})])
    assert "no labels: " in source.remarks[0]


def test_other_archives_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no images in"):
        open_source([archive(tmp_path / "a.zip", {"a.txt": b"x"})])
    with pytest.raises(UserError, match="lists 1 image that can't be found"):
        open_source([archive(tmp_path / "b.zip", {"a.png": PNG, "dataset.json": b'{"labels": [["b.png", 1]]}'})])
    (tmp_path / "c.zip").write_bytes(b"<html>log in")
    with pytest.raises(UserError, match="an HTML page"):
        open_source([tmp_path / "c.zip"])
    whole = archive(tmp_path / "d.zip", {"a.png": PNG, "b.png": PNG}).read_bytes()
    (tmp_path / "d.zip").write_bytes(whole[:-30])
    with pytest.raises(UserError, match=r"d\.zip is not a whole zip archive"):
        open_source([tmp_path / "d.zip"])
    broken = whole.replace(PNG, PNG[:-8] + b"damaged!", 1)
    (tmp_path / "e.zip").write_bytes(broken)
    with pytest.raises(UserError, match=r"e\.zip is not a whole zip archive: Bad CRC"):
        open_source([tmp_path / "e.zip"]).by_position().sample(0)


def test_an_archive_that_changes_is_noticed(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"a.png": PNG})
    before = open_source([path]).by_position()
    os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match="changed while it was in use"):
        before.sample(0)
    archive(path, {"a.png": encoded(noise(6, 6, seed=1))})
    assert difference(before.description, open_source([path]).description) is not None
