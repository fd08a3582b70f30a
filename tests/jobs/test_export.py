"""`titokctl export`: other programs read the same ids and labels."""

import json
from pathlib import Path

import numpy as np
import pytest
from caches import write_cache
from safetensors import safe_open

from titokctl.cli.app import run
from titokctl.formats.token_cache import TokenCache

ROWS = 9000


@pytest.fixture
def cache(tmp_path: Path) -> TokenCache:
    return TokenCache.open(write_cache(tmp_path / "tokens.h5", ROWS))


def exported(cache: TokenCache, form: str, *more: str) -> Path:
    assert run(["export", str(cache.path), "--to", form, "--quiet", *more]) == 0
    return cache.path.with_suffix(f".{form}")


def test_jsonl(cache: TokenCache) -> None:
    lines = [json.loads(line) for line in exported(cache, "jsonl").read_text().splitlines()]
    assert [line["class_id"] for line in lines] == cache.labels.tolist()
    np.testing.assert_array_equal([line["tokens"] for line in lines], cache.ids)


def test_npy_of_a_view(cache: TokenCache) -> None:
    ids = np.load(exported(cache, "npy", "--view", "flip"), allow_pickle=False)
    assert ids.dtype == cache.ids.dtype
    np.testing.assert_array_equal(ids, cache.view("flip"))


def test_safetensors(cache: TokenCache) -> None:
    with safe_open(exported(cache, "safetensors"), "np") as file:
        np.testing.assert_array_equal(file.get_tensor("tokens"), cache.ids)
        np.testing.assert_array_equal(file.get_tensor("labels"), cache.labels)
        assert file.metadata()["encoder_sha256"] == "e" * 64
        assert file.metadata()["codebook_size"] == str(cache.codebook_size)


def test_invalid_exports_are_refused(cache: TokenCache, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(cache.path), "--to", "csv"]) == 2
    assert "'csv'" in capsys.readouterr().err
    assert run(["export", str(cache.path), "--to", "npy", "--view", "ten"]) == 1
    assert "no view 'ten'" in capsys.readouterr().err
    exported(cache, "npy")
    exported(cache, "npy", "--overwrite")
    names = sorted(p.name for p in cache.path.parent.iterdir())
    assert names == [".tokens.npy.settings.json", "tokens.h5", "tokens.npy"]
