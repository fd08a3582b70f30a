"""Parts of a token cache: reading and writing, resuming, refusals, and the merge."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_token_cache import header, ids_for

from titokctl.errors import UserError
from titokctl.formats.token_cache import TokenCache
from titokctl.formats.token_parts import PartsFolder, TokenPart, merge, summaries
from titokctl.formats.token_tally import Tally, write_rejected

SIZES = (5, 0, 3)
BAD = {"key": "bad", "kind": "truncated", "reason": "cut off"}


def part(unit: int) -> TokenPart:
    n, first = SIZES[unit], sum(SIZES[:unit]) + unit
    ids = ids_for(n).astype("<u2")
    keys = np.array([f"{'long' * unit}{i}".encode() for i in range(n)], dtype=f"S{1 + 4 * unit}")
    labels = np.arange(n, dtype=np.int32) % 2
    return TokenPart(unit, first, n + 1, f"shard {unit}", ids, labels, keys, {"flip": ids[:, ::-1]}, [BAD])


def begun(folder: Path, units: int = 3) -> PartsFolder:
    parts = PartsFolder(folder / "tokens.h5")
    with parts.locked():
        assert parts.begin(header(), 3) is False
    for unit in range(units):
        parts.write(part(unit))
    return parts


def test_a_part_comes_back_as_it_was(tmp_path: Path) -> None:
    parts = begun(tmp_path)
    for unit in range(3):
        back, wrote = parts.read(unit), part(unit)
        assert back is not None
        assert (back.unit, back.first, back.count, back.name) == (wrote.unit, wrote.first, wrote.count, wrote.name)
        np.testing.assert_array_equal(back.ids, wrote.ids)
        np.testing.assert_array_equal(back.views["flip"], wrote.views["flip"])
        assert (back.keys.tolist(), back.labels.tolist()) == (wrote.keys.tolist(), wrote.labels.tolist())
        assert back.rejected == [BAD]
    assert parts.read(3) is None


def test_every_flipped_byte_of_a_part_is_detected(tmp_path: Path) -> None:
    parts = begun(tmp_path)
    place = tmp_path / "tokens.h5.parts" / "unit-00000000.safetensors"
    whole = place.read_bytes()
    for i in range(len(whole)):
        place.write_bytes(whole[:i] + bytes([whole[i] ^ 0x15]) + whole[i + 1 :])
        with pytest.raises(UserError, match="damaged"):
            parts.read(0)
    for length in (0, 7, 40, len(whole) - 1):
        place.write_bytes(whole[:length])
        with pytest.raises(UserError, match="damaged"):
            parts.read(0)


def test_parts_are_merged_in_the_order_of_the_source(tmp_path: Path) -> None:
    parts = begun(tmp_path)
    tally = Tally()
    for one in summaries(parts, 3):
        tally.add(one)
    assert (tally.rows, tally.rejected, tally.samples, tally.by_kind) == (8, 3, 11, {"truncated": 3})
    seen: list[int] = []
    merge(parts, header(), 3, tally, seen.append)
    cache = TokenCache.open(tmp_path / "tokens.h5")
    np.testing.assert_array_equal(cache.ids, np.concatenate([ids_for(5), ids_for(3)]))
    assert cache.keys.tolist() == [b"0", b"1", b"2", b"3", b"4", b"longlong0", b"longlong1", b"longlong2"]
    assert cache.header.num_rejected == 3
    assert sum(seen) == 8


def test_a_missing_or_damaged_part_leaves_no_output(tmp_path: Path) -> None:
    parts = begun(tmp_path, units=2)
    tally = Tally(rows=8, key_bytes=9)
    with pytest.raises(UserError, match="unit 2 is missing"):
        merge(parts, header(), 3, tally, lambda n: None)
    (parts.path / "unit-00000002.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="damaged"):
        merge(parts, header(), 3, tally, lambda n: None)
    assert [p.name for p in tmp_path.iterdir()] == ["tokens.h5.parts"]


def test_resuming_with_other_settings_is_refused_with_the_differences(tmp_path: Path) -> None:
    parts = begun(tmp_path)
    with parts.locked():
        assert parts.begin(header(), 3) is True
        moved = replace(header(), source={"kind": "folder", "paths": ["/moved", "/here"]}, created_by="titokctl 9")
        assert parts.begin(moved, 3) is True
        with pytest.raises(UserError) as caught:
            parts.begin(header(views={}, preprocessing={"size": 64, "crop": "adm"}, encoder_sha256="a" * 64), 4)
    message, hint = caught.value.message, caught.value.hint
    assert "preprocessing.crop: center -> adm" in message
    assert "num_units: 3 -> 4" in message
    assert f"encoder_sha256: {'e' * 64} -> {'a' * 64}" in message
    assert "views.flip" in message
    assert "image_size" not in message
    assert "--overwrite" in hint


def test_a_manifest_of_another_program_is_not_modified(tmp_path: Path) -> None:
    parts = PartsFolder(tmp_path / "tokens.h5")
    parts.path.mkdir()
    (parts.path / "manifest.json").write_text(json.dumps({"format": "other"}))
    (parts.path / "precious.txt").write_text("keep")
    with parts.locked(), pytest.raises(UserError, match="not written by titokctl"):
        parts.begin(header(), 3)
    parts.remove()
    assert (parts.path / "precious.txt").exists()


def test_only_one_process_works_in_the_folder(python: str, tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from titokctl.errors import UserError
from titokctl.formats.token_parts import PartsFolder
try:
    with PartsFolder(Path(sys.argv[1])).locked():
        print("got it")
except UserError as error:
    print(error.message)
"""
    parts = PartsFolder(tmp_path / "tokens.h5")
    command = [python, "-c", code, str(parts.output)]
    with parts.locked():
        assert "another titokctl" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "got it\n"


def test_rejected_samples_are_listed_and_an_old_list_is_deleted(tmp_path: Path) -> None:
    target = tmp_path / "tokens.h5.rejected.jsonl"
    write_rejected(target, [BAD, BAD | {"key": "größer"}])
    assert [json.loads(line) for line in target.read_text().splitlines()] == [BAD, BAD | {"key": "größer"}]
    write_rejected(target, [])
    assert list(tmp_path.iterdir()) == []


def test_removing_the_parts_removes_the_folder(tmp_path: Path) -> None:
    parts = begun(tmp_path)
    (parts.path / ".unit-00000001.safetensors.tmp-1-ab").write_bytes(b"left by a killed process")
    parts.remove()
    assert list(tmp_path.iterdir()) == []
    parts.remove()
