"""Hugging Face data sets in parquet files."""

import json
import sys
from pathlib import Path

import pytest
from image_files import encoded, noise

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.pipeline import decode_units
from titokctl.data.sources import open_source, reopen_source
from titokctl.data.sources.choices import Choices
from titokctl.errors import UserError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
CLASSES = ["cat", "dog", "fish"]


def picture(seed: int) -> bytes:
    return encoded(noise(6, 5, seed=seed))


def write(
    path: Path,
    seeds: range,
    *,
    classes: list[str] | None = CLASSES,
    group: int = 4,
    names: bool = True,
    labels: list[int | None] | None = None,
) -> Path:
    """A file as the `datasets` library writes it: picture number i has label i % 3."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": picture(i), "path": f"img_{i:03d}.png" if names else None} for i in seeds]
    image = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    label = pa.array(labels if labels is not None else [i % 3 for i in seeds], pa.int64())
    table = pa.table({"image": image, "label": label})
    if classes is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=group)
    return path


def test_rows_are_read_by_position(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.parquet", range(10)), write(tmp_path / "b.parquet", range(10, 13))]
    source = open_source(paths)
    assert source.class_names == CLASSES
    assert source.labels().tolist() == [i % 3 for i in range(13)]
    assert source.keys() == [f"img_{i:03d}" for i in range(13)]
    assert [(u.first, u.count) for u in source.units] == [(0, 10), (10, 3)]
    for order in (range(13), [12, 0, 9, 3, 4, 12], []):
        samples = source.read_many(order)
        assert [(s.key, s.label, s.data) for s in samples] == [(f"img_{i:03d}", i % 3, picture(i)) for i in order]
    assert source.sizes().tolist() == [len(picture(i)) for i in range(13)]
    for position in (-1, 13):
        with pytest.raises(IndexError):
            source.sample(position)


def test_a_data_set_folder_means_its_training_files(tmp_path: Path) -> None:
    for name, seeds in (("test", range(2)), ("train", range(5)), ("validation", range(3))):
        write(tmp_path / f"data/{name}-00000-of-00001.parquet", seeds)
    assert len(open_source([tmp_path])) == 5
    assert len(open_source([tmp_path / "data/validation-00000-of-00001.parquet"])) == 3
    assert open_source([tmp_path]).description["kind"] == "parquet"


def test_without_names_and_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", range(3), classes=None, names=False, labels=[None, -1, 4])
    source = open_source([path])
    assert source.keys() == ["a/00000000", "a/00000001", "a/00000002"]
    assert (source.labels().tolist(), source.class_names) == ([-1, -1, 4], [])


def test_an_image_that_is_missing_is_rejected_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", range(3))
    table = pq.read_table(path)
    rows = table.column("image").to_pylist()
    rows[1] = None
    pq.write_table(table.set_column(0, "image", pa.array(rows, table.schema.field("image").type)), path)
    [unit] = decode_units(open_source([path]), [open_source([path]).units[0]], PreprocessingConfig(size=4))
    assert [r.kind for r in unit.rejected] == ["empty"]
    assert len(unit.pixels) == 2


def test_the_fingerprint_follows_labels_and_files(tmp_path: Path) -> None:
    found = [
        open_source([write(tmp_path / f"{n}/a.parquet", range(3), labels=labels)]).description
        for n, labels in enumerate(([0, 1, 2], [0, 1, 2], [0, 1, 1]))
    ]
    assert found[0]["listing"] == found[1]["listing"] != found[2]["listing"]
    assert len({one["fingerprint"] for one in found}) == 3


def test_bad_files_are_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "a.parquet", range(3))
    other = write(tmp_path / "b.parquet", range(3), classes=["cat", "fish", "dog"])
    with pytest.raises(UserError, match=r"b\.parquet has other classes or columns than .*a\.parquet"):
        open_source([first, other])
    with pytest.raises(UserError, match="contain the label 7, but have 3 class names"):
        open_source([write(tmp_path / "c.parquet", range(3), labels=[0, 7, 1])])
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "d.parquet")
    with pytest.raises(UserError, match=r"d\.parquet: it has no column of images"):
        open_source([tmp_path / "d.parquet"])
    (tmp_path / "e.parquet").write_bytes(first.read_bytes()[:300])
    with pytest.raises(UserError, match=r"e\.parquet can't be read as parquet"):
        open_source([tmp_path / "e.parquet"])
    with pytest.raises(UserError, match="no images in 1 parquet files"):
        open_source([write(tmp_path / "f.parquet", range(0))])


def test_without_pyarrow_the_hint_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", range(3))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match="need the package pyarrow") as caught:
        open_source([path])
    assert "pip install" in caught.value.hint
    assert "pyarrow" in caught.value.hint


def table(path: Path, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def pictures(count: int) -> object:
    return pa.array([picture(i) for i in range(count)], pa.binary())


def test_plain_columns_and_labels_that_are_names(tmp_path: Path) -> None:
    labels = pa.array(["dog", "cat", None, "dog"]).dictionary_encode()
    source = open_source([table(tmp_path / "a.parquet", img=pictures(4), fine_label=labels)])
    assert (source.class_names, source.by_position().labels().tolist()) == (["cat", "dog"], [1, 0, -1, 1])
    assert [s.data for s in source.by_position().read_many(range(4))] == [picture(i) for i in range(4)]
    assert source.remarks[0] == "labels from the column fine_label, images from the column img"


def test_columns_that_are_not_clear_are_chosen(tmp_path: Path) -> None:
    numbers = pa.array([3, 1], pa.int64())
    path = table(tmp_path / "a.parquet", left=pictures(2), right=pictures(2), fine_label=numbers, coarse_label=numbers)
    with pytest.raises(UserError, match="its columns left, right may all be images") as caught:
        open_source([path])
    assert "--image-column" in str(caught.value.hint)
    with pytest.raises(UserError, match="its columns fine_label, coarse_label may all be labels") as caught:
        open_source([path], choices=Choices(image_key="left"))
    assert "--label-column" in str(caught.value.hint)
    source = open_source([path], choices=Choices(image_key="right", label_key="coarse_label"))
    assert source.by_position().labels().tolist() == [3, 1]
    assert reopen_source(source.description).description == source.description
    assert open_source([path], choices=Choices(image_key="left", use_labels=False)).class_names == []
    with pytest.raises(UserError, match="has no column depth"):
        open_source([path], choices=Choices(image_key="depth"))


def test_the_layouts_of_the_hub(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        table(tmp_path / "a" / "default" / split / "0000.parquet", image=pictures(count))
        table(tmp_path / "b" / "data" / f"{split}-00000-of-00001.parquet", image=pictures(count))
        table(tmp_path / "c" / split / "0000.parquet", image=pictures(count))
        for config in ("full", "small"):
            table(tmp_path / "d" / config / split / "0.parquet", image=pictures(count))
    for name in "abc":
        assert len(open_source([tmp_path / name])) == 3
        assert len(open_source([tmp_path / name], choices=Choices(split="test"))) == 2
    with pytest.raises(UserError, match="several configurations: full, small"):
        open_source([tmp_path / "d"])
    with pytest.raises(UserError, match="of the split validation"):
        open_source([tmp_path / "a"], choices=Choices(split="validation"))


def test_other_files_of_that_name_are_named(tmp_path: Path) -> None:
    for text, words in (
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        (b"<html>", "an HTML page"),
    ):
        (tmp_path / "a.parquet").write_bytes(text)
        with pytest.raises(UserError, match=words):
            open_source([tmp_path / "a.parquet"])


def saved(folder: Path, counts: tuple[int, ...]) -> Path:
    """A data set as `save_to_disk` writes it."""
    folder.mkdir(parents=True)
    kind, first, files = pa.struct({"bytes": pa.binary(), "path": pa.string()}), 0, []
    for number, count in enumerate(counts):
        seeds = range(first, first + count)
        rows = pa.array([{"bytes": picture(i), "path": f"{i}.png"} for i in seeds], kind)
        part = pa.table({"image": rows, "label": pa.array([i % 3 for i in seeds], pa.int64())})
        name = f"data-{number:05d}-of-{len(counts):05d}.arrow"
        with pa.ipc.new_stream(str(folder / name), part.schema) as out:
            out.write_table(part, max_chunksize=2)
        files.append({"filename": name})
        first += count
    (folder / "state.json").write_text(json.dumps({"_data_files": files}))
    return folder


def test_a_saved_data_set_is_read(tmp_path: Path) -> None:
    source = open_source([saved(tmp_path / "a", (5, 2))]).by_position()
    assert source.labels().tolist() == [i % 3 for i in range(7)]
    assert source.keys() == [str(i) for i in range(7)]
    assert [s.data for s in source.read_many([6, 0, 4])] == [picture(i) for i in (6, 0, 4)]
    assert reopen_source(source.description).description == source.description
    saved(tmp_path / "b" / "train", (3,))
    saved(tmp_path / "b" / "test", (2,))
    assert len(open_source([tmp_path / "b"])) == 3
    assert len(open_source([tmp_path / "b"], choices=Choices(split="test"))) == 2


def test_a_damaged_saved_data_set_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", (5,))
    file = next(folder.glob("*.arrow"))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="can't be read as arrow"):
        open_source([folder])
    file.unlink()
    with pytest.raises(UserError, match="cannot read"):
        open_source([folder])
    for text in ("{broken", "{}", '{"_data_files": [{"filename": "../x.arrow"}]}'):
        (folder / "state.json").write_text(text)
        with pytest.raises(UserError, match=r"state\.json (does not list|lists files)"):
            open_source([folder])


def test_tables_on_a_server_are_refused_with_what_to_do() -> None:
    with pytest.raises(UserError, match="can't be read from a server") as caught:
        open_source(["https://127.0.0.1:1/data/a.arrow?sig=s3cret"])
    assert "download it first, then name a.arrow" in str(caught.value.hint)
    assert "s3cret" not in caught.value.message
