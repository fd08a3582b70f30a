"""Shards on a server: secrets stay out of records, versions are compared, and pages are not taken for files."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_files import encoded, noise
from shard_server import Server
from tar_files import tar_bytes

from titokctl.data.sources import Source, open_source
from titokctl.data.sources.choices import Choices
from titokctl.data.sources.source import difference
from titokctl.errors import UserError
from titokctl.formats import remote_file
from titokctl.formats.remote_file import RemoteStream, shown

SECRET = "X-Amz-Signature=0123/456&token=s3cret"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote_file, "PAUSES", (0.0, 0.01, 0.01, 0.01))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    running = Server()
    running.files = {f"s-{i}.tar": shard(range(3 * i, 3 * i + 3)) for i in range(2)}
    yield running
    running.close()


def shard(seeds: range) -> bytes:
    pairs = [((f"{i}.png", encoded(noise(9, 9, seed=i))), (f"{i}.cls", b"0")) for i in seeds]
    return tar_bytes(member for pair in pairs for member in pair)


def everything(source: Source) -> list[tuple[str, bytes]]:
    return [(s.key, s.data) for unit in source.units for s in source.read_unit(unit)[0]]


def test_a_signature_is_used_and_never_recorded(server: Server, tmp_path: Path) -> None:
    urls = [f"{server.url}/s-{i}.tar?{SECRET}{i}" for i in range(2)]
    source = open_source(urls)
    assert [key for key, _ in everything(source)] == [str(i) for i in range(6)]
    assert all(SECRET in query for query in server.queries)
    assert "s3cret" not in json.dumps(source.description) + "".join(unit.name for unit in source.units)
    assert not [path for path in tmp_path.rglob("*.json") if "s3cret" in path.read_text() + path.name]
    renewed = open_source([f"{server.url}/s-{i}.tar?other=signature" for i in range(2)])
    assert renewed.description == source.description
    assert source.description["paths"] == [f"{server.url}/s-{i}.tar" for i in range(2)]


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("https://user:pass@host/a/b.tar", "https://host/a/b.tar"),
        ("https://host/b.tar?sig=a/b#c", "https://host/b.tar"),
        ("s3://bucket/b.tar?versionId=3", "s3://bucket/b.tar"),
        ("gs://bucket/x y.tar", "gs://bucket/x y.tar"),
        ("/a/local?path.tar", "/a/local?path.tar"),
    ],
)
def test_addresses_without_secrets(url: str, plain: str) -> None:
    assert shown(url) == plain


@pytest.mark.parametrize("what", ["missing", "refused", "broken", "changed"])
def test_no_message_holds_a_signature(server: Server, what: str) -> None:
    url = f"{server.url}/s-0.tar?{SECRET}"
    source = open_source([url])
    if what == "missing":
        del server.files["s-0.tar"]
    elif what == "refused":
        server.refused["s-0.tar"] = 99
    elif what == "broken":
        server.broken["s-0.tar"] = [0] * 99
    else:
        server.files["s-0.tar"] = shard(range(7, 10))
    with pytest.raises(UserError) as caught:
        everything(source)
    assert "s3cret" not in f"{caught.value.message} {caught.value.hint}"
    assert "/s-0.tar" in caught.value.message


def test_a_shard_with_another_version_is_another_source(server: Server) -> None:
    before = open_source([f"{server.url}/s-0.tar"])
    server.files["s-0.tar"] = shard(range(20, 23))
    after = open_source([f"{server.url}/s-0.tar"])
    assert difference(before.description, after.description) == "the server has other versions of the files"
    assert before.units[0].state != after.units[0].state
    with pytest.raises(UserError, match=r"s-0\.tar changed on the server"):
        everything(before)


@pytest.mark.parametrize("ranges", [True, False])
def test_without_versions_a_broken_file_is_not_stitched_from_two(server: Server, ranges: bool) -> None:
    server.etags, server.ranges = False, ranges
    whole = server.files["s-0.tar"]
    server.broken["s-0.tar"] = [2000]
    with RemoteStream(f"{server.url}/s-0.tar") as stream:
        assert stream.read(10_000_000) == whole
    server.broken["s-0.tar"] = [2000]
    with RemoteStream(f"{server.url}/s-0.tar") as stream:
        stream.read(1500)
        server.files["s-0.tar"] = whole[:700] + b"x" + whole[701:]
        with pytest.raises(UserError, match="changed while it was read"):
            stream.read(10_000_000)


def test_without_versions_breaks_while_comparing_are_retried(server: Server) -> None:
    server.etags = False
    whole = server.files["s-0.tar"]
    server.broken["s-0.tar"] = [3000, 1000, 0]
    with RemoteStream(f"{server.url}/s-0.tar") as stream:
        assert stream.read(10_000_000) == whole


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<!DOCTYPE html><html>please log in", "an HTML page"),
        (b"<html>" + bytes(5000), "an HTML page"),
        (b"<?xml version='1.0'?><Error><Code>ExpiredToken</Code></Error>", "an XML document"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a Git LFS pointer"),
        (b"\x1f\x8b\x08" + bytes(3000), "compressed with gzip"),
        (shard(range(3))[:700], "before its first image"),
        (tar_bytes([("a.txt", b"x")]), "it holds 1 .txt"),
        (b"", "the file is empty"),
    ],
)
@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("accept_cut", [True, False])
def test_what_is_no_shard_is_an_error(
    server: Server, body: bytes, message: str, counted: bool, accept_cut: bool
) -> None:
    if counted:
        server.files["sizes.json"] = b'{"s-0.tar": 3, "s-1.tar": 3}'
    server.files["s-1.tar"] = body
    with pytest.raises(UserError, match=r"s-1\.tar") as caught:
        everything(open_source([f"{server.url}/s-{{0..1}}.tar"], accept_cut=accept_cut))
    assert message in caught.value.message


@pytest.mark.parametrize(
    "body",
    [
        b'{"format": "titokctl/shards", "form',
        b"",
        b'{"format": "titokctl/shards", "format_version": 1, "class_names": 3, "shards": []}',
        b'{"format": "titokctl/shards", "format_version": 1, "class_names": [], "shards": [7]}',
        b'{"format": "titokctl/shards", "format_version": 99, "class_names": [], "shards": []}',
    ],
)
def test_a_damaged_index_on_a_server_is_refused(server: Server, body: bytes) -> None:
    server.files["index.json"] = body
    with pytest.raises(UserError, match=r"index\.json (is damaged|was written by a newer titokctl)"):
        open_source([f"{server.url}/s-0.tar"])


def test_a_page_in_place_of_a_missing_index_is_none(server: Server) -> None:
    server.files["index.json"] = b"<!doctype html><title>not found</title>"
    assert len(open_source([f"{server.url}/s-0.tar"])) == 3


def test_members_that_are_no_images_are_counted(server: Server) -> None:
    png = encoded(noise(5, 5))
    members = [("a.png", png), ("a.txt", b"x"), ("b.dat", png), ("b.cls", b"1"), ("c.image.png", png)]
    server.files["x.tar"] = tar_bytes(members)
    source = open_source([f"{server.url}/x.tar"])
    unit = source.open_unit(source.units[0])
    assert [s.key for s in unit.read(0, unit.count)] == ["a", "b"]
    assert ([r.kind for r in unit.rejected], unit.counts.passed_over, unit.counts.label_files) == (
        ["several-dots"],
        {".txt": 1},
        1,
    )
    chosen = open_source([f"{server.url}/x.tar"], choices=Choices(image_key="image.png", use_labels=False))
    assert [s.key for s in chosen.read_unit(chosen.units[0])[0]] == ["c"]
