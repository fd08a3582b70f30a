"""Known names: looked up on this machine, fetched when that is wanted, otherwise one clear error."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import hub_server
import pytest
from networks import GENERATOR, tiny_generator, tiny_tokenizer

from titokctl import load_generator, load_tokenizer
from titokctl.errors import UserError
from titokctl.weights.hashes import encoder_sha256, weights_sha256
from titokctl.weights.known import BUNDLED, BY_NAME
from titokctl.weights.local import is_here
from titokctl.weights.official.files import write_official
from titokctl.weights.read import name_with_encoder
from titokctl.weights.store import Weights, save_tokenizer

NAME = "maskgit-vit-l-32"
REPOSITORY = "yucornetto/generator_titok_l32_imagenet"


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch) -> Path:
    """An empty cache folder of ours and an empty one of the Hub."""
    monkeypatch.setenv("TITOKCTL_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def official(tmp_path) -> Path:
    """The official folder of a tiny generator, in place of the big one."""
    folder = tmp_path / "hub" / REPOSITORY
    write_official(folder, Weights("generator", GENERATOR, dict(tiny_generator().state_dict())))
    return folder


def test_offline_without_it(monkeypatch, caches):
    with pytest.raises(UserError) as caught:
        load_tokenizer("titok-l-32")
    assert "titok-l-32 is not on this machine (TITOKCTL_OFFLINE is set)" in caught.value.message
    for words in (
        "config.json and model.safetensors",
        "yucornetto/tokenizer_titok_l32_imagenet",
        str(caches / "weights/titok-l-32"),
    ):
        assert words in caught.value.hint
    monkeypatch.delenv("TITOKCTL_OFFLINE")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        load_tokenizer("titok-l-32")


def test_in_our_folder(caches, official):
    shutil.copytree(official, caches / "weights" / NAME)
    assert is_here(NAME)
    assert load_generator(NAME).config == GENERATOR


def test_in_the_cache_of_the_hub(caches, official, python):
    repository = caches / "huggingface/hub" / f"models--{REPOSITORY.replace('/', '--')}"
    shutil.copytree(official, repository / "snapshots" / hub_server.COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(hub_server.COMMIT)
    loaded = load_online(python, "http://127.0.0.1:9", TITOKCTL_OFFLINE="1")
    assert loaded.stdout.strip() == weights_sha256(tiny_generator()), loaded.stderr


def test_a_folder_with_a_missing_file_is_ignored(caches, official):
    shutil.copytree(official, caches / "weights" / NAME)
    (caches / "weights" / NAME / "config.json").unlink()
    assert not is_here(NAME)


def test_a_tokenizer_is_found_by_the_hash_of_its_encoder(caches):
    tokenizer = tiny_tokenizer()
    assert name_with_encoder(encoder_sha256(tokenizer)) is None
    save_tokenizer(caches / "weights/titok-s-128.safetensors", tokenizer)
    assert name_with_encoder(encoder_sha256(tokenizer)) == "titok-s-128"
    assert name_with_encoder("0" * 64) is None


def test_weights_ls(run_cli, caches, official):
    shutil.copytree(official, caches / "weights" / NAME)
    listed = run_cli("weights", "ls", "--json", code=0).json
    assert [model["name"] for model in listed["models"]] == list(BY_NAME)
    bundled = {known.name for known in BUNDLED}
    here = {
        model["name"]: model["path"] for model in listed["models"] if model["path"] and model["name"] not in bundled
    }
    assert here == {NAME: str(caches / "weights" / NAME)}
    text = run_cli("weights", "ls", code=0).stdout
    assert "quoted" in text
    assert text.count("not on") >= len(BY_NAME) - len(bundled) - 1


@pytest.fixture
def hub(tmp_path) -> Iterator[tuple[str, list[str]]]:
    """The address of a Hub of our own, and the requests it saw."""
    with hub_server.serve(tmp_path / "hub") as found:
        yield found


def load_online(python: str, address: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Load NAME in a process of its own, since the Hub's client reads its settings once."""
    pytest.importorskip("huggingface_hub")
    code = (
        "from titokctl import UserError, load_generator\n"
        "from titokctl.weights.hashes import weights_sha256\n"
        "try:\n"
        f"    print(weights_sha256(load_generator({NAME!r})))\n"
        "except UserError as error:\n"
        "    raise SystemExit(str(error))\n"
    )
    environment = {**os.environ, **hub_server.online(address), **environment}
    return subprocess.run([python, "-c", code], env=environment, capture_output=True, text=True)


def test_download(hub, official, python):
    """The first use downloads it; later uses find it and send no request."""
    address, requests = hub
    expected = weights_sha256(tiny_generator())
    first = load_online(python, address)
    assert first.stdout.strip() == expected, first.stderr
    assert {f"GET /{REPOSITORY}/resolve/main/{f}" for f in ("config.json", "model.safetensors")} <= set(requests)
    seen = len(requests)
    assert load_online(python, address).stdout.strip() == expected
    assert len(requests) == seen
    assert load_online(python, address, TITOKCTL_OFFLINE="1").stdout.strip() == expected


@pytest.mark.parametrize("switch", ["TITOKCTL_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_sends_no_request(caches, monkeypatch, switch):
    for name in ("TITOKCTL_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(switch, "1")
    with pytest.raises(UserError, match=f"{switch} is set"):
        load_generator(NAME)


def test_download_that_fails(hub, caches, python):
    """An empty Hub: one error, with the repository, the files and where to put them."""
    done = load_online(python, hub[0])
    assert done.returncode == 1
    assert f"{NAME} is not on this machine (the download failed" in done.stderr
    assert f"https://huggingface.co/{REPOSITORY}" in done.stderr
    assert str(caches / "weights" / NAME) in done.stderr
    assert "Traceback" not in done.stderr
