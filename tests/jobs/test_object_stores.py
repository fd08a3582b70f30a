"""A token cache in an object store: written once, resumed, read by every command; a store that fails."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny

from titokctl.cli.app import run
from titokctl.formats.object_store import ObjectFolder, StorePath, path_of
from titokctl.formats.token_cache import TokenCache

for needed in ("s3fs", "moto"):
    pytest.importorskip(needed, reason=f"needs {needed}: pip install 'titokctl[s3]' 'moto[server]'")

import s3_server  # noqa: E402  (the packages it needs may be missing)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
ROWS = 60
Words = Callable[..., list[str]]


@pytest.fixture(scope="module")
def gateway() -> Iterator[s3_server.Gateway]:
    with s3_server.s3() as running:
        yield running


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    tiny.tokenizer(root / "tokenizer.safetensors")
    tiny.shards(root / "shards", 10, 6)
    assert run([*words(root, f"{root}/local/"), "--quiet"]) == 0
    return root


@pytest.fixture
def address(gateway: s3_server.Gateway, request: pytest.FixtureRequest, monkeypatch, tmp_path: Path) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    gateway.faults.clear()
    gateway.written.clear()
    return f"s3://{s3_server.BUCKET}/{request.node.name}/tokens"


def words(source: Path, output: str, *more: str) -> list[str]:
    weights = str(source / "tokenizer.safetensors")
    return ["tokenize", str(source / "shards"), "-o", output, "--tokenizer", weights, *more]


def twice_written(gateway: s3_server.Gateway) -> set[str]:
    return {key for key in gateway.written if gateway.written.count(key) > 1}


def test_the_cache_in_a_store_is_that_of_a_folder(source: Path, gateway, address: str, tmp_path: Path, capsys) -> None:
    assert run([*words(source, f"{address}/"), "--json"]) == 0
    local, made = TokenCache.open(source / "local"), TokenCache.open(address)
    assert json.loads(capsys.readouterr().out)["sha256"] == made.sha256 == local.sha256
    np.testing.assert_array_equal(made.ids[:], local.ids[:])
    np.testing.assert_array_equal(made.view("flip")[::7], local.view("flip")[::7])
    assert (made.labels.tolist(), made.key(59)) == (local.labels.tolist(), local.key(59))
    assert not twice_written(gateway)
    # Parts are fetched once.
    shutil.rmtree(tmp_path / "cache")
    TokenCache.open(address)
    gateway.faults["GET"] = []
    copies = sorted((tmp_path / "cache").rglob("unit-*"))
    assert len(copies) == 10
    before = [copy.stat().st_mtime_ns for copy in copies]
    assert TokenCache.open(address).damage(lambda rows: None) == []
    assert [copy.stat().st_mtime_ns for copy in copies] == before


@pytest.mark.slow
def test_every_command_reads_it(source: Path, gateway, address: str, tmp_path: Path, capsys) -> None:
    assert run([*words(source, f"{address}/"), "--quiet"]) == 0
    weights = ["--tokenizer", str(source / "tokenizer.safetensors")]
    assert run(["inspect", address]) == 0
    assert run(["verify", address]) == 0
    assert run(["export", address, "--to", "npy", "-o", str(tmp_path / "rows.npy")]) == 0
    assert run(["merge", address, "-o", str(tmp_path / "one.h5")]) == 0
    assert TokenCache.open(tmp_path / "one.h5").sha256 == TokenCache.open(address).sha256
    assert run(["diff", address, str(source / "local")]) == 0
    assert run(["preview", address, "-o", str(tmp_path / "rows.png"), *weights]) == 0


@pytest.mark.slow
def test_work_that_was_begun_is_resumed_and_other_settings_are_refused(
    source: Path, gateway, address: str, capsys
) -> None:
    assert run([*words(source, f"{address}/"), "--quiet"]) == 0
    store = ObjectFolder(path_of(address))  # type: ignore[arg-type]
    for name in ("manifest.json", "unit-00000003.safetensors"):
        store.delete(name)
    gateway.written.clear()
    assert run(words(source, f"{address}/", "--views", "none")) == 1
    assert "was begun with other settings" in capsys.readouterr().err
    assert run([*words(source, f"{address}/"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["units_reused"] == 9
    assert [key.rpartition("/")[2] for key in gateway.written] == ["unit-00000003.safetensors", "manifest.json"]
    assert run(words(source, f"{address}/")) == 0
    assert "is finished already" in capsys.readouterr().err
    assert run(words(source, f"{address}/", "--overwrite")) == 1
    assert "never written again" in capsys.readouterr().err
    assert run(words(source, address)) == 2
    assert f"-o {address}/" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "faults",
    [
        {"PUT": ["503"] * 3, "GET": ["503"] * 2, "HEAD": ["503"]},
        {"PUT": ["hang up"] * 3, "GET": ["hang up"]},
        {"PUT": ["lose reply", "lose reply", "", "lose reply"]},
    ],
    ids=["5xx", "broken connections", "lost replies"],
)
def test_faults_of_the_store_are_survived(source: Path, gateway, address: str, faults) -> None:
    """Also a reply that gets lost after a write: the object is found, and not written again."""
    gateway.faults.update(faults)
    assert run([*words(source, f"{address}/"), "--quiet"]) == 0
    gateway.faults.clear()
    assert TokenCache.open(address).sha256 == TokenCache.open(source / "local").sha256
    assert not twice_written(gateway)


@pytest.mark.slow
def test_a_store_that_stays_away_keeps_what_is_finished(source: Path, gateway, address: str) -> None:
    store = ObjectFolder(StorePath(address), pauses=())
    assert store.create("kept", b"1")
    gateway.faults["PUT"] = ["503"] * 100
    with pytest.raises(Exception, match="cannot write lost to"):
        store.create("lost", b"2")
    gateway.faults.clear()
    assert store.read("lost") is None
    assert (store.create("kept", b"1"), store.create("kept", b"3"), store.read("kept")) == (True, False, b"1")
    assert store.sizes() == {"kept": 1}


@pytest.mark.slow
def test_a_damaged_part_is_made_again_and_a_damaged_copy_fetched_again(
    source: Path, gateway, address: str, tmp_path: Path, capsys
) -> None:
    assert run([*words(source, f"{address}/"), "--quiet"]) == 0
    for copy in (tmp_path / "cache").rglob("unit-*"):
        copy.write_bytes(b"damaged")
    assert TokenCache.open(address).sha256 == TokenCache.open(source / "local").sha256
    store = ObjectFolder(path_of(address))  # type: ignore[arg-type]
    store.delete("manifest.json")
    store.delete("unit-00000001.safetensors")
    assert store.create("unit-00000001.safetensors", b"damaged")
    assert run([*words(source, f"{address}/"), "--quiet"]) == 0
    assert TokenCache.open(address).damage(lambda rows: None) == []


@pytest.mark.slow
def test_without_its_plug_in_the_store_says_what_to_install(source: Path) -> None:
    code = "import sys; sys.modules['s3fs'] = None; from titokctl.cli.app import run; sys.exit(run(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *words(source, "s3://bucket/tokens/")], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "install 's3fs>=2024.3'" in done.stderr
