"""Checks over all shards: counts, names of labels, labels and keys; every loss is reported."""

import json
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from image_files import encoded, noise
from tar_files import write_tar

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.pipeline import decode_units
from titokctl.data.sources import Source, open_source
from titokctl.errors import UserError


def picture(seed: int) -> bytes:
    return encoded(noise(5, 5, seed=seed))


def shard(path: Path, seeds: range, *, per_shard_keys: bool = False) -> Path:
    keys = [f"{i - seeds[0] if per_shard_keys else i:04d}" for i in seeds]
    pairs = [((f"{k}.png", picture(i)), (f"{k}.cls", str(i % 2).encode())) for k, i in zip(keys, seeds, strict=True)]
    return write_tar(path, [member for pair in pairs for member in pair])


def problems(source: Source) -> dict[str, int]:
    return dict(Counter(p.kind for p in source.problems))


def timm(a: int, b: int) -> dict[str, Any]:
    return {"splits": {"train": {"num_samples": a + b, "filenames": ["s/0.tar", "1.tar"], "shard_lengths": [a, b]}}}


COUNTS = {
    "_info.json": timm,
    "info.json": timm,
    "sizes.json": lambda a, b: {"0.tar": a, "1.tar": b},
    "_stats.json": lambda a, b: a,
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_other_tools_are_checked(tmp_path: Path, name: str) -> None:
    shard(tmp_path / "0.tar", range(3))
    shard(tmp_path / "1.tar", range(3, 5))

    def tell(a: int, b: int) -> None:
        if name == "_stats.json":
            for i, n in enumerate((a, b)):
                (tmp_path / f"{i}_stats.json").write_text(json.dumps({"count": 9, "successes": n}))
        else:
            (tmp_path / name).write_text(json.dumps(COUNTS[name](a, b)))

    tell(3, 2)
    assert len(open_source([tmp_path])) == 5
    tell(3, 4)
    with pytest.raises(UserError, match=rf"1\.tar has 2 images, but \w*{name} records 4"):
        open_source([tmp_path])


@pytest.mark.parametrize("text", ["{broken", "[]", '{"splits": 3}', '{"splits": {"train": {"filenames": 1}}}', "7"])
def test_files_of_that_name_that_say_nothing_are_passed_over(tmp_path: Path, text: str) -> None:
    shard(tmp_path / "0.tar", range(3))
    for name in ("_info.json", "sizes.json", "0_stats.json"):
        (tmp_path / name).write_text(text)
    assert len(open_source([tmp_path])) == 3


def test_samples_without_an_image_count_in_other_tools_numbers(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("a.png", picture(0)), ("b.cls", b"0")])
    (tmp_path / "sizes.json").write_text('{"0.tar": 2}')
    source = open_source([tmp_path])
    assert (len(source), problems(source)) == (1, {"no-image": 1})


def named(label: int, name: str) -> bytes:
    return json.dumps({"label": label, "class_name": name}).encode()


def test_class_names_come_from_json_labels(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("a.png", picture(0)), ("a.json", named(1, "dog"))])
    write_tar(tmp_path / "1.tar", [("b.png", picture(1)), ("b.json", named(0, "cat"))])
    source = open_source([tmp_path])
    assert (source.class_names, source.labels().tolist()) == (["cat", "dog"], [1, 0])
    assert open_source([tmp_path]).class_names == ["cat", "dog"]
    assert open_source([tmp_path / "0.tar"]).class_names == []


def test_a_label_map_that_changes_is_an_error(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("a.png", picture(0)), ("a.json", named(1, "dog"))])
    write_tar(tmp_path / "1.tar", [("b.png", picture(1)), ("b.json", named(1, "cat"))])
    with pytest.raises(UserError, match=r"label 1 is 'dog' in .*0\.tar and 'cat' in .*1\.tar"):
        open_source([tmp_path])
    members = [("a.png", picture(0)), ("a.json", named(1, "dog")), ("b.png", picture(1)), ("b.json", named(1, "cat"))]
    with pytest.raises(UserError, match=r"2\.tar contradicts itself: the label 1 is 'dog' and 'cat'"):
        open_source([write_tar(tmp_path / "2.tar", members)])


