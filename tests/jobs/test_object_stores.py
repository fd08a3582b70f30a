"""A token cache in an object store: written once, resumed, read by every command; a store that fails."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import small_generator
import tiny
import torch
from safetensors.torch import load_file

from titokctl.cli.app import run
from titokctl.errors import UserError
from titokctl.formats.object_store import ObjectFolder, StorePath, path_of
from titokctl.formats.token_cache import TokenCache

for needed in ("s3fs", "moto"):
    pytest.importorskip(needed, reason=f"needs {needed}: pip install 'titokctl[s3]' 'moto[server]'")

import s3_server  # noqa: E402  (the packages it needs may be missing)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
ROWS = 60
SMALL = small_generator.recipe(codes=64, steps=5, batch=8)
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
    gateway.asked.clear()
    return f"s3://{s3_server.BUCKET}/{request.node.name}/tokens"


def words(source: Path, output: str, *more: str) -> list[str]:
    weights = str(source / "tokenizer.safetensors")
    return ["tokenize", str(source / "shards"), "-o", output, "--tokenizer", weights, *more]


def contents(path: Path) -> object:
    """The bytes of a file; of safetensors the tensors, since the order of its metadata is left to chance."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    return {name: tensor.tolist() for name, tensor in load_file(path).items()}


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
    weights, local = ["--tokenizer", str(source / "tokenizer.safetensors")], str(source / "local")
    assert run(["inspect", address]) == 0
    assert run(["verify", address, "--source", str(source / "shards"), "--sample", "5", *weights]) == 0
    assert run(["merge", address, "-o", str(tmp_path / "one.h5")]) == 0
    assert TokenCache.open(tmp_path / "one.h5").sha256 == TokenCache.open(address).sha256
    assert run(["diff", address, local]) == 0
    for name, words_of in (
        ("rows.npy", ["export", "--to", "npy"]),
        ("rows.safetensors", ["export", "--to", "safetensors"]),
        ("rows.jsonl", ["export", "--to", "jsonl"]),
        ("rows.png", ["preview", *weights]),
    ):
        for place, cache in (("store", address), ("disk", local)):
            (tmp_path / place).mkdir(exist_ok=True)
            assert run([*words_of, cache, "-o", str(tmp_path / place / name)]) == 0
        assert contents(tmp_path / "store" / name) == contents(tmp_path / "disk" / name)


@pytest.mark.slow
def test_export_and_merge_write_to_a_store(source: Path, gateway, address: str, tmp_path: Path, capsys) -> None:
    """Exported files are single objects, merged caches folders of parts; what is there is never written again."""
    local = str(source / "local")
    for form in ("npy", "jsonl", "safetensors", "wds"):
        assert run(["export", local, "--to", form, "-o", str(tmp_path / f"rows.{form}")]) == 0
        assert run(["export", local, "--to", form, "-o", f"{address}/rows.{form}"]) == 0
    store = ObjectFolder(path_of(address))  # type: ignore[arg-type]
    for name in ("rows.npy", "rows.jsonl", "rows.safetensors"):
        (tmp_path / f"fetched-{name}").write_bytes(store.read(name) or b"")
        assert contents(tmp_path / f"fetched-{name}") == contents(tmp_path / name)
    shards = ObjectFolder(path_of(f"{address}/rows.wds"))  # type: ignore[arg-type]
    assert shards.sizes() == {path.name: path.stat().st_size for path in (tmp_path / "rows.wds").iterdir()}
    assert run(["merge", local, local, "-o", f"{address}/both/", "--dry-run"]) == 0
    assert run(["merge", local, local, "-o", f"{address}/both/"]) == 0
    assert run(["merge", local, local, "-o", str(tmp_path / "both.h5")]) == 0
    both = TokenCache.open(f"{address}/both")
    assert both.sha256 == TokenCache.open(tmp_path / "both.h5").sha256
    assert both.damage(lambda rows: None) == []
    assert not twice_written(gateway)
    capsys.readouterr()
    export = ["export", local, "--to", "npy", "-o", f"{address}/rows.npy"]
    shards_again = ["export", local, "--to", "wds", "-o", f"{address}/rows.wds"]
    both_again = ["merge", local, local, "-o", f"{address}/both"]
    for again, other in (
        (export, [*export, "--view", "flip"]),
        (shards_again, [*shards_again, "--view", "flip"]),
        (both_again, ["merge", local, "-o", f"{address}/both"]),
    ):
        assert run(again) == 0
        assert "is finished already" in capsys.readouterr().err
        assert run(other) == 1
        assert "made with other settings" in capsys.readouterr().err
        assert run([*again, "--overwrite"]) == 1
        assert "never written again" in capsys.readouterr().err
    assert not twice_written(gateway)
    assert store.create("mine.npy", b"1")
    assert run(["export", local, "--to", "npy", "-o", f"{address}/mine.npy"]) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.slow
