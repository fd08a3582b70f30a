"""Labels of folders: splits, classes and their order are said, and never guessed where there are two readings."""

import json
from pathlib import Path

import pytest
from image_files import encoded, noise

from titokctl.data.sources import Source, open_source, reopen_source
from titokctl.data.sources.choices import Choices
from titokctl.data.sources.source import difference
from titokctl.errors import UsageError, UserError

PNG = encoded(noise(4, 4))


def images(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PNG)
    return root


def labels(source: Source) -> dict[str, int]:
    by_position = source.by_position()
    return dict(zip(by_position.keys(), by_position.labels().tolist(), strict=True))


@pytest.mark.parametrize("emptied", ["empty", "with a text", "hidden file only"])
def test_a_class_without_an_image_keeps_its_number(tmp_path: Path, emptied: str) -> None:
    images(tmp_path, "cat/0.png", "emu/0.png")
    (tmp_path / "dog").mkdir()
    if emptied != "empty":
        (tmp_path / "dog" / (".x" if "hidden" in emptied else "x.txt")).write_text("x")
    source = open_source([tmp_path])
    assert (source.class_names, labels(source)) == (["cat", "dog", "emu"], {"cat/0": 0, "emu/0": 2})
    assert any("1 class without images, which keep their numbers: dog" in remark for remark in source.remarks)


def test_the_classes_that_were_chosen_are_always_said(tmp_path: Path) -> None:
    source = open_source([images(tmp_path, "b/0.png", "a/0.png", "c/0.png")])
    assert source.remarks == [f"3 classes from the folders of {tmp_path}, sorted as text: a is 0, c is 2"]


def test_removing_an_empty_class_makes_another_source(tmp_path: Path) -> None:
    images(tmp_path, "b/0.png")
    (tmp_path / "a").mkdir()
    before = open_source([tmp_path]).description
    (tmp_path / "a").rmdir()
    assert difference(before, open_source([tmp_path]).description) == "the labels differ"


SPLITS = {  # files -> what is read, or None where it is not clear
    "splits with classes": (("train/cat/0.png", "val/cat/0.png"), ["cat"]),
    "train with classes, val without": (("train/cat/0.png", "val/0.png"), ["cat"]),
    "train alone, without classes": (("train/0.png",), []),
    "classes, one of them called train": (("train/0.png", "bus/0.png"), ["bus", "train"]),
    "classes, some called train and test": (("train/0.png", "test/0.png", "bus/0.png"), ["bus", "test", "train"]),
    "train and test without classes": (("train/0.png", "test/0.png"), None),
    "val and test with classes": (("val/cat/0.png", "test/cat/0.png"), None),
    "splits beside another folder of images": (("train/cat/0.png", "extra/0.png"), None),
    "a split that is nested only elsewhere": (("train/0.png", "val/cat/0.png"), None),
}


@pytest.mark.parametrize("name", SPLITS)
def test_splits_and_classes(tmp_path: Path, name: str) -> None:
    files, classes = SPLITS[name]
    images(tmp_path, *files)
    if classes is not None:
        assert open_source([tmp_path]).class_names == classes
        return
    with pytest.raises(UserError, match="may be splits or classes") as caught:
        open_source([tmp_path])
    assert "--split" in str(caught.value.hint)
    folders = sorted({file.split("/")[0] for file in files})
    taken = open_source([tmp_path], choices=Choices(split="none"))
    assert taken.class_names == folders
    one = open_source([tmp_path], choices=Choices(split=folders[0]))
    assert any(f"reading the split {folders[0]}" in remark for remark in one.remarks)
    assert reopen_source(one.description).description == one.description


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    images(tmp_path, "train/cat/0.png")
    with pytest.raises(UsageError, match="has no sub-folder valid") as caught:
        open_source([tmp_path], choices=Choices(split="valid"))
    assert "its sub-folders: train" in str(caught.value.hint)


def test_numeric_folders_are_refused_where_text_order_is_another_one(tmp_path: Path) -> None:
    images(tmp_path / "a", "1/0.png", "2/0.png", "10/0.png")
    with pytest.raises(UserError, match="class 1 would be 10, not 2") as caught:
        open_source([tmp_path / "a"])
    assert "--sort natural" in str(caught.value.hint)
    assert open_source([tmp_path / "a"], choices=Choices(sort="natural")).class_names == ["1", "2", "10"]
    assert open_source([tmp_path / "a"], choices=Choices(sort="name")).class_names == ["1", "10", "2"]
    assert open_source([images(tmp_path / "b", "01/0.png", "02/0.png", "10/0.png")]).class_names == ["01", "02", "10"]
    assert open_source([images(tmp_path / "c", "v1/0.png", "v2/0.png", "v10/0.png")]).class_names == ["v1", "v10", "v2"]