def test_bad_missing_and_impossible_labels_are_left_out_by_kind(tmp_path: Path) -> None:
    members = [
        ("a.png", picture(0)), ("a.cls", b"0"),
        ("b.png", picture(1)), ("b.cls", b"cat"),
        ("c.png", picture(2)),
        ("d.png", picture(3)), ("d.cls", b"2"),
        ("e.png", picture(4)), ("e.cls", b"x"), ("e.json", b"{broken"),
        ("f.cls", b"0"),
        ("g.png", picture(5)), ("g.cls", b"1"),
    ]  # fmt: skip
    write_tar(tmp_path / "0.tar", members)
    record = {"format": "titokctl/shards", "format_version": 1, "class_names": ["cat", "dog"], "shards": []}
    (tmp_path / "index.json").write_text(json.dumps(record))
    source = open_source([tmp_path])
    assert (source.keys(), source.labels().tolist()) == (["a", "c", "g"], [0, -1, 1])
    assert problems(source) == {"bad-label": 2, "label-range": 1, "no-image": 1}
    assert [s.data for s in source.read_many([0, 1, 2])] == [picture(0), picture(2), picture(5)]
    assert "without a label (-1): 1 of 3 images" in source.remarks
    assert len(source) + len(source.problems) == 7


def test_unlabelled_shards_stay_whole(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("a.png", picture(0)), ("b.png", picture(1))])
    assert open_source([tmp_path]).labels().tolist() == [-1, -1]


def test_a_copied_shard_is_noticed(tmp_path: Path) -> None:
    for name in ("0", "1"):
        shard(tmp_path / f"{name}.tar", range(3))
    shard(tmp_path / "2.tar", range(3, 6))
    source = open_source([tmp_path])
    assert source.keys() == ["0000", "0001", "0002", "0003", "0004", "0005"]
    assert problems(source) == {"duplicate": 3}
    assert source.problems[0].reason == "also in 0.tar, byte for byte"


def test_equal_keys_in_two_shards_get_the_name_of_the_shard(tmp_path: Path) -> None:
    shard(tmp_path / "x.tar", range(2), per_shard_keys=True)
    shard(tmp_path / "y.tar", range(2, 4), per_shard_keys=True)
    shard(tmp_path / "z.tar", range(100, 102))
    source = open_source([tmp_path])
    assert source.keys() == ["x/0000", "x/0001", "y/0000", "y/0001", "0100", "0101"]
    assert [s.key for s in source.read_many([2, 5])] == ["y/0000", "0101"]
    assert [s.data for s in source.read_many(range(4))] == [picture(i) for i in range(4)]
    assert not source.problems


def test_members_of_hostile_shards_are_counted_by_kind(tmp_path: Path) -> None:
    bomb = bytearray(encoded(noise(4, 4)))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    members = [
        ("good.png", picture(0)), ("many.dots.png", picture(1)), ("dots.png", picture(2)),
        ("eps.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        ("gif.jpg", b"GIF89a" + bytes(30)), ("bomb.png", bytes(bomb)), ("empty.png", b""),
        ("code.pyd", b"\x80\x04evil"), ("code.pickle", b"\x80\x04evil"), ("code.pth", b"\x80\x04evil"),
    ]  # fmt: skip
    source = open_source([write_tar(tmp_path / "0.tar", members)])
    [unit] = decode_units(source, [source.units[0]], PreprocessingConfig(size=4))
    assert unit.keys == ["good", "dots"]
    assert Counter(r.kind for r in unit.rejected) == {"format": 1, "truncated": 1, "too-large": 1, "empty": 1}
    assert [(p.key, p.kind) for p in source.problems] == [("many", "several-dots")]
