"""`tokenize` on sources of other kinds: each gives the cache that class folders or local shards of the images give."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from shard_server import Server
from tar_files import tar_bytes, write_tar

from titokctl.context import Context
from titokctl.errors import UserError
from titokctl.formats import remote_file
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs.caches.verify import Verify
from titokctl.jobs.tokenize.request import Tokenize, TokenizeResult


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote_file, "PAUSES", (0.0, 0.01))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    running = Server()
    yield running
    running.close()


def run(root: Path, paths: list[Path | str], name: str, **settings: Any) -> TokenizeResult:
    weights = root / "tokenizer.safetensors"
    if not weights.exists():
        tiny.tokenizer(weights)
    made = Tokenize(paths, root / name, str(weights), **settings).run(Context(root / "runs"))
    assert made is not None
    return made


def test_remote_shards_give_the_cache_of_local_ones_and_resume_by_shard(tmp_path: Path, server: Server) -> None:
    local = tiny.shards(tmp_path / "shards", 3, 5)
    server.files = {p.name: p.read_bytes() for p in local.glob("*.tar")}
    expected = run(tmp_path, [local], "local.h5")
    url = f"{server.url}/{{000..002}}.tar"
    server.broken["001.tar"] = [700, 900]
    whole = server.files["002.tar"]
    server.files["sizes.json"] = b'{"000.tar": 5, "001.tar": 5, "002.tar": 5}'
    server.files["002.tar"] = whole[: len(whole) // 2]
    with pytest.raises(UserError, match=r"002\.tar is incomplete"):
        run(tmp_path, [url], "remote.h5", workers=1)
    server.files["002.tar"] = whole
    server.asked.clear()
    result = run(tmp_path, [url], "remote.h5", workers=1)
    assert (result.rows, result.units_reused) == (15, 2)
    asked = [name for name, _ in server.asked if name.endswith(".tar")]
    assert sorted(asked) == ["000.tar", "001.tar", "002.tar", "002.tar"]  # the version of each, then the missing one
    a, b = TokenCache.open(tmp_path / "local.h5"), TokenCache.open(tmp_path / "remote.h5")
    assert expected.rows == 15
    np.testing.assert_array_equal(a.ids, b.ids)
    assert [a.key(i) for i in range(15)] == [b.key(i) for i in range(15)]
    assert a.labels.tolist() == b.labels.tolist()


def test_shards_that_were_uploaded_again_are_read_again_on_resume(tmp_path: Path, server: Server) -> None:
    first, second = (tiny.shards(tmp_path / name, 3, count) for name, count in (("a", 5), ("b", 6)))
    server.files = {p.name: p.read_bytes() for p in first.glob("*.tar")}
    server.files["sizes.json"] = b'{"000.tar": 5, "001.tar": 5, "002.tar": 5}'
    whole, url = server.files["002.tar"], f"{server.url}/{{000..002}}.tar"
    server.files["002.tar"] = whole[: len(whole) // 2]
    with pytest.raises(UserError, match=r"002\.tar is incomplete"):
        run(tmp_path, [url], "t.h5", workers=1)
    other = [m for i in range(5) for m in ((f"n{i}.jpg", tiny.jpeg(90 + i)), (f"n{i}.cls", b"1"))]
    server.files |= {"002.tar": whole, "001.tar": tar_bytes(other)}
    resumed = run(tmp_path, [url], "t.h5", workers=1)
    fresh = run(tmp_path, [url], "fresh.h5", workers=1)
    assert (resumed.rows, resumed.units_reused, resumed.sha256) == (15, 1, fresh.sha256)
    server.files["000.tar"] = (second / "000.tar").read_bytes()
    server.files["sizes.json"] = b'{"000.tar": 6, "001.tar": 5, "002.tar": 5}'
    with pytest.raises(UserError):
        run(tmp_path, [url], "t.h5")  # finished with other images


@pytest.mark.parametrize("counted", [None, 3, 5])
def test_a_remote_shard_that_holds_more_than_was_counted(tmp_path: Path, server: Server, counted: int | None) -> None:
    images = [(f"{i}.jpg", tiny.jpeg(i)) for i in range(3)]
    odd = [("1.png", tiny.jpeg(4)), ("6.cls", b"7"), ("7.x.jpg", tiny.jpeg(5))]
    members = [*images, *odd, *((f"{i}.cls", b"0") for i in range(3))]
    server.files["0.tar"] = tar_bytes(members)
    if counted is not None:
        server.files["sizes.json"] = b'{"0.tar": %d}' % counted
    write_tar(tmp_path / "local" / "0.tar", members)
    local = run(tmp_path, [tmp_path / "local"], "local.h5", max_rejected=1)
    remote = run(tmp_path, [f"{server.url}/0.tar"], "remote.h5", max_rejected=1)
    assert (remote.rows, remote.rejected, remote.samples) == (local.rows, local.rejected, local.samples) == (3, 3, 6)
    assert remote.rejected_by_kind == local.rejected_by_kind == {"duplicate": 1, "no-image": 1, "several-dots": 1}
    assert (remote.passed_over, remote.label_files) == (local.passed_over, local.label_files) == ({}, 3)
    checked = Verify(tmp_path / "remote.h5", source="recorded").run(Context())
    assert (checked.problems, checked.source_checked) == ([], True)


def test_the_tar_of_class_tars_gives_the_cache_of_class_folders(tmp_path: Path) -> None:
    folders = tiny.class_folder(tmp_path / "images", 4, ("n01440764", "n01443537"))
    classes = [
        (f"{c.name}.tar", tar_bytes((f.name, f.read_bytes()) for f in sorted(c.iterdir())))
        for c in sorted(folders.iterdir())
    ]
    write_tar(tmp_path / "in/ILSVRC2012_img_train.tar", classes)
    run(tmp_path, [folders], "a.h5")
    run(tmp_path, [tmp_path / "in"], "b.h5")
    a, b = TokenCache.open(tmp_path / "a.h5"), TokenCache.open(tmp_path / "b.h5")
    np.testing.assert_array_equal(a.ids, b.ids)
    assert a.class_names == b.class_names == ["n01440764", "n01443537"]
    assert [a.key(i) for i in range(8)] == [b.key(i) for i in range(8)]


def test_labels_from_a_file_are_in_the_cache_and_found_again(tmp_path: Path) -> None:
    names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 5)]
    path = write_tar(tmp_path / "in/val.tar", [(name, tiny.jpeg(i)) for i, name in enumerate(names)])
    labels = tmp_path / "labels.txt"
    labels.write_text("n02119789\nn01440764\nn01443537\nn01440764\n")
    run(tmp_path, [path], "val.h5", labels=labels)
    cache = TokenCache.open(tmp_path / "val.h5")
    assert cache.labels.tolist() == [2, 0, 1, 0]
    assert cache.class_names == ["n01440764", "n01443537", "n02119789"]
    found = Verify(tmp_path / "val.h5", source="recorded").run(Context())
    assert not found.problems
    assert not found.remarks
