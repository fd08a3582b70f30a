"""`titokctl verify`: complete caches pass, changed and incomplete ones don't."""

import json
import os
import shutil
from pathlib import Path

import h5py
import pytest
import tiny
from caches import with_header, write_cache

from titokctl.cli.app import run


def made(root: Path) -> Path:
    tiny.tokenizer(root / "tok.safetensors")
    images = tiny.class_folder(root / "images", per_class=3)
    (images / "cat" / "bad.jpg").write_bytes(b"bad")
    words = ["tokenize", str(images), "-o", str(root / "t.h5"), "--tokenizer", str(root / "tok.safetensors")]
    assert run([*words, "--quiet", "--max-rejected", "0.5"]) == 0
    return root / "t.h5"


def test_a_complete_cache_passes_and_is_compared_with_its_source_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = made(tmp_path)
    for words, is_checked in (
        ([], False), (["--source", "recorded"], True), (["--source", str(tmp_path / "images")], True),
    ):  # fmt: skip
        capsys.readouterr()
        assert run(["verify", str(cache), "--json", *words]) == 0
        out, err = capsys.readouterr()
        result = json.loads(out)
        assert (result["rows"], result["source_checked"], result["problems"]) == (6, is_checked, [])
        assert ("--source recorded" in err) is not is_checked


def test_a_missing_row_is_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = made(tmp_path)
    with_header(cache, num_rejected=0)
    assert run(["verify", str(cache), "--source", "recorded", "--quiet"]) == 1
    assert "6 rows + 0 rejected, but the source has 7 images" in capsys.readouterr().err


def test_a_changed_source_is_a_problem_and_a_missing_one_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = made(tmp_path)
    (tmp_path / "images" / "dog" / "new.jpg").write_bytes(tiny.jpeg(9))
    assert run(["verify", str(cache), "--source", "recorded"]) == 1
    assert "has changed since the cache was made: names, sizes or labels differ" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "images")
    assert run(["verify", str(cache), "--source", "recorded"]) == 1
    assert "can't be opened" in capsys.readouterr().err
    write_cache(tmp_path / "other.h5", 5)
    assert run(["verify", str(tmp_path / "other.h5")]) == 0
    assert run(["verify", str(tmp_path / "other.h5"), "--source", "recorded"]) == 1
    assert "does not record" in capsys.readouterr().err
    assert run(["verify", str(tmp_path / "other.h5"), "--sample", "2"]) == 2
    assert "--source recorded" in capsys.readouterr().err


@pytest.mark.parametrize(
    "paths",
    [
        ["{000000..99999999}.tar"],
        ["http://localhost:1/{0..99999999}.tar"],
        ["ftp://localhost/a.tar"],
        ["file:///etc/passwd"],
        ["pipe:touch touched"],
        ["-"],
        ["/dev/zero"],
        ["PIPE"],
        [5],
        [None],
        [""],
        ["a\0b"],
        ["/tmp"] * 200_000,
    ],
    ids=repr,
)
@pytest.mark.parametrize("command", ["verify", "preview"])
def test_what_a_cache_records_is_opened_only_when_asked_and_only_if_it_is_plain(
    paths: list, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "PIPE")
    source = {"kind": "shards", "paths": [str(tmp_path / "PIPE") if path == "PIPE" else path for path in paths]}
    write_cache(tmp_path / "t.h5", 5, source=source)
    if command == "verify":
        assert run(["verify", "t.h5"]) == 0
    assert run([command, "t.h5", "--source", "recorded"]) == 1
    err = capsys.readouterr().err
    assert "error:" in err
    assert "unexpected" not in err
    assert not (tmp_path / "touched").exists()


def test_a_changed_id_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cache(tmp_path / "tokens.h5", 5)
    with h5py.File(tmp_path / "tokens.h5", "r+") as f:
        f["tokens"][2, 3] ^= 1
    assert run(["verify", str(tmp_path / "tokens.h5"), "--quiet"]) == 1
    assert "/tokens: rows 0 to 4 changed" in capsys.readouterr().err
