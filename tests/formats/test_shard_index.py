"""The offset index of tar shards: what it finds, what it refuses, and when it is made anew."""

import os
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from image_files import encoded, noise, webdataset_samples
from tar_files import write_tar

from titokctl.errors import UserError
from titokctl.formats.shard_index import FOLDER, ShardIndex, open_index
from titokctl.formats.shard_scan import scan

PNG = encoded(noise(4, 4))


def samples(n: int) -> list[tuple[str, bytes]]:
    pairs = [(f"a/{i:04d}.png", PNG + bytes(i)) for i in range(n)]
    return [part for i, pair in enumerate(pairs) for part in (pair, (f"a/{i:04d}.cls", str(i % 3).encode()))]


def problem_counts(index: ShardIndex) -> dict[str, int]:
    return Counter(kind for _, kind, _ in index.problems)


def test_finds_what_webdataset_finds(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", samples(20))
    index = open_index(path)
    data = path.read_bytes()
    expected = webdataset_samples(path)
    assert [index.key(i) for i in range(len(index))] == [s["__key__"] for s in expected]
    for i, sample in enumerate(expected):
        begin, size = int(index.offsets[i]), int(index.sizes[i])
        assert data[begin : begin + size] == sample["png"]
        assert index.labels[i] == int(sample["cls"])


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(tmp_path: Path, format: int) -> None:
    names = ["d" * 60 + "/" + "f" * 80, "größe/файл"]
    if format != tarfile.USTAR_FORMAT:
        names.append("x" * 300)
    index = open_index(write_tar(tmp_path / "s.tar", [(f"{n}.png", PNG) for n in names], format=format))
    assert [index.key(i) for i in range(len(index))] == names


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    data = write_tar(tmp_path / "whole.tar", samples(3)).read_bytes()
    end = data.rstrip(b"\0")
    content_end = (len(end) + 511) // 512 * 512
    cuts = [*range(256, content_end, 256), content_end, content_end + 512, content_end + 1023]
    for cut in cuts:
        path = tmp_path / f"cut{cut}.tar"
        path.write_bytes(data[:cut])
        assert open_index(path).cut.startswith("cut after")
    whole = tmp_path / "end.tar"
    whole.write_bytes(data[: content_end + 1024])
    assert (len(open_index(whole)), open_index(whole).cut) == (3, "")


def test_a_cut_shard_gives_its_whole_members(tmp_path: Path) -> None:
    data = write_tar(tmp_path / "whole.tar", samples(3)).read_bytes()
    path = tmp_path / "cut.tar"
    path.write_bytes(data[:2600])
    for _ in range(2):  # the second time from the kept index
        index = open_index(path)
        assert (len(index), index.cut) == (1, "cut after 2,600 bytes: it ends inside a member")


def test_two_tars_in_one_file_are_refused(tmp_path: Path) -> None:
    data = write_tar(tmp_path / "a.tar", samples(2)).read_bytes()
    (tmp_path / "b.tar").write_bytes(data + data)
    with pytest.raises(UserError, match="more after its end"):
        open_index(tmp_path / "b.tar")


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, b"\x1f\x8b" + bytes(2000)])
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    with pytest.raises(UserError, match="is not a whole tar file"):
        open_index(path)


def test_problems_are_counted_by_kind(tmp_path: Path) -> None:
    members = [
        ("good.png", PNG), ("good.cls", b"1"),
        ("twice.jpg", PNG), ("twice.png", PNG),
        ("alone.cls", b"4"),
        ("words.png", PNG), ("words.cls", b"cat"),
        ("negative.png", PNG), ("negative.cls", b"-3"),
        ("contradiction.png", PNG), ("contradiction.cls", b"1"), ("contradiction.json", b'{"label": 2}'),
        ("code.pyd", b"\x80\x04evil"), ("code.pickle", b"\x80\x04evil"), ("code.png", PNG),
        ("many.dots.in.png", PNG), ("many.png", PNG),
    ]  # fmt: skip
    index = open_index(write_tar(tmp_path / "s.tar", members))
    assert [index.key(i) for i in range(len(index))] == [
        "good", "twice", "words", "negative", "contradiction", "code", "many",
    ]  # fmt: skip
    assert index.labels.tolist() == [1, -1, -1, -1, 1, -1, -1]
    assert problem_counts(index) == {"bad-label": 3, "duplicate": 1, "no-image": 1}


