"""Reading of local files: errors that pass are retried, others named; descriptors are limited."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from image_files import encoded, noise
from tar_files import write_tar

from titokctl.errors import UserError
from titokctl.formats import local_file
from titokctl.formats.local_file import FileState, read_file, retried

PNG = encoded(noise(5, 5))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_file, "PAUSES", (0.0, 0.0, 0.0))


class Failing:
    """Raises an error of the system for the first calls."""

    def __init__(self, number: int, times: int) -> None:
        self.number, self.times, self.calls = number, times, 0

    def __call__(self) -> bytes:
        self.calls += 1
        if self.calls <= self.times:
            raise OSError(self.number, os.strerror(self.number))
        return b"data"


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN])
def test_errors_that_may_pass_are_retried(number: int) -> None:
    assert retried(Failing(number, 3), "x") == b"data"
    with pytest.raises(UserError, match=f"cannot read photos/1.png: {os.strerror(number)}") as caught:
        retried(Failing(number, 4), Path("photos/1.png"))
    assert caught.value.hint


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOENT, errno.EMFILE, errno.ENAMETOOLONG, errno.ELOOP])
def test_errors_that_stay_are_named_at_once(number: int) -> None:
    failing = Failing(number, 1)
    with pytest.raises(UserError, match=f"cannot list photos: {os.strerror(number)}"):
        retried(failing, "photos", "list")
    assert failing.calls == 1


def test_a_file_is_read_up_to_a_limit_in_the_expected_state(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"0123456789")
    state = FileState.of(path.stat())
    assert read_file(path, 4, state) == b"0123"
    path.write_bytes(b"012345678")
    with pytest.raises(UserError, match="it had 10 bytes and has 9"):
        read_file(path, 4, state)
    os.mkfifo(tmp_path / "pipe")
    for odd in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(UserError, match="is not a regular file"):
            read_file(odd, 4)


_READ_ALL = """
import sys
from titokctl.data.sources import open_source
source = open_source([sys.argv[1]]).by_position()
assert all(sample.data for sample in source.read_many(range(len(source))))
print(len(source))
"""


def test_many_shards_are_read_with_few_descriptors(tmp_path: Path) -> None:
    for i in range(60):
        write_tar(tmp_path / "in" / f"{i:03d}.tar", [(f"{i}.png", PNG)])
    done = subprocess.run(
        [sys.executable, "-c", _READ_ALL, str(tmp_path / "in")],
        env={**os.environ, "PYTHONPATH": str(Path(local_file.__file__).parents[2])},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)),
        capture_output=True,
        text=True,
    )
    assert (done.stdout.strip(), done.returncode) == ("60", 0), done.stderr


@pytest.mark.slow
def test_commands_take_300_shards_with_256_descriptors(tmp_path: Path) -> None:
    tiny.tokenizer(tmp_path / "tok.safetensors")
    tiny.shards(tmp_path / "in", 300, 1)
    for words in (
        "tokenize in -o t.h5 --tokenizer tok.safetensors --quiet",
        "tokenize in -o parts/ --tokenizer tok.safetensors --quiet",
        "verify t.h5 --source recorded --sample 300 --tokenizer tok.safetensors",
        "shard in -o out --per-shard 1 --quiet",
        "reconstruct in --tokenizer tok.safetensors -o r --features none --quiet",
    ):
        done = subprocess.run(
            [sys.executable, "-m", "titokctl", *words.split()],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(local_file.__file__).parents[2])},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (words, done.stderr)