def test_a_generator_is_trained_on_it_as_on_a_folder(source: Path, gateway, address: str, tmp_path: Path) -> None:
    assert run([*words(source, f"{address}/"), "--quiet"]) == 0
    (tmp_path / "small.yaml").write_text(SMALL)
    found = []
    for name, cache in (("store", address), ("disk", str(source / "local"))):
        around = ["--device", "cpu", "--runs-dir", str(tmp_path / "runs"), "--name", name]
        assert run(["train-gen", cache, "--recipe", str(tmp_path / "small.yaml"), *around]) == 0
        (weights,) = (tmp_path / "runs" / "generator" / name).glob("*.safetensors")
        found.append(load_file(weights))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_commands_that_write_other_things_refuse_an_address(source: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Otherwise they would make a folder named s3: on the disk."""
    monkeypatch.chdir(tmp_path)
    weights = ["--tokenizer", str(source / "tokenizer.safetensors")]
    for words_of in (
        ["preview", str(source / "local"), "-o", "s3://bucket/rows.png", *weights],
        ["decode", str(source / "local"), "-o", "s3://bucket/images", *weights],
        ["sample", "-o", "s3://bucket/samples"],
        ["stats", str(source / "shards"), "-o", "s3://bucket/stats.npz"],
    ):
        assert run(words_of) == 1
        assert "is in an object store" in capsys.readouterr().err
    assert not list(tmp_path.glob("s3*"))


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
        {"PUT": ["silence", "late"], "GET": ["silence", "late"], "HEAD": ["late"]},
    ],
    ids=["5xx", "broken connections", "lost replies", "slow replies"],
)
def test_faults_of_the_store_are_survived(source: Path, gateway, address: str, faults) -> None:
    """Also a reply that gets lost after a write: the object is found, and not written again."""
    gateway.faults.update(faults)
    with s3_server.impatient():
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
@pytest.mark.parametrize("fault", ["503", "hang up", "silence"])
def test_a_store_that_fails_for_ever_is_named_in_one_sentence(source: Path, gateway, address, fault, capsys) -> None:
    """The number of requests is bounded, since only one of the layers below retries; and so is each wait."""
    with s3_server.impatient():
        folder = ObjectFolder(StorePath(address), pauses=(0.0, 0.0))
        gateway.faults |= {method: [fault] * 1000 for method in ("GET", "HEAD", "PUT")}
        for doing, call in (
            ("read name in", lambda: folder.read("name")),
            ("list", folder.sizes),
            ("write name to", lambda: folder.create("name", b"1")),
        ):
            gateway.asked.clear()
            with pytest.raises(UserError) as caught:
                call()
            assert caught.value.message.startswith(f"cannot {doing} {address}: ")
            assert "\n" not in caught.value.message
            assert "check the address" in caught.value.hint
            assert 3 <= len(gateway.asked) <= 6


@pytest.mark.slow
def test_a_large_object_is_written_once_though_its_reply_is_lost(gateway, address: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 4096)
    folder = ObjectFolder(StorePath(address), pauses=(0.0,))
    gateway.faults["PUT"] = ["lose reply"]
    assert folder.create_file("file", tmp_path / "file")
    assert folder.read("file") == (tmp_path / "file").read_bytes()
    (tmp_path / "file").write_bytes(b"other")
    assert not folder.create_file("file", tmp_path / "file")
    assert not twice_written(gateway)


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
