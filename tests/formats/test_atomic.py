"""Files appear complete or not at all, and errors while writing are reported in one sentence."""

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import PATIENCE_S

from titokctl.errors import UserError
from titokctl.formats.atomic import (
    atomic_path,
    disk_errors,
    make_folder,
    read_json,
    remove_leftovers,
    write_bytes,
    write_json,
)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "result"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"new")
        assert not target.exists()
        assert temporary.parent == tmp_path
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["result"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "result"
    target.write_bytes(b"old")
    with pytest.raises(TypeError), atomic_path(target) as temporary:
        temporary.write_bytes(b"ne") + "not a number"
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["result"]


def test_a_folder_replaces_a_folder(tmp_path):
    target = tmp_path / "result"
    (target / "old").mkdir(parents=True)
    with atomic_path(target) as temporary:
        (temporary / "inner").mkdir(parents=True)
        (temporary / "inner" / "new").write_bytes(b"1")
    assert names(target) == ["inner"]
    assert names(tmp_path) == ["result"]


KILLED = """
import os, signal, sys
from pathlib import Path
from titokctl.formats.atomic import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_old_file_and_a_leftover_that_can_be_removed(tmp_path):
    target = tmp_path / "result"
    target.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", KILLED, target], timeout=PATIENCE_S)
    assert done.returncode == -signal.SIGKILL
    assert target.read_bytes() == b"old"
    assert len(names(tmp_path)) == 2
    remove_leftovers(tmp_path, "other")
    assert len(names(tmp_path)) == 2
    remove_leftovers(tmp_path, "result")
    assert names(tmp_path) == ["result"]


def killed(target: Path, before: str) -> None:
    """Run a writer of `target` that does `before` with its temporary path `t`, and is then killed."""
    script = KILLED.replace('temporary.write_bytes(b"half")', f"t = temporary; {before}")
    assert subprocess.run([sys.executable, "-c", script, target], timeout=PATIENCE_S).returncode == -signal.SIGKILL


def test_the_next_writer_removes_what_killed_ones_left(tmp_path):
    target, other = tmp_path / "result", tmp_path / "result2"
    killed(target, "t.write_bytes(b'half'); t.with_name(t.name[:-1] + 'x').mkdir()")
    killed(other, "t.write_bytes(b'half')")
    assert len(names(tmp_path)) == 3
    write_bytes(target, b"new")
    assert [name[:12] for name in names(tmp_path)] == [".result2.tmp", "result"]


def test_those_of_running_writers_and_of_other_machines_stay(tmp_path):
    target = tmp_path / "result"
    killed(target, "t.write_bytes(b'half')")
    (left,) = tmp_path.iterdir()
    machine, process = left.name.removeprefix(".result.tmp-").split("-")[:2]
    elsewhere = left.rename(tmp_path / left.name.replace(machine, "0" * len(machine)))
    with subprocess.Popen(["sleep", "600"]) as running:
        alive = tmp_path / f".result.tmp-{machine}-{running.pid}-00000000"
        alive.write_bytes(b"half")
        strange = tmp_path / f".result.tmp-{machine}-mine"
        strange.write_bytes(b"not ours")
        with atomic_path(target) as outer:  # two writers of one process
            outer.write_bytes(b"outer")
            write_bytes(target, b"inner")
            assert outer.exists()
        running.kill()
    assert process.isdigit()
    assert {elsewhere.name, alive.name, strange.name, "result"} == set(names(tmp_path))


def test_a_folder_whose_writer_was_killed_between_its_renames_comes_back(tmp_path):
    target = tmp_path / "result"
    (target / "old").mkdir(parents=True)
    killed(target, "t.mkdir(); os.replace(sys.argv[1], f'{t}-replaced')")
    assert not target.exists()
    with atomic_path(target) as temporary:
        assert names(target) == ["old"]
        temporary.mkdir()
    assert names(tmp_path) == ["result"]


def test_json_comes_back(tmp_path):
    value = {"a": [1, 2.5, None], "ü": "…"}
    write_json(tmp_path / "v.json", value)
    assert read_json(tmp_path / "v.json") == value
    assert "ü" in (tmp_path / "v.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe", b"[" * 100_000])
def test_invalid_json_is_reported(tmp_path, text):
    (tmp_path / "v.json").write_bytes(text)
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(tmp_path / "v.json")


def test_missing_and_enormous_json_are_refused(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_json(tmp_path / "v.json")
    write_bytes(tmp_path / "v.json", b"[" + b"1," * 100 + b"1]")
    with pytest.raises(UserError, match="more than the maximum of 100"):
        read_json(tmp_path / "v.json", max_bytes=100)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist") as caught:
        write_bytes(tmp_path / "nowhere" / "result", b"1")
    assert "mkdir -p" in caught.value.hint


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / "result").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        write_bytes(tmp_path / "result", b"1")
    assert names(tmp_path) == ["result"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("I/O error: No space left on device")]
)
def test_a_full_disk_is_reported(tmp_path, error):
    with pytest.raises(UserError, match="the disk is full"), disk_errors(tmp_path / "result"):
        raise error


def test_a_file_above_the_size_limit_is_reported_and_removed(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(UserError, match="exceeds the maximum size of a file"):
            write_bytes(tmp_path / "result", bytes(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert names(tmp_path) == []


def test_missing_permission_is_reported(tmp_path):
    target = tmp_path / "result"
    with pytest.raises(UserError, match="no permission to write"), disk_errors(target):
        raise PermissionError(errno.EACCES, "Permission denied", os.fspath(target))


def test_an_error_about_another_file_is_not_blamed_on_the_target(tmp_path):
    source = tmp_path / "source.jpg"
    with pytest.raises(PermissionError), disk_errors(tmp_path / "result"):
        raise PermissionError(errno.EACCES, "Permission denied", os.fspath(source))


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="this system has no /proc")
def test_a_file_system_without_new_files_is_reported():
    with pytest.raises(UserError, match="no files can be created in /proc"):
        write_bytes(Path("/proc/x.h5"), b"1")
    with pytest.raises(UserError, match=r"cannot make the folder /proc/x\.h5\.parts: no folders can be created there"):
        make_folder(Path("/proc/x.h5.parts"))
