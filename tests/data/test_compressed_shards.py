"""Shards that are compressed with gzip give what the plain ones give, whole or not at all."""

import gzip
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from image_files import encoded, noise
from remarks import Remarks
from shard_server import Server
from tar_files import tar_bytes

from titokctl.context import Context
from titokctl.data.sources import Source, open_source, reopen_source
from titokctl.errors import Stopped, UserError
from titokctl.formats.unpacked_shard import copy_of, unpack
from titokctl.jobs.machine.doctor import Doctor

PNG = [encoded(noise(4, 5, seed=seed)) for seed in range(6)]
FIRST = tar_bytes(
    [
        ("a.png", PNG[0]), ("a.cls", b"1"), ("a.txt", b"a caption"),
        ("b.jpg", PNG[1]), ("b.json", b'{"label": 0}'),
        ("c.png", PNG[2]), ("c.cls", b"\xff\xff"),
        ("d.png", PNG[3]), ("d.jpg", PNG[3]), ("d.cls", b"0"),
        ("f.png", PNG[5]), ("f.cls", b"1"),
    ]
)  # fmt: skip
# The key b has another image here than in the first shard; f is there byte for byte.
SECOND = tar_bytes([("b.png", PNG[4]), ("b.cls", b"1"), ("f.png", PNG[5]), ("f.cls", b"1"), ("e.png", PNG[0])])
LARGE = tar_bytes([("a.png", noise(2000, 1700).tobytes())])  # 10 MB, which are read in four pieces


def packed(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, 0 if data is LARGE else 6))
    return path


