"""The token cache as a file: what is in it, that it is whole or absent, and what the reader gives back."""

import fcntl
import json
import resource
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from caches import as_version_1

from titokctl.errors import UserError
from titokctl.formats.token_cache import CacheHeader, TokenCache
from titokctl.formats.token_cache_writer import TokenCacheWriter
from titokctl.formats.token_header import ContentsChecksums

ARCHIVE = Path(__file__).parents[1] / "data" / "archives" / "token-cache-v1.h5"


def header(**changes: object) -> CacheHeader:
    fields: dict = {
        "tokenizer": {"image_size": 64, "num_latent_tokens": 4},
        "encoder_sha256": "e" * 64,
        "weights_sha256": "d" * 64,
        "codebook_size": 16,
        "num_latent_tokens": 4,
        "image_size": 64,
        "preprocessing": {"size": 64, "crop": "center"},
        "source": {"kind": "folder", "paths": ["/pictures"]},
        "views": {"flip": {"size": 64, "crop": "center", "flip": True}},
        "class_names": ("Ente", "Möwe"),
    }
    return CacheHeader(**(fields | changes))


def ids_for(n: int, codes: int = 16, k: int = 4) -> np.ndarray:
    return (np.arange(n * k, dtype=np.int64).reshape(n, k) * 7) % codes


def write(path: Path, n: int = 10, block: int = 3, head: CacheHeader | None = None) -> np.ndarray:
    head = head or header()
    ids = ids_for(n, head.codebook_size)
    keys = [f"bird/ö{i}.jpg" for i in range(n)]
    with TokenCacheWriter(path, head, num_rows=n, key_bytes=16 * n) as writer:
        for first in range(0, n, block):
            rows = slice(first, min(first + block, n))
            views = dict.fromkeys(head.views, ids[rows, ::-1])
            writer.append(ids[rows], np.arange(n)[rows] % 3 - 1, keys[rows], views)
    return ids


def test_file_is_as_specified_when_read_with_h5py_alone(tmp_path: Path) -> None:
    ids = write(tmp_path / "tokens.h5")
    with h5py.File(tmp_path / "tokens.h5") as f:
        assert set(f) == {"tokens", "labels", "keys", "key_ends", "class_names", "header", "views", "checksums"}
        assert f["tokens"].dtype == np.dtype("<u2")
        assert f["tokens"].chunks is None
        np.testing.assert_array_equal(f["tokens"][:], ids)
        np.testing.assert_array_equal(f["views/flip"][:], ids[:, ::-1])
        assert f["labels"].dtype == np.dtype("<i4")
        assert f["labels"][:4].tolist() == [-1, 0, 1, -1]
        assert (f["keys"].compression, f["keys"].fletcher32) == ("gzip", True)
        ends = f["key_ends"][:].tolist()
        assert f["keys"][ends[2] : ends[3]].tobytes().decode() == "bird/ö3.jpg"
        assert json.loads(f["class_names"][:].tobytes()) == ["Ente", "Möwe"]
        assert dict(f.attrs) == {"format": b"titokctl/token-cache", "format_version": 2, "complete": 1}
        header = json.loads(f["header"][:].tobytes())
        expected = {
            "encoder_sha256": "e" * 64, "weights_sha256": "d" * 64, "codebook_size": 16, "num_latent_tokens": 4,
            "image_size": 64, "tokenizer": {"image_size": 64, "num_latent_tokens": 4}, "token_size": 0,
        }  # fmt: skip
        assert {name: header[name] for name in expected} == expected
        assert header["views"]["flip"]["flip"] is True
        assert header["source"]["paths"] == ["/pictures"]
        assert header["created_by"].startswith("titokctl ")


def test_reader_maps_the_file_and_gives_back_what_was_written(tmp_path: Path) -> None:
    ids = write(tmp_path / "tokens.h5")
    cache = TokenCache.open(tmp_path / "tokens.h5")
    assert isinstance(cache.ids, np.memmap)
    assert isinstance(cache.view("flip"), np.memmap)
    np.testing.assert_array_equal(cache.view("plain"), ids)
    np.testing.assert_array_equal(cache.view("flip"), ids[:, ::-1])
    assert (len(cache), cache.views, cache.class_names) == (10, ("plain", "flip"), ["Ente", "Möwe"])
    assert cache.key(9) == "bird/ö9.jpg"
    assert cache.attrs["encoder_sha256"] == cache.header.encoder_sha256 == "e" * 64
    with pytest.raises(UserError, match="no view 'ten'"):
        cache.view("ten")


def test_bytes_do_not_depend_on_the_block_size(tmp_path: Path) -> None:
    for block in (7, 64, 1000):  # so many that keys deflated in two goes would lie elsewhere
        write(tmp_path / f"{block}.h5", n=1000, block=block)
    assert len({(tmp_path / f"{block}.h5").read_bytes() for block in (7, 64, 1000)}) == 1


