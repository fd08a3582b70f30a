"""A token cache in a folder of parts: it reads like the file of the same rows, and damage is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from caches import sealed
from test_token_cache import header, ids_for

from titokctl.errors import UserError
from titokctl.formats.token_cache import TokenCache
from titokctl.formats.token_folder import PartedRows, finish_folder
from titokctl.formats.token_header import CacheHeader
from titokctl.formats.token_parts import PartsFolder, TokenPart, merge, summaries
from titokctl.formats.token_tally import Tally

SIZES = (5, 0, 3, 7)


def write(folder: PartsFolder, head: CacheHeader, rows: np.ndarray) -> Tally:
    with folder.locked():
        folder.begin(head, len(SIZES))
    first = 0
    for unit, n in enumerate(SIZES):
        ids = np.ascontiguousarray(rows[first : first + n])
        keys = np.array([f"{'x' * unit}{i}".encode() for i in range(n)], f"S{unit + 2}")
        views = dict.fromkeys(head.views, ids[:, ::-1])
        part = TokenPart(unit, first, n, f"unit {unit}", ids, np.arange(n, dtype=np.int32) % 2, keys, views)
        folder.write(part)
        first += n
    tally = Tally()
    for summary in summaries(folder, len(SIZES)):
        tally.add(summary)
    return tally


@pytest.fixture
def both(tmp_path: Path) -> tuple[TokenCache, TokenCache]:
    """Write the same rows as a file and as a folder."""
    head, rows = header(), ids_for(sum(SIZES)).astype("<u2")
    file, folder = PartsFolder(tmp_path / "tokens.h5"), PartsFolder(tmp_path / "tokens", keep=True)
    merge(file, head, len(SIZES), write(file, head, rows), lambda n: None)
    finish_folder(folder, head, len(SIZES), write(folder, head, rows).rejected, lambda n: None)
    return TokenCache.open(tmp_path / "tokens.h5"), TokenCache.open(tmp_path / "tokens")


def test_a_folder_reads_like_the_file(both: tuple[TokenCache, TokenCache]) -> None:
    file, folder = both
    assert replace(folder.header, created_by=file.header.created_by) == file.header
    assert (folder.sha256, len(folder), folder.views) == (file.sha256, 15, file.views)
    np.testing.assert_array_equal(np.asarray(folder.ids), file.ids)
    np.testing.assert_array_equal(folder.view("flip")[2:9], file.view("flip")[2:9])
    np.testing.assert_array_equal(folder.labels, file.labels)
    assert folder.keys.tolist() == file.keys.tolist()
    assert folder.key(14) == "xxx6"
    assert (folder.ids.shape, folder.ids.nbytes, folder.ids.itemsize) == (file.ids.shape, file.ids.nbytes, 2)
    assert folder.damage(lambda n: None) == file.damage(lambda n: None) == []
    assert (file.form, folder.form) == ("token cache", "token cache in parts")
    assert file.num_bytes == file.path.stat().st_size
    assert folder.num_bytes == sum(path.stat().st_size for path in folder.path.iterdir())


@pytest.mark.parametrize(
    "wanted",
    [0, -1, 7, slice(0, 0), slice(3, 40), slice(None, None, 4), slice(9, 2, -2), np.array([14, 0, 5, 5, -1]), [1, 2],
     np.arange(15) % 2 == 0, (3, 1), (slice(2, 12), 2), (slice(2, 12), slice(1, 3)), np.array([], np.int64)],
    ids=str,
)  # fmt: skip
def test_rows_are_taken_as_from_an_array(both: tuple[TokenCache, TokenCache], wanted: object) -> None:
    file, folder = both
    np.testing.assert_array_equal(folder.ids[wanted], file.ids[wanted])  # type: ignore[index]


def test_rows_out_of_range_are_an_error(both: tuple[TokenCache, TokenCache]) -> None:
    for wanted in (15, -16, np.array([3, 15])):
        with pytest.raises(IndexError):
            both[1].ids[wanted]
    assert len(PartedRows(lambda unit: np.empty(0), np.array([], np.int64), (4,), "<u2")) == 0


def test_latents_in_a_folder_and_in_a_file(tmp_path: Path) -> None:
    head = replace(header(), codebook_size=0, token_size=3, views={"flip": {"flip": True}})
    rows = np.linspace(-2, 2, 15 * 4 * 3).reshape(15, 4, 3).astype("<f2")
    file, folder = PartsFolder(tmp_path / "tokens.h5"), PartsFolder(tmp_path / "tokens", keep=True)
    merge(file, head, len(SIZES), write(file, head, rows), lambda n: None)
    finish_folder(folder, head, len(SIZES), write(folder, head, rows).rejected, lambda n: None)
    one, other = TokenCache.open(tmp_path / "tokens.h5"), TokenCache.open(tmp_path / "tokens")
    np.testing.assert_array_equal(one.latents, rows)
    np.testing.assert_array_equal(np.asarray(other.latents), rows)
    assert one.sha256 == other.sha256
    assert one.damage(lambda n: None) == []
    for cache in (one, other):
        with pytest.raises(UserError, match="latents of a Gaussian"):
            _ = cache.ids
    rows[3, 1, 2] = np.nan
    folder.write(TokenPart(0, 0, 5, "", rows[:5], np.zeros(5, np.int32), np.array([b"a"] * 5), {"flip": rows[:5]}))
    with pytest.raises(UserError, match=r"row 3 .*not finite"):
        TokenCache.open(tmp_path / "tokens")


def _manifest(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def planted(folder: Path) -> None:
        found = json.loads((folder / "manifest.json").read_text())
        change(found)
        sealed(folder, found)

    return planted


PLANTED = {
    "changed by hand": (
        lambda f: (f / "manifest.json").write_text((f / "manifest.json").read_text().replace("kind", "Kind")),
        "its checksum does not fit",
    ),
    "unfinished": (_manifest(lambda m: m.pop("complete")), "never finished"),
    "another format": (_manifest(lambda m: m.update(format="x")), "not written by titokctl"),
    "newer": (_manifest(lambda m: m.update(format_version=9)), "newer titokctl"),
    "no rows": (_manifest(lambda m: m.pop("rows")), "rows in .*is not a list"),
    "negative rows": (_manifest(lambda m: m.update(rows=[-1, 16])), r"rows\.0 in .*at least 0"),
    "no row at all": (_manifest(lambda m: m.update(rows=[0, 0])), "no rows"),
    "more rows": (_manifest(lambda m: m.update(rows=[6, 0, 3, 7])), "does not fit"),
    "more parts": (_manifest(lambda m: m["rows"].append(4)), "missing"),
    "no checksum": (_manifest(lambda m: m.pop("sha256")), "sha256 in .*is not text"),
    "a header that is a list": (_manifest(lambda m: m.update(header=[])), "header in .*JSON object"),
    "no size of the codebook": (_manifest(lambda m: m["header"].pop("codebook_size")), "codebook_size .*missing"),
    "no codes and no latents": (_manifest(lambda m: m["header"].update(codebook_size=0)), "codebook_size .*at least 1"),
    "a header of another kind": (_manifest(lambda m: m["header"].update(surprise=1)), "surprise .*not a known field"),
    "a header with text": (_manifest(lambda m: m["header"].update(codebook_size="16")), "codebook_size .*whole number"),
    "smaller codebook": (_manifest(lambda m: m["header"].update(codebook_size=8)), "only 8 codes"),
    "a view elsewhere": (_manifest(lambda m: m["header"]["views"].update({"../x": {}})), r"views\.\.\./x .*not a name"),
    "fewer classes": (_manifest(lambda m: m["header"].update(class_names=["a"])), "reach from 0 to 1"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "not a token cache"),
    "a part gone": (lambda f: (f / "unit-00000002.safetensors").unlink(), "missing"),
    "a part changed": (lambda f: (f / "unit-00000002.safetensors").write_bytes(b"x" * 99), "damaged"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_folders_are_refused(both: tuple[TokenCache, TokenCache], name: str) -> None:
    plant, message = PLANTED[name]
    plant(both[1].path)
    with pytest.raises(UserError, match=message):
        _ = TokenCache.open(both[1].path).labels


def test_a_part_that_was_exchanged_is_found(both: tuple[TokenCache, TokenCache]) -> None:
    folder = PartsFolder(both[1].path, keep=True)
    part = folder.read(3)
    assert part is not None
    part.ids[0, 0] ^= 1
    folder.write(part)
    (problem,) = both[1].damage(lambda n: None)
    assert "not those it was finished with" in problem
