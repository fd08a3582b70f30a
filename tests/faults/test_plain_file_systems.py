"""File systems without hard links, such as exFAT, or without locks, such as some on networks: all commands work."""

import errno
import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from campaign import compiled_shim
from command_line import PATIENCE_S, ROOT
from image_files import encoded, noise
from tar_files import tar_bytes

RARE = (errno.ENOSYS, errno.EMLINK, errno.EINVAL)
ERRORS = (errno.EPERM, errno.EOPNOTSUPP, *(pytest.param(number, marks=pytest.mark.slow) for number in RARE))
# Every call of one kind that concerns the folder fails.
ARMED = """
import ctypes, json, os, sys
from pathlib import Path
folder, kind, number = Path(sys.argv[1]), sys.argv[2].encode(), int(sys.argv[3])
ctypes.CDLL(os.environ["LD_PRELOAD"]).fault_set(os.fsencode(folder), kind, ctypes.c_long(-2), number)
"""
WRITER = """
from titokctl.formats.atomic import read_json, write_new_json
won = [write_new_json(folder / str(i), {"writer": os.getpid(), "rest": "x" * 10_000}) for i in range(40)]
mine = [read_json(folder / str(i))["writer"] == os.getpid() for i in range(40)]  # whole, also if another wrote it
assert mine == won
print(sum(won))
"""
READER = """
from titokctl.data.sources import open_source
print(len(open_source([folder / "s.tar.gz"]).by_position().sample(0).data))
"""
COMMANDS = """
from titokctl.cli.app import run
os.chdir(folder)
def tokenize(output, *more):
    assert run(["tokenize", "images", "-o", output, "--tokenizer", "tok.safetensors", "--quiet", *more]) == 0
tokenize("whole.h5")
for part in range(2):
    tokenize("parts.h5", "--part", f"{part}/2")
    tokenize("folder/", "--part", f"{part}/2")
assert Path("parts.h5").read_bytes() == Path("whole.h5").read_bytes()
for words in (
    "shard images -o shards --quiet",
    "verify whole.h5 --source recorded --quiet",
    "merge whole.h5 folder -o merged.h5 --quiet",
    "export merged.h5 --to npy -o ids.npy --quiet",
    "decode whole.h5 -o images.npz --tokenizer tok.safetensors --quiet",
    "inspect merged.h5",
):
    assert run(words.split()) == 0, words
"""


def started(script: str, folder: Path, kind: str, number: int, shim: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ARMED + script, str(folder), kind, str(number)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "LD_PRELOAD": str(shim), "TITOKCTL_RUNS": str(folder / "runs")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", ERRORS, ids=lambda number: errno.errorcode[number])
def test_of_several_writers_one_wins_and_its_file_is_whole(tmp_path: Path, number: int) -> None:
    shim = compiled_shim(tmp_path)
    (tmp_path / "in").mkdir()
    writers = [started(WRITER, tmp_path / "in", "link", number, shim) for _ in range(3)]
    ended = [writer.communicate(timeout=PATIENCE_S) for writer in writers]
    assert all(writer.returncode == 0 for writer in writers), ended
    assert sum(int(out) for out, _ in ended) == 40
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == sorted(map(str, range(40)))


def test_a_full_disk_beside_a_compressed_shard_leaves_its_copy_to_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shim = compiled_shim(tmp_path)
    (tmp_path / "in").mkdir()
    image = encoded(noise(400, 400))
    (tmp_path / "in" / "s.tar.gz").write_bytes(gzip.compress(tar_bytes([("a.png", image)])))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    process = started(READER, tmp_path / "in", "write", errno.ENOSPC, shim)
    out, said = process.communicate(timeout=PATIENCE_S)
    assert out == f"{len(image)}\n", said
    assert len(list((tmp_path / "cache").rglob("*-s.tar.gz.tar"))) == 1
    assert not [path for path in (tmp_path / "in").rglob("*") if ".tmp-" in path.name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "number"), [("link", errno.EPERM), ("lock", errno.ENOLCK), ("lock", errno.ENOSYS)], ids=str
)
def test_every_command_works_there(tmp_path: Path, kind: str, number: int) -> None:
    shim = compiled_shim(tmp_path)
    tiny.tokenizer(tmp_path / "tok.safetensors")
    tiny.class_folder(tmp_path / "images", per_class=4)
    process = started(COMMANDS, tmp_path, kind, number, shim)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