def test_checksums_follow_the_specification(tmp_path: Path) -> None:
    import hashlib
    import zlib

    n = 70_000
    write(tmp_path / "tokens.h5", n, block=999)
    with h5py.File(tmp_path / "tokens.h5") as f:
        ids = f["tokens"][:]
        crcs = [zlib.crc32(ids[:65_536].tobytes()), zlib.crc32(ids[65_536:].tobytes())]
        assert f["checksums/tokens"][:].tolist() == crcs
        assert f["checksums/views/flip"].shape == (2,)
        assert f["checksums"].attrs["rows_per_crc"] == 65_536
        lines = []
        for path in sorted(["tokens", "views/flip", "labels", "keys", "key_ends", "class_names"]):
            data = f[path][:]
            shape = ",".join(str(s) for s in data.shape)
            lines.append(f"/{path} {data.dtype.str} {shape} {hashlib.sha256(data.tobytes()).hexdigest()}\n")
            crcs = [zlib.crc32(data[i : i + 65_536].tobytes()) for i in range(0, len(data), 65_536)]
            assert f[f"checksums/{path}"][:].tolist() == crcs
        sums = f["checksums"].attrs
        assert sums["sha256"].decode() == hashlib.sha256("".join(lines).encode()).hexdigest()
        assert sums["header_sha256"].decode() == hashlib.sha256(f["header"][:].tobytes()).hexdigest()


def test_wide_codebooks_take_four_bytes(tmp_path: Path) -> None:
    write(tmp_path / "narrow.h5", head=header(codebook_size=65_536))
    write(tmp_path / "wide.h5", head=header(codebook_size=65_537))
    assert TokenCache.open(tmp_path / "narrow.h5").ids.dtype == np.dtype("<u2")
    assert TokenCache.open(tmp_path / "wide.h5").ids.dtype == np.dtype("<u4")


def test_without_views_names_or_labels(tmp_path: Path) -> None:
    head = header(views={}, class_names=())
    with TokenCacheWriter(tmp_path / "tokens.h5", head, num_rows=2, key_bytes=1) as writer:
        writer.append(ids_for(2), np.full(2, -1), ["a", b"b"])
    cache = TokenCache.open(tmp_path / "tokens.h5")
    assert (cache.views, cache.class_names, cache.labels.tolist()) == (("plain",), [], [-1, -1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ids_for(2) + 13}, "outside"),
        ({"ids": ids_for(2) - 1}, "outside"),
        ({"ids": ids_for(2)[:, :3]}, "shape"),
        ({"ids": ids_for(2).astype(float)}, "integer"),
        ({"keys": ["a"]}, "1 keys and 2 labels"),
        ({"keys": ["a", "x" * 65_536]}, "1 to 65,535"),
        ({"keys": ["a", ""]}, "a key is empty"),
        ({"keys": ["a", "b\0c"]}, "zero byte"),
        ({"keys": np.array([b"a", b"b\0c"])}, "zero byte"),
        ({"keys": np.array([b"a", b"x" * 65_536])}, "1 to 65,535"),
        ({"views": {}}, "views"),
        ({}, "expected 3 rows, got 2"),
    ],
)
def test_rows_that_do_not_fit_leave_nothing_behind(tmp_path: Path, change: dict, message: str) -> None:
    good = {"ids": ids_for(2), "labels": np.zeros(2), "keys": ["a", "b"], "views": {"flip": ids_for(2)}}
    with (
        pytest.raises(ValueError, match=message),
        TokenCacheWriter(tmp_path / "tokens.h5", header(), num_rows=3, key_bytes=16) as writer,
    ):
        writer.append(**(good | change))
    assert list(tmp_path.iterdir()) == []


