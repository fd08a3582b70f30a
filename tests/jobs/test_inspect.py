"""`titokctl inspect` on everything that titokctl makes, and on unknown files."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
from caches import CODES, TOKENS, write_cache

from titokctl.cli.app import run
from titokctl.context import Context
from titokctl.errors import UserError
from titokctl.formats.run_folder import RunFolder
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs.caches.inspect import Inspect, Inspection


def inspect(path: Path) -> Inspection:
    return Inspect(path).run(Context())


def test_a_token_cache_with_its_codebook_usage(tmp_path: Path) -> None:
    write_cache(tmp_path / "tokens.h5", 300)
    found = inspect(tmp_path / "tokens.h5")
    ids = np.asarray(TokenCache.open(tmp_path / "tokens.h5").ids)
    assert found.what == "token cache"
    assert (found.facts["rows"], found.facts["codebook (V)"], found.facts["tokens an image (K)"]) == (
        300,
        CODES,
        TOKENS,
    )
    assert found.facts["bytes a row"] == TOKENS * 2 * 2
    assert found.facts["codes used"] == len(np.unique(ids))
    assert sum(found.classes.values()) == 300
    assert list(found.classes) == ["class 0", "class 1", "class 2"]
    assert len(found.positions) == TOKENS
    for position, column in zip(found.positions, ids.T, strict=True):
        shares = np.unique(column, return_counts=True)[1] / 300
        assert position["codes used"] == len(shares)
        assert position["perplexity"] == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))


def test_classes_without_names_are_listed_by_number(tmp_path: Path) -> None:
    images = tiny.shards(tmp_path / "shards", count=1, per_shard=6)
    assert inspect(images / "000.tar").classes == {"0": 2, "1": 2, "2": 2}


def test_weights_runs_and_images(tmp_path: Path) -> None:
    model = tiny.tokenizer(tmp_path / "tok.safetensors")
    weights = inspect(tmp_path / "tok.safetensors")
    assert weights.what == "tokenizer weights"
    assert weights.facts["parameters"] == sum(p.numel() for p in model.state_dict().values())
    RunFolder(path=tmp_path / "run", kind="tokenizer", settings={"a": 1}).save()
    assert inspect(tmp_path / "run").what == "tokenizer run"
    tiny.class_folder(tmp_path / "images", per_class=2)
    images = inspect(tmp_path / "images")
    assert (images.what, images.facts["images"], images.classes) == ("images (folder)", 4, {"cat": 2, "dog": 2})


def test_an_unfinished_cache(tmp_path: Path) -> None:
    tiny.tokenizer(tmp_path / "tok.safetensors")
    images = tiny.class_folder(tmp_path / "images", per_class=2)
    (images / "cat" / "bad.jpg").write_bytes(b"bad")
    words = ["tokenize", str(images), "-o", str(tmp_path / "t.h5"), "--tokenizer", str(tmp_path / "tok.safetensors")]
    assert run([*words, "--quiet"]) == 1
    found = inspect(tmp_path / "t.h5.parts")
    assert (found.what, found.facts["finished parts"], found.facts["parts"]) == ("unfinished token cache", 1, 1)


@pytest.mark.parametrize("name", ["missing", "foreign.txt", "empty", "foreign.safetensors", "foreign.h5", "folder"])
def test_missing_and_unknown_files(tmp_path: Path, name: str) -> None:
    for file in ("foreign.txt", "foreign.safetensors"):
        (tmp_path / file).write_text("something else")
    (tmp_path / "empty").touch()
    (tmp_path / "foreign.h5").write_bytes(b"\x89HDF\r\n\x1a\n and then nothing")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError) as caught:
        inspect(tmp_path / name)
    assert name in caught.value.message
    assert "\n" not in caught.value.message


def test_the_command_prints_a_table_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cache(tmp_path / "tokens.h5", 20)
    assert run(["inspect", str(tmp_path / "tokens.h5")]) == 0
    table = capsys.readouterr().out
    assert "token cache" in table
    assert "perplexity" in table
    assert "class 2" in table
    assert run(["inspect", str(tmp_path / "tokens.h5"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["facts"]["rows"] == 20
