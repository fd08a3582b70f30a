"""Files that pretend to be token caches: each is refused with one sentence that names what is wrong."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from caches import as_version_1, with_header
from command_line import RunCli
from test_token_cache import write

from titokctl.errors import UserError
from titokctl.formats.token_cache import TokenCache
from titokctl.formats.token_folder import finish_folder
from titokctl.formats.token_parts import PartsFolder, TokenPart

SECRET = "secret.bin"


def _replace(name: str, **settings: object) -> Callable[[h5py.File], None]:
    def change(f: h5py.File) -> None:
        old = f[name][:]
        attributes = dict(f[name].attrs)
        del f[name]
        f.create_dataset(name, **({"data": old} | settings))
        f[name].attrs.update(attributes)

    return change


def _link(name: str, link: object) -> Callable[[h5py.File], None]:
    def change(f: h5py.File) -> None:
        del f[name]
        f[name] = link

    return change


def _attribute(name: str, value: object) -> Callable[[h5py.File], None]:
    def change(f: h5py.File) -> None:
        del f.attrs[name]
        if value is not None:
            f.attrs[name] = value

    return change


def _without(name: str) -> Callable[[h5py.File], None]:
    return lambda f: f.__delitem__(name)


def _virtual(f: h5py.File) -> None:
    layout = h5py.VirtualLayout((10, 4), "<u2")
    layout[...] = h5py.VirtualSource("elsewhere.h5", "tokens", (10, 4))
    del f["tokens"]
    f.create_virtual_dataset("tokens", layout)


def _values(name: str, where: object, value: int) -> Callable[[h5py.File], None]:
    return lambda f: f[name].__setitem__(where, value)


def _named_type(f: h5py.File) -> None:
    del f["views/flip"]
    f["views/flip"] = np.dtype("<u2")


U2 = {"dtype": "<u2", "data": None}
# In a file of format_version 1.
FIRST = {
    "soft link": (_link("tokens", h5py.SoftLink("/labels")), "soft link"),
    "soft link among views": (_link("views/flip", h5py.SoftLink("/tokens")), "soft link"),
    "dangling link nobody asked for": (lambda f: f.__setitem__("more", h5py.SoftLink("/no")), "soft link"),
    "external link": (_link("labels", h5py.ExternalLink("other.h5", "/labels")), "external link"),
    "external storage": (_replace("tokens", **U2, shape=(10, 4), external=[(SECRET, 0, 80)]), "another file"),
    "virtual dataset": (_virtual, "virtual"),
    "lzf filter": (_replace("tokens", compression="lzf"), "filter 32000"),
    "64 TB contiguous": (_replace("tokens", **U2, shape=(1 << 43, 4)), "out of proportion"),
    "64 TB chunked": (_replace("tokens", **U2, shape=(1 << 43, 4), chunks=(4096, 4), compression=9), "out of propor"),
    "64 TB of keys": (_replace("keys", data=None, dtype="S64", shape=(1 << 40,), chunks=(64,)), "out of proportion"),
    "huge chunks": (_replace("tokens", chunks=(1 << 25, 4), maxshape=(None, 4), compression=9), "out of proportion"),
    "big-endian ids": (_replace("tokens", dtype=">u2"), "type >u2"),
    "signed ids": (_replace("tokens", dtype="<i2"), "type <i2"),
    "wide ids": (_replace("tokens", dtype="<u4"), "type <u4"),
    "ids as objects": (_replace("tokens", data=None, shape=(10, 4), dtype=h5py.string_dtype()), "variable length"),
    "three axes": (_replace("tokens", data=np.zeros((10, 4, 1), "<u2")), "shape"),
    "another K": (_replace("tokens", data=np.zeros((10, 5), "<u2")), "shape"),
    "no rows": (_replace("tokens", data=np.zeros((0, 4), "<u2")), "at least one row"),
    "scalar": (_replace("tokens", data=np.uint16(3)), "shape"),
    "nothing": (_replace("tokens", data=h5py.Empty("<u2")), "no shape"),
    "an id that is V": (_values("tokens", (3, 1), 16), "row 3 .*id 16"),
    "an id that is V in a view": (_values("views/flip", (9, 3), 999), "view 'flip'"),
    "fewer labels": (_replace("labels", data=np.zeros(9, "<i4")), "labels"),
    "float labels": (_replace("labels", dtype="<f4"), "labels"),
    "a label below -1": (_values("labels", 2, -2), "from -2"),
    "a label without a name": (_values("labels", 2, 2), "to 2"),
    "fewer keys": (_replace("keys", data=np.zeros(9, "S4")), "keys"),
    "keys as numbers": (_replace("keys", data=np.zeros(10, "<i4")), "keys"),
    "class names not UTF-8": (_replace("class_names", data=np.array([b"a", b"\xff"])), "UTF-8"),
    "a view of other length": (_replace("views/flip", data=np.zeros((9, 4), "<u2")), "9 rows"),
    "a named type as a view": (_named_type, "not a dataset"),
    "a group as tokens": (lambda f: (_without("tokens")(f), f.create_group("tokens")), "not a dataset"),
    "a dataset as views": (lambda f: (_without("views")(f), f.__setitem__("views", [1])), "not a group"),
    "no tokens": (_without("tokens"), "/tokens .*missing"),
    "no labels": (_without("labels"), "missing"),
    "no keys": (_without("keys"), "missing"),
    "no checksums": (_without("checksums"), "missing"),
    "never finished": (_attribute("complete", None), "never finished"),
    "not complete": (_attribute("complete", 0), "never finished"),
    "newer version": (_attribute("format_version", 3), "newer titokctl"),
    "another format": (_attribute("format", "titokctl/statistics"), "titokctl/statistics"),
    "another HDF5 file": (_attribute("format", None), "not a token cache"),
    "no codebook size": (_attribute("codebook_size", None), "codebook_size .*missing"),
    "codebook size 0": (_attribute("codebook_size", 0), "at least 1"),
    "codebook size as text": (_attribute("codebook_size", "16"), "whole number"),
    "codebook size as a list": (_attribute("codebook_size", [16, 16]), "whole number"),
    "tokenizer not JSON": (_attribute("tokenizer", "{"), "not JSON"),
    "tokenizer nested too deep": (_attribute("tokenizer", "[" * 60_000), "not JSON"),
    "tokenizer no object": (_attribute("tokenizer", "[]"), "JSON object"),
    "hash not UTF-8": (_attribute("encoder_sha256", np.bytes_(b"\xff\xfe")), "UTF-8"),
}


HEADERLESS = ("keys", "class", "codebook", "tokenizer", "hash", "64 TB of keys")
# In a file of format_version 2: the same, and what only this version has.
SECOND = {name: plant for name, plant in FIRST.items() if not any(word in name for word in HEADERLESS)} | {
    "no header": (_without("header"), "/header .*missing"),
    "a header as numbers": (_replace("header", data=np.zeros(9, "<i4")), "expected bytes of text"),
    "a header not UTF-8": (_values("header", 0, 0xFF), "not UTF-8"),
    "a header changed": (_values("header", 5, 0x41), "changed since"),
    "no key ends": (_without("key_ends"), "/key_ends .*missing"),
    "fewer key ends": (_replace("key_ends", data=np.ones(9, "<u8")), "key_ends"),
    "keys as text": (_replace("keys", data=np.zeros(10, "S4")), "keys"),
    "64 TB of keys": (_replace("keys", data=None, dtype="u1", shape=(1 << 46,), chunks=(64,)), "out of proportion"),
    "class names that are an object": (_replace("class_names", data=np.frombuffer(b"{}", "u1")), "not valid|list"),
    "a view that the header lacks": (lambda f: f.__setitem__("views/more", f["views/flip"][:]), "not the views"),
    "a view less": (_without("views/flip"), "not the views"),
    "a group for every row": (lambda f: [f.create_group(f"g{i}") for i in range(200)], "names, more than 100"),
    "ten thousand views": (lambda f: [f["views"].create_group(f"{i}") for i in range(300)], "names, more than 100"),
    "a label of 1e8 without names": (
        lambda f: (_replace("class_names", data=np.frombuffer(b"[]", "u1"))(f), _values("labels", 2, 10**8)(f)),
        "reach from -1 to 100000000",
    ),
}
PLANTED = [(version, name) for version, plants in ((1, FIRST), (2, SECOND)) for name in plants]


@pytest.mark.parametrize(("version", "name"), PLANTED)
def test_planted_files_are_refused(tmp_path: Path, version: int, name: str) -> None:
    (tmp_path / SECRET).write_bytes(bytes(80))
    change, message = {1: FIRST, 2: SECOND}[version][name]
    path = tmp_path / "tokens.h5"
    write(path)
    if version == 1:
        as_version_1(path)
    with h5py.File(path, "r+") as f:
        change(f)
    with pytest.raises(UserError, match=message) as caught:
        TokenCache.open(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook_size": ...}, "codebook_size .*missing"),
        ({"codebook_size": 0}, "at least 1"),
        ({"codebook_size": "16"}, "whole number"),
        ({"tokenizer": []}, "JSON object"),
        ({"surprise": 1}, "surprise .*not a known field"),
        ({"views": {"flip": {}, "plain": {}}}, "a view named 'plain'"),
        ({"views": {f"v{i}": {} for i in range(65)}}, "more than 64"),
        ({"views": {"v" * 201: {}}}, "200 characters"),
        ({"views": {"\ud800": {}}}, "not UTF-8|not JSON|not valid"),
        ({"num_rejected": "3"}, "whole number"),
        ({"source": "/here"}, "JSON object"),
    ],
)
@pytest.mark.parametrize("form", ["file", "folder"])
def test_planted_headers_are_refused(tmp_path: Path, form: str, change: dict, message: str) -> None:
    path = tmp_path / "tokens.h5"
    write(path)
    if form == "folder":
        head = TokenCache.open(path).header
        folder = PartsFolder(tmp_path / "parts", keep=True)
        folder.begin(head, 1)
        ids = np.zeros((2, 4), "<u2")
        part = TokenPart(0, 0, 2, "", ids, np.zeros(2, np.int32), np.array([b"a", b"b"]), {"flip": ids})
        folder.write(part)
        finish_folder(folder, head, 1, 0, lambda n: None)
        path = folder.path
        change = {name: value for name, value in change.items() if name != "num_rejected"} or pytest.skip("not there")
    with_header(path, **change)
    with pytest.raises(UserError, match=message):
        TokenCache.open(path)


def test_what_is_written_has_no_heap_without_checksums(tmp_path: Path) -> None:
    """Text of variable length lies in a global heap ("GCOL"), whose damage libhdf5 may follow in circles."""
    write(tmp_path / "tokens.h5")
    assert b"GCOL" not in (tmp_path / "tokens.h5").read_bytes()
    assert b"GCOL" in as_version_1(tmp_path / "tokens.h5").read_bytes()


@pytest.mark.slow  # the helper process may compute for 20 seconds
@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_heap_in_which_libhdf5_never_ends_is_refused(tmp_path: Path, command: str, run_cli: RunCli) -> None:
    """Zeros in place of the first object of the heap of a version-1 file."""
    write(tmp_path / "tokens.h5")
    planted = bytearray(as_version_1(tmp_path / "tokens.h5").read_bytes())
    first = planted.index(b"GCOL") + 16
    planted[first : first + 16] = bytes(16)
    (tmp_path / "tokens.h5").write_bytes(planted)
    assert "endless loop" in run_cli(command, "tokens.h5", code=1).stderr


@pytest.mark.parametrize("width", [8, 16, 64])
def test_zeros_in_the_structure_of_a_new_file_are_refused_or_harmless(tmp_path: Path, width: int) -> None:
    """Each part of the structure, zeroed behind its signature: some parts are of checksums, which opening skips."""
    ids = write(tmp_path / "tokens.h5")
    whole, keys = (tmp_path / "tokens.h5").read_bytes(), TokenCache.open(tmp_path / "tokens.h5").keys.tolist()
    signatures = [i for i in range(len(whole)) if whole[i : i + 4] in (b"OHDR", b"OCHK", b"FRHP", b"BTHD")]
    refused = 0
    for at in signatures:
        planted = bytearray(whole)
        planted[at + 4 : at + 4 + width] = bytes(width)
        (tmp_path / "planted.h5").write_bytes(planted)
        try:
            cache = TokenCache.open(tmp_path / "planted.h5")
            assert cache.keys.tolist() == keys
            np.testing.assert_array_equal(cache.ids, ids)
        except UserError:
            refused += 1
    assert 3 < refused <= len(signatures)


def test_what_is_no_hdf5_file_at_all(tmp_path: Path) -> None:
    write(tmp_path / "whole.h5")
    whole = (tmp_path / "whole.h5").read_bytes()
    (tmp_path / "text").write_text("not HDF5")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    with h5py.File(tmp_path / "block", "w", userblock_size=512):
        pass
    for name, message in {
        "missing": "not found", "text": "not an HDF5 file", "empty": "empty", ".": "a folder, but not a token cache",
        "cut": "damaged or unfinished", "block": "user block",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=message):
            TokenCache.open(tmp_path / name)


def test_compressed_caches_are_read_into_memory(tmp_path: Path) -> None:
    ids = write(tmp_path / "tokens.h5", n=100)
    with h5py.File(tmp_path / "tokens.h5", "r+") as f:
        _replace("tokens", chunks=(16, 4), compression=4, shuffle=True, fletcher32=True)(f)
    cache = TokenCache.open(tmp_path / "tokens.h5")
    np.testing.assert_array_equal(cache.ids, ids)


def test_ids_may_be_left_unchecked(tmp_path: Path) -> None:
    write(tmp_path / "tokens.h5")
    with h5py.File(tmp_path / "tokens.h5", "r+") as f:
        f["tokens"][0, 0] = 99
    cache = TokenCache.open(tmp_path / "tokens.h5", check_ids=False)
    with pytest.raises(UserError, match="id 99"):
        cache.check_ids()


def test_flipped_bytes_are_refused_or_harmless(tmp_path: Path) -> None:
    """Any one byte of the structure changed: a refusal or a cache of the right shape, never another exception."""
    write(tmp_path / "tokens.h5")
    whole = (tmp_path / "tokens.h5").read_bytes()
    places = np.random.default_rng(5).choice(4096, 150, replace=False)
    for place in places.tolist():
        data = bytearray(whole)
        data[place] ^= 0xFF
        (tmp_path / "bent.h5").write_bytes(data)
        try:
            cache = TokenCache.open(tmp_path / "bent.h5")
        except UserError:
            continue
        assert cache.ids.shape[1] == cache.num_latent_tokens
