"""Shards on a server: a real one on 127.0.0.1 that breaks connections, forgets ranges, and says no."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from image_files import encoded, noise, webdataset_samples
from shard_server import Server
from tar_files import tar_bytes

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.pipeline import decode_units
from titokctl.data.sources import Source, open_source, reopen_source
from titokctl.data.sources.choices import Choices
from titokctl.errors import UsageError, UserError
from titokctl.formats import remote_file
from titokctl.formats.remote_file import RemoteStream, fetch
from titokctl.formats.shard_set import ShardSample, write_set_index, write_shard

CONFIG = PreprocessingConfig(size=8)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote_file, "PAUSES", (0.0, 0.01, 0.01, 0.01))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    running = Server()
    yield running
    running.close()


def shard(seeds: range) -> bytes:
    pairs = [((f"{i:04d}.png", encoded(noise(40, 30, seed=i))), (f"{i:04d}.cls", str(i % 3).encode())) for i in seeds]
    return tar_bytes(member for pair in pairs for member in pair)


def contents(source: Source) -> list[tuple[str, int, bytes]]:
    return [(s.key, s.label, s.data) for unit in source.units for s in source.read_unit(unit)[0]]


@pytest.fixture
def two(server: Server) -> Server:
    server.files = {"s-0.tar": shard(range(5)), "s-1.tar": shard(range(5, 8))}
    return server


def open_two(server: Server, **options: Any) -> Source:
    return open_source([f"{server.url}/s-{{0..1}}.tar"], **options)


def named(seeds: range, names: list[str]) -> bytes:
    """A shard whose labels are names."""
    pairs = [((f"{i:04d}.png", encoded(noise(8, 8, seed=i))), (f"{i:04d}.cls", names[i % 3].encode())) for i in seeds]
    return tar_bytes(member for pair in pairs for member in pair)


@pytest.mark.parametrize("order", [["cat", "dog", "emu"], ["emu", "yak", "dog", "cat"]])
def test_labels_that_are_names_are_numbered_by_the_list_of_classes(server: Server, tmp_path: Path, order) -> None:
    names = ["dog", "cat", "emu"]
    server.files = {"s-0.tar": named(range(2), names), "s-1.tar": named(range(2, 8), names)}
    (tmp_path / "classes.txt").write_text("\n".join(order))
    source = open_two(server, choices=Choices(classes=tmp_path / "classes.txt"))
    assert source.class_names == order
    assert [label for _, label, _ in contents(source)] == [order.index(names[i % 3]) for i in range(8)]
    assert [label for _, label, _ in contents(reopen_source(source.description))] == [
        order.index(names[i % 3]) for i in range(8)
    ]
    with pytest.raises(UserError, match=r"the labels in .* are names, such as 'cat'") as caught:
        contents(open_two(server))
    assert "--classes FILE" in caught.value.hint
    (tmp_path / "classes.txt").write_text("cat\ndog")
    with pytest.raises(UserError, match="'emu' is not one of 2 classes"):
        contents(open_two(server, choices=Choices(classes=tmp_path / "classes.txt")))


def test_remote_shards_equal_local_ones(two: Server, tmp_path: Path) -> None:
    for name, data in two.files.items():
        (tmp_path / name).write_bytes(data)
    local, remote = open_source(sorted(tmp_path.glob("*.tar"))), open_two(two)
    assert contents(remote) == contents(local)
    assert [(u.name, u.first, u.count) for u in remote.units] == [("s-0.tar", 0, 5), ("s-1.tar", 5, 3)]
    theirs = [s for name in two.files for s in webdataset_samples(tmp_path / name)]
    assert [(k, d) for k, _, d in contents(remote)] == [(s["__key__"], s["png"]) for s in theirs]
    assert reopen_source(remote.description).description == remote.description


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_is_taken_up_again(two: Server, ranges: bool) -> None:
    expected = contents(open_two(two))
    source, size = open_two(two), len(two.files["s-0.tar"])
    two.ranges = ranges
    two.asked.clear()
    two.broken["s-0.tar"] = [size // 3, size // 2 if not ranges else 1000, size - 1 if not ranges else 7]
    assert contents(source) == expected
    asked = [wanted for name, wanted in two.asked if name == "s-0.tar"]
    assert asked == [None, f"bytes={size // 3}-", *asked[2:]]
    assert len(asked) == 4


def test_a_busy_server_is_asked_again(two: Server) -> None:
    two.refused.update({"s-0.tar": 3, "index.json": 1})
    assert len(contents(open_two(two))) == 8


def test_in_the_end_it_gives_up(two: Server) -> None:
    source = open_two(two)
    two.refused["s-0.tar"] = 99
    with pytest.raises(UserError, match="the server says 503"):
        contents(source)
    two.refused.clear()
    two.broken["s-0.tar"] = [0] * 99
    with pytest.raises(UserError, match=r"s-0\.tar can't be read"):
        contents(source)


def test_an_unreachable_server(server: Server) -> None:
    url = server.url
    server.close()
    with pytest.raises(UserError, match=r"a\.tar can't be read|json can't be read"):
        open_source([f"{url}/a.tar"])


def test_a_file_that_changes_on_the_way_is_refused(two: Server) -> None:
    two.broken["s-0.tar"] = [2000]
    with RemoteStream(f"{two.url}/s-0.tar") as stream:
        stream.read(100)
        two.files["s-0.tar"] = shard(range(50, 55))
        with pytest.raises(UserError, match="changed while it was read"):
            stream.read(10_000_000)


def test_missing_files_are_named(two: Server) -> None:
    with pytest.raises(UserError, match=r"not found: .*/s-7\.tar"):
        open_source([f"{two.url}/s-0.tar", f"{two.url}/s-7.tar"])
    assert fetch(f"{two.url}/nothing.json") is None
    two.missing = 403
    assert len(open_two(two)) == 8
    with pytest.raises(UserError, match=r"access denied \(403\): .*/s-7\.tar"):
        open_source([f"{two.url}/s-7.tar"])


def test_a_cut_shard_is_an_error_unless_it_is_accepted(two: Server) -> None:
    whole = two.files["s-1.tar"]
    two.files["sizes.json"] = json.dumps({"s-0.tar": 5, "s-1.tar": 3}).encode()
    second = whole.index(b"0006.png")
    for cut in (second, second + 100, second + 600):
        two.files["s-1.tar"] = whole[:cut]
        source = open_two(two)
        with pytest.raises(UserError, match=r"s-1\.tar is incomplete: cut after"):
            contents(source)
        accepted = open_two(two, accept_cut=True)
        samples, rejected = accepted.read_unit(accepted.units[1])
        assert [s.key for s in samples] == ["0005"]
        assert [r.kind for r in rejected] == ["cut", "cut"]
        assert reopen_source(accepted.description).accept_cut  # type: ignore[attr-defined]


def test_recorded_counts_spare_the_first_pass(two: Server) -> None:
    two.files["_info.json"] = json.dumps(
        {"splits": {"train": {"filenames": ["s-0.tar", "s-1.tar"], "shard_lengths": [5, 3]}}}
    ).encode()
    assert len(open_two(two)) == 8
    assert Counter(name for name, _ in two.asked if name.endswith(".tar")) == {"s-0.tar": 1, "s-1.tar": 1}  # versions
    two.files["s-0.tar"] = shard(range(4))
    with pytest.raises(UserError, match="has 4 samples, but 5 recorded"):
        contents(open_two(two))


def test_a_shard_is_counted_once(two: Server) -> None:
    open_two(two)
    two.asked.clear()
    assert len(open_two(two)) == 8
    assert Counter(name for name, _ in two.asked)["s-0.tar"] == 1  # its version was asked for
    two.files["s-0.tar"] = shard(range(4))
    assert len(open_two(two)) == 7


def test_without_a_length_the_end_marker_tells_the_end(two: Server) -> None:
    two.lengths = False
    assert len(contents(open_two(two))) == 8
    two.files["s-1.tar"] = two.files["s-1.tar"][:1500]
    with pytest.raises(UserError, match="is incomplete"):
        contents(open_two(two))


def test_problems_of_samples_are_counted_by_kind(server: Server) -> None:
    members = [
        ("a.png", encoded(noise(9, 9))), ("a.cls", b"0"),
        ("b.png", encoded(noise(9, 9))), ("b.cls", b"5"),
        ("c.png", encoded(noise(9, 9))),
        ("d.png", b"no picture"), ("d.cls", b"1"),
        ("e.cls", b"1"),
        ("f.png", encoded(noise(9, 9))), ("f.cls", b"cat"),
    ]  # fmt: skip
    server.files["x.tar"] = tar_bytes(members)
    record = {"format": "titokctl/shards", "format_version": 1, "class_names": ["u", "v"], "shards": []}
    server.files["index.json"] = json.dumps(record).encode()
    source = open_source([f"{server.url}/x.tar"])
    [unit] = decode_units(source, [source.units[0]], CONFIG)
    assert (unit.keys, unit.labels.tolist(), source.class_names) == (["a", "c"], [0, -1], ["u", "v"])
    assert Counter(r.kind for r in unit.rejected) == {
        "label-range": 1, "format": 1, "no-image": 1, "bad-label": 1,
    }  # fmt: skip
    assert len(unit.keys) + len(unit.rejected) == source.units[0].count == 6


def test_a_label_map_that_changes_is_an_error(server: Server) -> None:
    for i, name in enumerate(("cat", "dog")):
        label = json.dumps({"label": 0, "class_name": name}).encode()
        server.files[f"s-{i}.tar"] = tar_bytes([(f"{i}.png", encoded(noise(9, 9))), (f"{i}.json", label)])
    with pytest.raises(UserError, match=r"label 0 is 'cat' in .*s-0\.tar and 'dog' in .*s-1\.tar"):
        contents(open_two(server))


def test_a_folder_is_listed_by_its_index(server: Server, tmp_path: Path) -> None:
    infos = []
    for i in range(2):
        samples = [ShardSample(f"{2 * i + j}", "png", encoded(noise(9, 9, seed=2 * i + j)), j) for j in range(2)]
        infos.append(write_shard(tmp_path / f"t-{i}.tar", samples))
    write_set_index(tmp_path, infos, ["cat", "dog"])
    for name in ("t-0.tar", "t-1.tar", "index.json"):
        server.files[f"in/{name}"] = (tmp_path / name).read_bytes()
    source = open_source([f"{server.url}/in/"])
    assert source.class_names == ["cat", "dog"]
    assert contents(source) == contents(open_source([tmp_path]))
    with pytest.raises(UserError, match="can't be listed"):
        open_source([f"{server.url}/other/"])


def test_other_schemes_are_opened_by_fsspec(two: Server) -> None:
    memory = fsspec.filesystem("memory")
    for name, data in two.files.items():
        memory.pipe(f"/bucket/{name}", data)
    try:
        source = open_source(["memory://bucket/"])
        assert contents(source) == contents(open_two(two))
        with pytest.raises(UserError, match=r"not found: memory://bucket/none\.tar"):
            open_source(["memory://bucket/none.tar"])
        with pytest.raises(UserError, match=r"no \.tar shards in memory://empty/"):
            open_source(["memory://empty/"])
    finally:
        memory.rm("/bucket", recursive=True)


def test_no_address_runs_anything(tmp_path: Path) -> None:
    for url in ("pipe://touch ran", "shell://touch ran", "simplecache::memory://a.tar", "http::memory://x.tar"):
        with pytest.raises(UserError):
            open_source([url])
    with pytest.raises(UserError, match="no such file"):
        open_source([f"pipe:touch {tmp_path}/ran"])
    assert not os.path.exists(tmp_path / "ran")


def test_bad_urls_and_files_are_refused(two: Server, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be mixed"):
        open_source([f"{two.url}/s-0.tar", tmp_path])
    with pytest.raises(UserError, match="is named twice"):
        open_source([f"{two.url}/s-0.tar"] * 2)
    two.files["s-0.tar"] = b"<html>" * 200
    with pytest.raises(UserError, match="is not a whole tar file"):
        open_two(two)
