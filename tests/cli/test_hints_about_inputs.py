"""Inputs of another kind than expected are named, with a hint that helps."""

from pathlib import Path

import pytest
from image_files import encoded, noise
from tar_files import tar_bytes

from titokctl.data.sources import open_source
from titokctl.errors import UserError

PNG = encoded(noise(6, 6))


@pytest.mark.parametrize(
    ("name", "data", "message", "hint"),
    [
        ("a.tar.gz", b"\x1f\x8b\x08\x00", "is cut", "copy or download it again"),
        ("a.gz", b"\x1f\x8b\x08\x00", "compressed with gzip", "gunzip -k"),
        ("a.tar.bz2", b"BZh91AY", "compressed with bzip2", "bzip2 -dk"),
        ("a.tar.zst", b"\x28\xb5\x2f\xfd", "compressed with zstd", "zstd -dk"),
        ("a.tar.xz", b"\xfd7zXZ\x00", "compressed with xz", "xz -dk"),
        ("a.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file", ".tar files"),
        ("a.bin", tar_bytes([("a.png", PNG)]), "a tar whose name does not end with .tar", "rename it"),
        ("a.data", b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer", "git lfs pull"),
        ("a.tar", b"<!doctype html>", "an HTML page", "download it again"),
        ("a.tar", b"PAR1xxxxxxxxx", "a parquet file", "end with .parquet"),
        ("a.tar", b"", "the file is empty", "copy or download it again"),
    ],
)
def test_a_file_that_is_no_source_says_what_it_is(
    tmp_path: Path, name: str, data: bytes, message: str, hint: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        open_source([tmp_path / name])
    assert hint in str(caught.value.hint)


def test_statistics_that_are_no_npz_say_what_they_are(tmp_path: Path, run_cli) -> None:
    (tmp_path / "ref.npz").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0")
    (tmp_path / "samples.npz").write_bytes(b"<html>not found")
    told = run_cli("fid", "samples.npz", "--ref", "ref.npz", "--features", "lite0", code=1)
    assert "an HTML page" in told.stderr
    told = run_cli("stats", "ref.npz", "-o", "out.npz", "--features", "lite0", code=1)
    assert "a Git LFS pointer" in told.stderr
    assert "git lfs pull" in told.stderr


def test_a_second_argument_of_fid_is_explained(run_cli) -> None:
    told = run_cli("fid", "a", "b", code=2)
    assert "fid SAMPLES --ref REF" in told.stderr
