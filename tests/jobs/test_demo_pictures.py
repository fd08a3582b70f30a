"""The pictures of `titokctl demo --images`: every image once, a tenth held out, the same split each time."""

import numpy as np
import pytest
import tiny

from titokctl.context import Context
from titokctl.data.sources import open_source
from titokctl.errors import UserError
from titokctl.jobs.demo.pictures import own_images


def test_own_images_are_split_by_their_names(tmp_path):
    photos = tiny.class_folder(tmp_path / "photos", per_class=120)
    (photos / "cat/0003.jpg").write_bytes(b"\xff\xd8\xff nothing")
    made = own_images(photos, tmp_path / "shards", Context())
    train, held_out = (open_source([path]).by_position() for path in (made.train, made.held_out))
    assert len(train) + len(held_out) == 239, "the damaged one is left out"
    assert 8 <= len(held_out) <= 45
    assert not set(train.keys()) & set(held_out.keys())
    assert train.class_names == ["cat", "dog"]
    assert np.unique(train.labels()).tolist() == [0, 1]
    assert made.attributes["class"].tolist() == [0, 1]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").rglob("*.tar")}
    own_images(photos, tmp_path / "shards", Context())
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").rglob("*.tar")} == before


def test_too_few_images_are_refused(tmp_path):
    photos = tiny.class_folder(tmp_path / "photos", per_class=5)
    with pytest.raises(UserError, match="needs at least 200"):
        own_images(photos, tmp_path / "shards", Context())


def test_other_files_are_not_replaced(tmp_path):
    photos = tiny.class_folder(tmp_path / "photos", per_class=110)
    (tmp_path / "shards/train").mkdir(parents=True)
    (tmp_path / "shards/train/notes.txt").write_text("precious")
    with pytest.raises(UserError, match="won't be replaced"):
        own_images(photos, tmp_path / "shards", Context())
    assert (tmp_path / "shards/train/notes.txt").read_text() == "precious"