def test_a_list_of_classes_decides_their_order(tmp_path: Path) -> None:
    images(tmp_path / "in", "cat/0.png", "dog/0.png")
    (tmp_path / "classes.txt").write_text("zebra\ndog\ncat\n")
    choices = Choices(classes=tmp_path / "classes.txt")
    source = open_source([tmp_path / "in"], choices=choices)
    assert (source.class_names, labels(source)) == (["zebra", "dog", "cat"], {"dog/0": 1, "cat/0": 2})
    assert reopen_source(source.description).description == source.description
    for text, message in (("dog\n", "does not list the folders cat"), ("cat\ndog\ncat\n", "lists the class cat twice")):
        (tmp_path / "classes.txt").write_text(text)
        with pytest.raises(UserError, match=message):
            open_source([tmp_path / "in"], choices=choices)


def test_without_labels_every_image_below_is_read(tmp_path: Path) -> None:
    images(tmp_path, "0.png", "cat/0.png", "dog/deep/0.png")
    with pytest.raises(UserError, match="holds 1 image itself and others in 2 folders") as caught:
        open_source([tmp_path])
    assert "--no-labels" in str(caught.value.hint)
    source = open_source([tmp_path], choices=Choices(use_labels=False))
    assert (source.class_names, labels(source)) == ([], {"0": -1, "cat/0": -1, "dog/deep/0": -1})
    assert reopen_source(source.description).description == source.description


TOOL = ("00000/img00000000.png", "00000/img00000001.png", "00001/img00001000.png")


def test_folders_of_dataset_tool_are_no_classes(tmp_path: Path) -> None:
    images(tmp_path, *TOOL)
    with pytest.raises(UserError, match=r"which are not classes, and its dataset\.json is missing"):
        open_source([tmp_path])
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": [[name, 7 * i] for i, name in enumerate(TOOL)]}))
    source = open_source([tmp_path])
    assert source.by_position().labels().tolist() == [0, 7, 14]
    assert (source.passed_over, source.description["label_files"]) == ({}, 1)
    before = source.description
    (tmp_path / "dataset.json").write_text('{"labels": null}')
    source = open_source([tmp_path])
    assert source.by_position().labels().tolist() == [-1, -1, -1]
    assert difference(before, source.description) == "the labels differ"


def test_labels_of_metadata_files(tmp_path: Path) -> None:
    images(tmp_path / "a", "0.png", "1.png", "2.png")
    (tmp_path / "a" / "metadata.jsonl").write_text(
        '{"file_name": "0.png", "label": "dog"}\n\n{"file_name": "1.png", "label": "cat"}\n'
    )
    source = open_source([tmp_path / "a"])
    assert (source.class_names, labels(source)) == (["cat", "dog"], {"0": 1, "1": 0, "2": -1})
    assert source.remarks[0] == "labels from label in metadata.jsonl; 1 image without one (-1)"
    images(tmp_path / "b", "0.png", "1.png")
    (tmp_path / "b" / "metadata.csv").write_text("file_name,caption,grade\n0.png,a dog,3\n1.png,a cat,1\n")
    assert labels(open_source([tmp_path / "b"])) == {"0": -1, "1": -1}
    assert labels(open_source([tmp_path / "b"], choices=Choices(label_key="grade"))) == {"0": 3, "1": 1}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.jsonl", '{"file_name": "9.png", "label": 1}', "lists 1 image that can't be found, such as 9.png"),
        ("metadata.jsonl", "{broken", "line 1 of metadata.jsonl is not JSON"),
        ("metadata.jsonl", '{"label": 1}', "has a row without file_name"),
        ("metadata.jsonl", '{"file_name": "0.png", "label": [1]}', "is not a label"),
        ("metadata.jsonl", '{"file_name": "0.png", "label": 1}\n{"file_name": "1.png", "label": "a"}', "both"),
        ("dataset.json", "{broken", "dataset.json is damaged"),
        ("dataset.json", '{"labels": [["0.png", [1, 0]]]}', "not .name, class index."),
        ("dataset.json", '{"labels": [["9.png", 0]]}', "lists 1 image that can't be found"),
    ],
)
def test_a_list_of_labels_that_does_not_fit_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    images(tmp_path, "0.png", "1.png")
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        open_source([tmp_path])
