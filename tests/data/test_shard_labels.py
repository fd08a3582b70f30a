"""Labels of shards: indices or names, chosen members, and metadata that is no label."""

import json
from collections import Counter
from pathlib import Path

import pytest
from image_files import encoded, noise
from tar_files import write_tar

from titokctl.data.sources import open_source, reopen_source
from titokctl.data.sources.choices import Choices
from titokctl.errors import UserError


def picture(seed: int) -> bytes:
    return encoded(noise(5, 5, seed=seed))


def shard(path: Path, *labels: tuple[str, bytes]) -> Path:
    """A picture for every label: its kind and its content."""
    members = [m for i, (kind, data) in enumerate(labels) for m in ((f"{i}.png", picture(i)), (f"{i}.{kind}", data))]
    return write_tar(path, members)


NO_LABEL = {
    "a caption": b'{"caption": "a cat"}',
    "not JSON": b"caption: a cat",
    "cut": b'{"caption": "a c',
    "a list": b'["cat"]',
    "null": b'{"label": null}',
    "nested too deeply": b"[" * 99999,
    "large": b'{"label": 1, "text": "' + b"x" * (2 << 20) + b'"}',
    "empty": b"",
}


@pytest.mark.parametrize("name", NO_LABEL)
def test_metadata_that_is_no_label_does_not_cost_the_image(tmp_path: Path, name: str) -> None:
    path = shard(tmp_path / "s.tar", ("json", NO_LABEL[name]), ("json", b'{"label": 3}'), ("json", b"{}"))
    source = open_source([path])
    assert source.by_position().labels().tolist() == [-1, 3, -1]
    assert not source.problems
    assert source.passed_over == {".json": 2}
    assert "without a label (-1): 2 of 3 images" in source.remarks


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("cls", b"-1"), ("cls", b""), ("cls", b"\xff\xfe"), ("cls", b"99999999999"), ("cls", b"cat"),
        ("json", b'{"label": 1.5}'), ("json", b'{"label": [1]}'), ("json", b'{"label": true}'),
        ("json", b'{"label": "cat"}'), ("json", b'{"label": ""}'),
    ],
)  # fmt: skip
def test_a_label_that_is_there_and_unusable_is_a_rejection(tmp_path: Path, kind: str, data: bytes) -> None:
    source = open_source([shard(tmp_path / "s.tar", (kind, data), ("cls", b"3"))])
    assert [(p.key, p.kind) for p in source.problems] == [("0", "bad-label")]
    assert source.by_position().keys() == ["1"]
    all_of_them = open_source([tmp_path / "s.tar"], choices=Choices(use_labels=False))
    assert (all_of_them.by_position().labels().tolist(), all_of_them.problems) == ([-1, -1], [])


def test_labels_that_are_names_are_numbered_over_all_shards(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", ("cls", b"dog\n"), ("json", b'{"label": "emu"}'))
    write_tar(tmp_path / "1.tar", [("x.png", picture(8)), ("x.cls", b"cat"), ("y.png", picture(9))])
    for _ in range(2):  # the second time from the saved index
        source = open_source([tmp_path])
        assert source.class_names == ["cat", "dog", "emu"]
        assert source.by_position().labels().tolist() == [1, 2, 0, -1]
    assert source.remarks[:2] == [
        "the labels are 3 names, numbered in text order: cat is 0, emu is 2",
        "without a label (-1): 1 of 4 images",
    ]
    assert reopen_source(source.description).description == source.description


def test_names_in_one_shard_and_numbers_in_another(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", ("cls", b"1"), ("cls", b"0"))
    write_tar(tmp_path / "1.tar", [("x.png", picture(8)), ("x.cls", b"cat")])
    source = open_source([tmp_path])
    assert (len(source), Counter(p.kind for p in source.problems)) == (2, {"bad-label": 1})


def test_the_members_of_a_sample_can_be_chosen(tmp_path: Path) -> None:
    members = [
        ("0.image.png", picture(0)), ("0.depth.png", picture(1)), ("0.cls", b"7"), ("0.fine.cls", b"3"),
        ("1.image.png", picture(2)), ("1.json", json.dumps({"label": 7, "breed": "pug"}).encode()),
    ]  # fmt: skip
    path = write_tar(tmp_path / "s.tar", members)
    with pytest.raises(UserError, match="none of 2 samples") as caught:
        open_source([path])
    assert "--image-key" in str(caught.value.hint)
    source = open_source([path], choices=Choices(image_key="image.png", label_key="fine.cls"))
    assert source.by_position().labels().tolist() == [3, -1]
    assert [s.data for s in source.by_position().read_many([0, 1])] == [picture(0), picture(2)]
    assert reopen_source(source.description).description == source.description
    named = open_source([path], choices=Choices(image_key="image.png", label_key="breed"))
    assert (named.class_names, named.by_position().labels().tolist()) == (["pug"], [-1, 0])
    assert open_source([path], choices=Choices(image_key="depth.png")).by_position().labels().tolist() == [7]