def test_an_older_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    write(tmp_path / "tokens.h5")
    before = (tmp_path / "tokens.h5").read_bytes()

    def interrupted() -> None:
        with TokenCacheWriter(tmp_path / "tokens.h5", header(), num_rows=3, key_bytes=16) as writer:
            writer.append(ids_for(2), np.zeros(2), ["a", "b"], {"flip": ids_for(2)})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "tokens.h5").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["tokens.h5"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: the system then refuses to go on writing."""
    code = """
import sys, numpy as np
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from test_token_cache import write
from titokctl.errors import UserError
try:
    write(Path(sys.argv[1]), n=100_000, block=10_000)
except UserError as error:
    print(error)
"""
    limit = 300_000
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "tokens.h5"), *map(str, Path(__file__).parents[:2])],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert (done.returncode, done.stderr) == (0, "")
    sentence, hint = done.stdout.splitlines()
    assert "tokens.h5 exceeds the maximum size" in sentence
    assert hint.startswith("hint: ")
    assert list(tmp_path.iterdir()) == []


def test_files_of_version_1_are_read_for_ever() -> None:
    cache = TokenCache.open(ARCHIVE)
    assert (len(cache), cache.views, cache.codebook_size, cache.num_latent_tokens) == (10, ("plain", "flip"), 16, 4)
    np.testing.assert_array_equal(cache.ids, ids_for(10))
    assert cache.key(3) == "bird/ö3.jpg"
    assert cache.labels.tolist() == [-1, 0, 1, -1, 0, 1, -1, 0, 1, -1]
    assert cache.class_names == ["Ente", "Möwe"]
    assert cache.sha256 == "972854e742d01df7b7d9c417b7c8b37e13253dee5dd3d7a0fb06e7e3a8438d27"
    assert ContentsChecksums().sha256() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_changed_bit_is_found_where_it_is(tmp_path: Path) -> None:
    write(tmp_path / "tokens.h5", n=90_000, block=50_000)
    seen: list[int] = []
    assert TokenCache.open(tmp_path / "tokens.h5", check_ids=False).damage(seen.append) == []
    assert sum(seen) == 2 * 90_000
    with h5py.File(tmp_path / "tokens.h5", "r+") as f:
        f["tokens"][70_000, 2] ^= 1
        f["views/flip"][0, 0] ^= 1
    assert TokenCache.open(tmp_path / "tokens.h5", check_ids=False).damage(seen.append) == [
        "/tokens: rows 65,536 to 89,999 changed",
        "/views/flip: rows 0 to 65,535 changed",
    ]


@pytest.mark.parametrize("name", ["labels", "keys", "class_names"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_change_beside_the_ids_is_found(tmp_path: Path, name: str, version: int) -> None:
    write(tmp_path / "tokens.h5")
    if version == 1:
        as_version_1(tmp_path / "tokens.h5")
    with h5py.File(tmp_path / "tokens.h5", "r+") as f:
        first, second = (2, 3) if name == "class_names" and version == 2 else (0, 1)
        f[name][first] = f[name][second]
    (problem,) = TokenCache.open(tmp_path / "tokens.h5", check_ids=False).damage(lambda n: None)
    assert "changed" in problem


@pytest.mark.parametrize("field", ["encoder_sha256", "preprocessing", "source", "views", "image_size"])
def test_a_header_that_was_changed_is_refused(tmp_path: Path, field: str) -> None:
    write(tmp_path / "tokens.h5")
    data = (tmp_path / "tokens.h5").read_bytes()
    at = data.index(f'"{field}"'.encode()) + len(field) + 5
    (tmp_path / "tokens.h5").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(UserError, match=r"/header of .* changed"):
        TokenCache.open(tmp_path / "tokens.h5")


def test_one_long_key_costs_its_own_length_alone(tmp_path: Path) -> None:
    n = 20_000
    keys = [f"{i}" for i in range(n - 1)] + ["x" * 60_000]
    with TokenCacheWriter(tmp_path / "t.h5", header(views={}), num_rows=n, key_bytes=200_000) as writer:
        writer.append(ids_for(n), np.zeros(n), keys)
    cache = TokenCache.open_whole(tmp_path / "t.h5")
    assert cache.keys.data.nbytes == sum(map(len, keys))
    assert (cache.key(0), cache.key(n - 2), len(cache.key(n - 1))) == ("0", str(n - 2), 60_000)
    assert cache.num_bytes < 1_000_000


def test_version_1_gives_back_the_same(tmp_path: Path) -> None:
    write(tmp_path / "new.h5", n=100)
    write(tmp_path / "old.h5", n=100)
    new, old = (TokenCache.open_whole(path) for path in (tmp_path / "new.h5", as_version_1(tmp_path / "old.h5")))
    assert new.header == old.header
    assert new.keys.tolist() == old.keys.tolist()
    np.testing.assert_array_equal(new.ids, old.ids)
    np.testing.assert_array_equal(new.labels, old.labels)


@pytest.mark.parametrize("version", [1, 2])
def test_a_finished_cache_is_read_while_another_process_holds_its_lock(tmp_path: Path, version: int) -> None:
    ids = write(tmp_path / "t.h5")
    path = as_version_1(tmp_path / "t.h5") if version == 1 else tmp_path / "t.h5"
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as HDF5 does for a writer
        np.testing.assert_array_equal(TokenCache.open_whole(path).ids, ids)


def test_the_example_in_the_documentation_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    code = text.split("### Reading it with h5py alone")[1].split("```python")[1].split("```")[0]
    ids = write(tmp_path / "tokens.h5")
    monkeypatch.chdir(tmp_path)
    seen: dict = {}
    exec(code, seen)
    np.testing.assert_array_equal(seen["ids"], ids)
    assert (seen["keys"][3], seen["names"]) == ("bird/ö3.jpg", ["Ente", "Möwe"])