def test_labels_in_json(tmp_path: Path) -> None:
    bodies = [
        b'{"label": 7}',
        b'{"cls": 8, "url": "x"}',
        b'{"caption": "none"}',
        b"{broken",
        b'{"label": "cat"}',
        b"[" * 99999,
    ]
    members = [part for i, body in enumerate(bodies) for part in ((f"{i}.json", body), (f"{i}.JPG", PNG))]
    index = open_index(write_tar(tmp_path / "s.tar", members))
    assert index.labels.tolist() == [7, 8, -1, -1, -1, -1]
    assert problem_counts(index) == {"bad-label": 1}  # metadata without a label is no label that is wrong


def test_a_sample_without_an_image_has_one_problem_that_says_why(tmp_path: Path) -> None:
    members = [
        ("alone.cls", b"cat"),
        ("photo.1.JPG", PNG), ("photo.2.png", PNG), ("photo.cls", b"1"),
        ("whole.seg.png", PNG), ("whole.png", PNG),
        ("big.png", bytes(5000)), ("big.jpg", PNG),
        ("text.v1.txt", b"about"),
    ]  # fmt: skip
    path = write_tar(tmp_path / "s.tar", members)
    with path.open("rb") as file:
        found = scan(file, path.stat().st_size, max_image_bytes=4000)
    assert [one.key for one in found.found] == ["whole", "big"]
    assert [(key, kind) for key, kind, _ in found.problems] == [
        ("alone", "no-image"), ("photo", "several-dots"), ("big", "too-large"),
    ]  # fmt: skip
    assert found.problems[1][2].startswith("photo.1.JPG (and 1 more): ")


def test_links_and_devices_are_ignored(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, kind in (("l.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE), ("d.png", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    assert len(open_index(tmp_path / "s.tar")) == 0


def test_names_that_leave_the_folder_are_only_names(tmp_path: Path) -> None:
    index = open_index(write_tar(tmp_path / "s.tar", [("../../x.png", PNG), ("/etc/y.png", PNG)]))
    assert [index.key(i) for i in range(len(index))] == ["../../x", "/etc/y"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [FOLDER, "s.tar"]


def test_the_kept_index_is_used_until_the_shard_changes(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", samples(4))
    assert len(open_index(path)) == 4
    kept = tmp_path / FOLDER / "s.tar.npz"
    before = kept.read_bytes()
    again = open_index(path)
    np.testing.assert_array_equal(again.labels, [0, 1, 2, 0])
    assert again.key(3) == "a/0003"
    assert kept.read_bytes() == before
    write_tar(path, samples(5))
    assert len(open_index(path)) == 5
    os.utime(path, ns=(1, 1))
    assert open_index(path).mtime_ns == 1


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04nothing", b"\x93NUMPY"])
def test_a_damaged_index_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    path = write_tar(tmp_path / "s.tar", samples(3))
    open_index(path)
    (tmp_path / FOLDER / "s.tar.npz").write_bytes(damage)
    assert len(open_index(path)) == 3


def test_an_index_that_points_outside_is_made_anew(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", samples(3))
    open_index(path)
    kept = tmp_path / FOLDER / "s.tar.npz"
    with np.load(kept) as stored:
        arrays = dict(stored)
    arrays["offsets"] = arrays["offsets"] + np.uint64(1 << 40)
    np.savez(kept, **arrays)
    assert int(open_index(path).offsets.max()) < path.stat().st_size


def test_beside_a_folder_that_takes_no_index_the_users_cache_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "shards").mkdir()
    path = write_tar(tmp_path / "shards/s.tar", samples(3))
    (tmp_path / "shards" / FOLDER).write_text("in the way")  # also for root, whom no permission stops
    assert len(open_index(path)) == 3
    assert len(list((tmp_path / "cache/titokctl/shard-index").glob("*-s.tar.npz"))) == 1
    assert len(open_index(path)) == 3