def facts(source: Source) -> dict[str, object]:
    units = [source.read_unit(unit) for unit in source.units]
    return {
        "samples": [(s.key, s.label, s.data) for samples, _ in units for s in samples],
        "rejected": source.problems + [one for _, rejected in units for one in rejected],
        "names": source.class_names,
        "passed": source.passed_over,
        "units": [(unit.first, unit.count) for unit in source.units],
    }


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The same two shards, plain and compressed."""
    plain, compressed = tmp_path / "plain", tmp_path / "compressed"
    plain.mkdir()
    (plain / "s-0.tar").write_bytes(FIRST)
    (plain / "s-1.tar").write_bytes(SECOND)
    packed(compressed / "s-0.tar.gz", FIRST)
    packed(compressed / "s-1.tgz", SECOND)
    return plain, compressed


def test_everything_is_as_in_the_plain_shards(folders: tuple[Path, Path]) -> None:
    plain, compressed = folders
    expected = facts(open_source([plain]))
    planned = open_source([compressed], keep_index=False)
    assert facts(planned) == expected
    assert sorted(p.name for p in compressed.iterdir()) == ["s-0.tar.gz", "s-1.tgz"]  # a plan writes nothing
    assert planned.by_position().sample(0) == planned.by_position().read_many([2, 0])[1]
    source = open_source([compressed])
    assert facts(source) == expected
    assert len(expected["rejected"]) == 3  # type: ignore[arg-type]
    assert facts(pickle.loads(pickle.dumps(source))) == expected
    assert facts(open_source([compressed / "s-0.tar.gz", compressed / "s-1.tgz"])) == expected | {
        "passed": open_source(sorted(plain.iterdir())[-2:]).passed_over
    }
    assert facts(reopen_source(source.description)) == expected
    assert source.description["paths"] == [str(compressed / name) for name in ("s-0.tar.gz", "s-1.tgz")]
    assert open_source([compressed], keep_index=False).description == source.description == planned.description


def test_a_tar_of_class_tars(tmp_path: Path) -> None:
    data = tar_bytes([(f"n{c}.tar", tar_bytes([(f"{c}_{i}.JPEG", PNG[c + i]) for i in range(3)])) for c in range(2)])
    (tmp_path / "train.tar").write_bytes(data)
    packed(tmp_path / "train.tgz", data)
    expected = facts(open_source([tmp_path / "train.tar"]))
    assert len(expected["samples"]) == 6  # type: ignore[arg-type]
    assert facts(open_source([tmp_path / "train.tgz"], keep_index=False)) == expected
    assert facts(open_source([tmp_path / "train.tgz"])) == expected


def test_bytes_decide_and_not_names(tmp_path: Path) -> None:
    (tmp_path / "plain.tar.gz").write_bytes(SECOND)  # as some servers unpack what they send
    packed(tmp_path / "packed.tar", SECOND)
    several = gzip.compress(SECOND[:700]) + gzip.compress(SECOND[700:]) + bytes(512)
    (tmp_path / "members.tgz").write_bytes(several)
    found = [facts(open_source([tmp_path / name])) for name in ("plain.tar.gz", "packed.tar", "members.tgz")]
    assert found[0] == found[1] == found[2]
    assert len(found[0]["samples"]) == 3  # type: ignore[arg-type]


def test_what_was_unpacked_by_hand_is_read_once(folders: tuple[Path, Path]) -> None:
    plain, compressed = folders
    (compressed / "s-0.tar").write_bytes(FIRST)
    assert facts(open_source([compressed]))["samples"] == facts(open_source([plain]))["samples"]
    assert open_source([compressed]).passed_over == {**open_source([plain]).passed_over, ".gz": 1}


def test_counts_and_names_beside_the_shards_belong_to_the_plain_names(folders: tuple[Path, Path]) -> None:
    _, compressed = folders
    (compressed / "sizes.json").write_text('{"s-0.tar": 9}')
    with pytest.raises(UserError, match=r"s-0\.tar\.gz has 5 images, but sizes\.json records 9"):
        open_source([compressed])


def test_it_is_unpacked_once_and_told_once(folders: tuple[Path, Path]) -> None:
    _, compressed = folders
    told, again = Remarks(), Remarks()
    open_source([compressed], context=Context(progress=told))
    assert "unpacking 2 compressed shards" in told
    assert f"kB in {compressed}/.titokctl-index/unpacked; you may delete" in told
    made = {p: p.stat().st_ino for p in compressed.rglob("*.tar")}
    assert len(made) == 2
    open_source([compressed], context=Context(progress=again))
    assert again.said == []
    assert {p: p.stat().st_ino for p in compressed.rglob("*.tar")} == made


@pytest.mark.parametrize("change", ["shard", "time", "copy", "cut copy", "record", "no record", "link"])
def test_a_copy_that_may_be_of_something_else_is_made_again(tmp_path: Path, change: str) -> None:
    shard = packed(tmp_path / "s.tar.gz", FIRST)
    before = open_source([shard])
    copy = copy_of(shard)
    assert copy is not None
    kept = copy.read_bytes()
    state = copy.stat()
    if change == "shard":
        times = shard.stat().st_mtime_ns
        packed(shard, SECOND)
        os.utime(shard, ns=(times, times))
    elif change == "time":
        os.utime(shard, ns=(1, 1))
    elif change == "copy":
        copy.write_bytes(SECOND.ljust(len(kept), b"\0"))
        os.utime(copy, ns=(state.st_mtime_ns, state.st_mtime_ns))
    elif change == "cut copy":
        copy.write_bytes(kept[:3000])
    elif change == "record":
        copy.with_suffix(".json").write_text('{"format": "titokctl/unpacked-shard", "format_version": 2}')
    elif change == "no record":
        copy.with_suffix(".json").unlink()
    else:
        copy.rename(tmp_path / "elsewhere")
        copy.symlink_to(tmp_path / "elsewhere")
    assert copy_of(shard) is None
    after = open_source([shard])
    expected = SECOND if change == "shard" else FIRST
    assert copy.read_bytes() == expected
    assert (after.description["fingerprint"] == before.description["fingerprint"]) == (change not in ("shard", "time"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:5], "is cut"),
        (lambda data: data[: len(data) // 2], "is cut"),
        (lambda data: data[:-1], "is cut"),
        (lambda data: data[:-8], "is cut"),
        (lambda data: data + b"more", "is damaged"),
        (lambda data: data[:-8] + bytes(4) + data[-4:], "incorrect data check"),
        (lambda data: data[:-4] + bytes(4), "incorrect length check"),
        (lambda data: data[:300] + bytes(40) + data[340:], "is damaged"),
        (lambda _: gzip.compress(b"{}" * 500), "is not a tar shard: it contains a JSON text"),
        (lambda _: gzip.compress(b""), "is not a tar shard: it contains nothing"),
        (lambda _: gzip.compress(FIRST[:2000]), "is incomplete"),
        (lambda _: gzip.compress(FIRST[:1024] + b"x" * 5000), "not a tar header"),
    ],
)
@pytest.mark.parametrize("keep", [True, False])
def test_damage_is_named_and_nothing_of_it_is_used(tmp_path: Path, damage, words: str, keep: bool) -> None:
    shard = tmp_path / "s.tar.gz"
    shard.write_bytes(damage(gzip.compress(FIRST)))
    with pytest.raises(UserError, match=words) as caught:
        open_source([shard], keep_index=keep)
    assert str(shard) in caught.value.message
    assert ".titokctl-index" not in str(caught.value)
    if "tar" not in words and "incomplete" not in words:
        assert not list(tmp_path.rglob("*.tar"))
    if words == "is cut":
        assert "--accept-cut" in caught.value.hint
    elif "incomplete" not in words:
        with pytest.raises(UserError, match=words):
            open_source([shard], accept_cut=True)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("left", [-3, -8, 0.9, 0.5])
def test_a_cut_shard_gives_its_whole_images_as_a_plain_one_does(tmp_path: Path, left: float, keep: bool) -> None:
    data = gzip.compress(FIRST, 0)  # stored: about as many bytes of the tar are left as of the file
    shard = tmp_path / "packed" / "s.tar.gz"
    shard.parent.mkdir()
    shard.write_bytes(data[: int(left) if left < 0 else int(left * len(data))])
    stream = zlib.decompressobj(31)
    plain = tmp_path / "plain" / "s.tar"
    plain.parent.mkdir()
    plain.write_bytes(stream.decompress(shard.read_bytes()) + stream.flush())
    found = open_source([shard], keep_index=keep, accept_cut=True)
    assert facts(found) == facts(open_source([plain], accept_cut=True))
    assert 0 < len(found) <= 5
    assert found.description["accepted_cut_shards"] == [str(shard)]
    assert facts(reopen_source(found.description)) == facts(found)
    assert facts(pickle.loads(pickle.dumps(found))) == facts(found)
    with pytest.raises(UserError, match="is cut: its gzip data end after"):  # what was accepted is not kept for others
        open_source([shard], keep_index=keep)


def test_a_shard_that_is_cut_before_its_first_image_gives_nothing(tmp_path: Path) -> None:
    shard = tmp_path / "s.tar.gz"
    shard.write_bytes(gzip.compress(FIRST)[:12])
    with pytest.raises(UserError, match="is cut before its first image"):
        open_source([shard], accept_cut=True)


def test_a_bomb_ends_before_it_fills_the_disk(tmp_path: Path) -> None:
    shard = tmp_path / "s.tar.gz"
    shard.write_bytes(gzip.compress(tar_bytes([("a.png", bytes(1 << 20))])) + 80 * gzip.compress(bytes(1 << 20)))
    with pytest.raises(UserError, match="more than 100 times its size") as caught:
        open_source([shard])
    assert "gunzip -k" in caught.value.hint
    assert sum(p.stat().st_size for p in tmp_path.rglob("*")) < 1 << 20
    with pytest.raises(UserError, match="more than 100 times its size"):
        open_source([shard], keep_index=False)


def test_a_disk_without_room_is_refused_before_it_is_full(tmp_path: Path) -> None:
    shard = packed(tmp_path / "s.tar.gz", FIRST)
    with pytest.raises(UserError, match=r"too little room for s\.tar\.gz: .* free") as caught:
        unpack(shard, lambda _: None, lambda: None, reserve=1 << 60)
    assert "XDG_CACHE_HOME" in caught.value.hint
    assert copy_of(shard) is None


def test_a_disk_that_fills_on_the_way_leaves_nothing_and_the_same_command_goes_on(tmp_path: Path) -> None:
    shard = packed(tmp_path / "s.tar.gz", LARGE)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6 << 20, before[1]))
    try:
        with pytest.raises(
            UserError, match=r"s\.tar\.gz can't be unpacked: cannot write to .* \(file too large\)"
        ) as caught:
            open_source([shard])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"{tmp_path}/.titokctl-index/unpacked" in caught.value.message
    assert "XDG_CACHE_HOME" in caught.value.hint
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size] == [shard]
    assert len(open_source([shard])) == 1


def test_copies_of_shards_that_are_gone_or_others_are_removed(folders: tuple[Path, Path]) -> None:
    _, compressed = folders
    kept, gone = compressed / "s-0.tar.gz", compressed / "s-1.tgz"
    open_source([compressed])
    names = {path.name for path in (compressed / ".titokctl-index").rglob("*") if "s-1" in path.name}
    assert len(names) >= 3  # the copy, its record, its index
    gone.unlink()
    told = Remarks()
    open_source([kept], keep_index=False)
    assert list(compressed.rglob("s-1*"))  # a plan writes nothing
    open_source([kept], context=Context(progress=told))
    assert not list(compressed.rglob("*s-1*"))
    assert "removed" in told
    assert copy_of(kept) is not None


def test_copies_in_the_users_cache_are_removed_with_their_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shards = [packed(tmp_path / name / "s.tar.gz", FIRST) for name in ("one", "two", "three")]
    for shard in shards:
        (shard.parent / ".titokctl-index").write_text("a file, so that no folder can be made")
        open_source([shard])
    kept = {one.name: one.found for one in Doctor(quick=True).run(Context(tmp_path)).findings}["unpacked shards"]
    assert str(tmp_path / "cache") in kept
    shutil.rmtree(shards[0].parent)
    packed(shards[1], SECOND)
    plain = tmp_path / "plain.tar"
    plain.write_bytes(FIRST)
    open_source([plain])
    assert [copy_of(shard) is not None for shard in shards[1:]] == [False, True]
    assert len(list((tmp_path / "cache").rglob("*.tar.gz.tar"))) == 1


def test_a_copy_that_a_process_reads_stays(folders: tuple[Path, Path]) -> None:
    """The reader opens its shards anew in another process after they were deleted."""
    _, compressed = folders
    script = (
        "import sys; from titokctl.data.sources import open_source\n"
        "source = open_source([sys.argv[1]]); print('open', flush=True); sys.stdin.readline()\n"
        "print(len(source.by_position().sample(len(source) - 1).data))"
    )
    command = [sys.executable, "-c", script, str(compressed)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        assert reader.stdout.readline() == "open\n"
        (compressed / "s-1.tgz").unlink()
        open_source([compressed / "s-0.tar.gz"])
        assert reader.communicate("\n")[0] == f"{len(PNG[0])}\n"
    open_source([compressed / "s-0.tar.gz"])
    assert not list(compressed.rglob("s-1*.tar"))


def test_a_folder_that_cannot_be_written_leaves_it_to_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shard = packed(tmp_path / "in/s.tar.gz", FIRST)
    (tmp_path / "in/.titokctl-index").write_text("a file, so that no folder can be made")
    assert len(open_source([shard])) == 4
    assert len(list((tmp_path / "cache").rglob("*-s.tar.gz.tar"))) == 1
    assert copy_of(shard) is not None


def test_a_signal_stops_it(tmp_path: Path) -> None:
    shard = packed(tmp_path / "s.tar.gz", FIRST)
    context = Context()
    context.stop.adopt(75)
    with pytest.raises(Stopped):
        open_source([shard], context=context)
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size] == [shard]


_UNPACK = """
import os, signal, sys, time
from pathlib import Path
from titokctl.formats.unpacked_shard import unpack

