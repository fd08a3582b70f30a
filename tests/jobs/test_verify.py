"""`titokctl verify`: complete caches pass, changed and incomplete ones don't."""

import json
from pathlib import Path

import h5py
import pytest
import tiny
from caches import write_cache

from titokctl.cli.app import run


def made(root: Path) -> Path:
    tiny.tokenizer(root / "tok.safetensors")
    images = tiny.class_folder(root / "images", per_class=3)
    (images / "cat" / "bad.jpg").write_bytes(b"bad")
    words = ["tokenize", str(images), "-o", str(root / "t.h5"), "--tokenizer", str(root / "tok.safetensors")]
    assert run([*words, "--quiet", "--max-rejected", "0.5"]) == 0
    return root / "t.h5"


def test_a_complete_cache_passes_and_is_compared_with_its_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = made(tmp_path)
    capsys.readouterr()
    assert run(["verify", str(cache), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["rows"], result["source_checked"], result["problems"]) == (6, True, [])


def test_a_missing_row_is_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = made(tmp_path)
    with h5py.File(cache, "r+") as f:
        f.attrs["num_rejected"] = 0
    assert run(["verify", str(cache), "--quiet"]) == 1
    assert "6 rows + 0 rejected, but the source has 7 images" in capsys.readouterr().err


def test_a_changed_source_fails_and_a_missing_one_is_a_remark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = made(tmp_path)
    (tmp_path / "images" / "dog" / "new.jpg").write_bytes(tiny.jpeg(9))
    assert run(["verify", str(cache)]) == 1
    assert "has changed since the cache was made: names, sizes or labels differ" in capsys.readouterr().err
    write_cache(tmp_path / "other.h5", 5)
    assert run(["verify", str(tmp_path / "other.h5")]) == 0
    assert "does not record" in capsys.readouterr().err


def test_a_changed_id_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cache(tmp_path / "tokens.h5", 5)
    with h5py.File(tmp_path / "tokens.h5", "r+") as f:
        f["tokens"][2, 3] ^= 1
    assert run(["verify", str(tmp_path / "tokens.h5"), "--quiet"]) == 1
    assert "/tokens: rows 0 to 4 changed" in capsys.readouterr().err