calls = 0
def advance(_):
    global calls
    calls += 1
    if calls == int(sys.argv[2]):
        if sys.argv[3] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        print("held", flush=True)
        sys.stdin.read()
unpack(Path(sys.argv[1]), advance, lambda: None)
"""


@pytest.mark.parametrize("at", [1, 4])
def test_a_kill_leaves_nothing_that_is_taken_for_whole(tmp_path: Path, at: int) -> None:
    shard = packed(tmp_path / "s.tar.gz", LARGE)
    done = subprocess.run([sys.executable, "-c", _UNPACK, shard, str(at), "kill"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert copy_of(shard) is None
    assert [p for p in tmp_path.rglob(".*.tmp-*") if p.is_file()]
    copy = unpack(shard, lambda _: None, lambda: None)
    assert copy.read_bytes() == LARGE
    assert not list(tmp_path.rglob(".*.tmp-*"))


def test_another_process_waits_for_the_one_that_unpacks(tmp_path: Path) -> None:
    shard = packed(tmp_path / "s.tar.gz", LARGE)
    command = [sys.executable, "-c", _UNPACK, str(shard), "2", "hold"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        waits = []

        def wait() -> None:
            waits.append(1)
            if not other.stdin.closed:
                other.stdin.close()

        read: list[int] = []
        copy = unpack(shard, read.append, wait)
        assert waits
        assert read == []  # it took the other's copy
        assert copy.read_bytes() == LARGE


def test_a_server_gives_what_the_plain_shard_gives(server: Server) -> None:
    server.files = {"s.tar": FIRST, "s.tgz": gzip.compress(FIRST), "cut.tar.gz": gzip.compress(FIRST)[:-3]}
    assert facts(open_source([f"{server.url}/s.tgz"])) == facts(open_source([f"{server.url}/s.tar"]))
    cut = f"{server.url}/cut.tar.gz"
    assert facts(open_source([cut], accept_cut=True)) == facts(open_source([f"{server.url}/s.tar"]))
    source = open_source([cut])
    with pytest.raises(UserError, match=r"cut\.tar\.gz is incomplete: its gzip data end after"):
        facts(source)


@pytest.mark.parametrize(
    ("name", "head", "command"),
    [
        ("s.tar.zst", b"\x28\xb5\x2f\xfd", "zstd -dk"),
        ("s.tar.bz2", b"BZh9", "bzip2 -dk"),
        ("s.tar.xz", b"\xfd7zXZ\0", "xz -dk"),
    ],
)
def test_other_compressions_are_refused_with_the_command_that_unpacks(
    tmp_path: Path, name: str, head: bytes, command: str
) -> None:
    (tmp_path / name).write_bytes(head + bytes(600))
    for given in (tmp_path / name, tmp_path):
        with pytest.raises(UserError, match=f"{name} is not a tar shard, but compressed with") as caught:
            open_source([given])
        assert f"{command} {tmp_path / name}" in caught.value.hint
