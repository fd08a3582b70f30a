"""The identity of sources: whenever the bytes may be others, the source is another one."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from image_files import encoded, noise
from tar_files import write_tar

from titokctl.data.sources import open_source, reopen_source
from titokctl.data.sources.source import difference
from titokctl.errors import UserError


def bmp(seed: int, edge: int = 8) -> bytes:
    """An image whose size does not depend on its pixels."""
    return encoded(noise(edge, edge, seed=seed), "BMP")


def folder(root: Path, seed: int) -> list[Path]:
    for i in range(4):
        path = root / "in" / "cat" / f"{i}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bmp(seed + i))
    return [root / "in"]


def shards(root: Path, seed: int) -> list[Path]:
    return [write_tar(root / f"{s}.tar", [(f"{s}{i}.bmp", bmp(seed + 9 * s + i)) for i in range(3)]) for s in range(2)]


def parquet(root: Path, seed: int) -> list[Path]:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    root.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": pa.array([bmp(seed + i) for i in range(3)], pa.binary())})
    pq.write_table(table, root / "a.parquet", compression="none")
    return [root / "a.parquet"]


KINDS = pytest.mark.parametrize("make", [folder, shards, parquet], ids=lambda make: make.__name__)


def with_times_of(paths: list[Path], make: Callable[[], object]) -> None:
    """Call `make`, then give all files the times of modification they had."""
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*.*"))]
    times = {file: file.stat().st_mtime_ns for file in files}
    make()
    for file, time in times.items():
        os.utime(file, ns=(time, time))


@KINDS
def test_equal_names_and_sizes_with_other_pixels_are_another_source(
    tmp_path: Path, make: Callable[[Path, int], list[Path]]
) -> None:
    first, second = (open_source(make(tmp_path / name, seed)).description for name, seed in (("a", 0), ("b", 50)))
    assert first["fingerprint"] != second["fingerprint"]
    assert difference(first, second) is not None
    assert difference(first, second, moved=True) is not None


@KINDS
def test_other_pixels_behind_the_same_path_size_and_time_are_another_source(
    tmp_path: Path, make: Callable[[Path, int], list[Path]]
) -> None:
    paths = make(tmp_path / "a", 0)
    before = open_source(paths).description
    with_times_of(paths, lambda: make(tmp_path / "a", 50))
    after = reopen_source(before)
    assert after.description["fingerprint"] != before["fingerprint"]
    assert difference(before, after.description) == "the names and sizes are the same, but the contents differ"


@KINDS
def test_a_file_written_again_with_the_same_bytes_holds_the_same_images(
    tmp_path: Path, make: Callable[[Path, int], list[Path]]
) -> None:
    paths = make(tmp_path / "a", 0)
    before = open_source(paths).description
    for file in tmp_path.rglob("*.*"):
        os.utime(file, ns=(1, 1))
    after = open_source(paths).description
    assert after["fingerprint"] != before["fingerprint"]
    assert difference(before, after) is None


def test_sets_too_large_to_read_whole_are_told_apart_by_samples_of_their_bytes(tmp_path: Path) -> None:
    for name, value in (("a", b"\0"), ("b", b"\1")):
        (tmp_path / name).mkdir()
        for i in range(3):
            with (tmp_path / name / f"{i}.bmp").open("wb") as file:
                file.write(value * 4096)
                file.truncate(40 << 20)
            os.utime(tmp_path / name / f"{i}.bmp", ns=(1, 1))
    first, second = (open_source([tmp_path / name]).description for name in "ab")
    assert not first["contents_whole"]
    assert first["listing"] == second["listing"]
    assert first["contents"] != second["contents"]


def test_a_large_set_that_was_copied_is_only_the_same_if_the_user_names_it(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        with (tmp_path / name / "0.bmp").open("wb") as file:
            file.truncate(70 << 20)
    first, second = (open_source([tmp_path / name]).description for name in "ab")
    assert difference(first, second) == "the files were moved or written again"
    assert difference(first, second, moved=True) is None


def test_caches_of_older_versions_are_compared_by_names_and_sizes(tmp_path: Path) -> None:
    now = open_source(folder(tmp_path, 0)).description
    recorded = {"kind": "folder", "paths": now["paths"], "num_samples": 4, "fingerprint": now["listing"]}
    assert difference(recorded, now) is None
    assert difference(recorded | {"fingerprint": "0" * 64}, now) == "names, sizes or labels differ"


@pytest.mark.parametrize("how", ["shorter", "longer", "same size"])
@KINDS
def test_a_file_that_changes_while_it_is_in_use_is_an_error(
    tmp_path: Path, make: Callable[[Path, int], list[Path]], how: str
) -> None:
    source = open_source(make(tmp_path / "a", 0)).by_position()
    victim = min(path for path in (tmp_path / "a").rglob("*.*") if path.suffix in (".bmp", ".tar", ".parquet"))
    data = victim.read_bytes()
    victim.write_bytes({"shorter": data[:-9], "longer": data + b"x", "same size": data[::-1]}[how])
    os.utime(victim, ns=(1, 1))
    with pytest.raises(UserError, match="changed while it was in use") as caught:
        source.read_many(range(len(source)))
    assert victim.name in caught.value.message
    assert "--overwrite" in str(caught.value.hint)


def test_a_shard_replaced_by_a_rename_is_noticed(tmp_path: Path) -> None:
    [first, _] = shards(tmp_path, 0)
    source = open_source([first]).by_position()
    source.sample(0)
    write_tar(tmp_path / "new" / "0.tar", [("00.bmp", bmp(77))]).rename(first)
    fresh = open_source([first]).by_position()
    assert fresh.sample(0).data == bmp(77)
    assert source.sample(0).data == bmp(0)  # the file that was opened is still whole


def test_a_shard_index_of_another_shard_at_the_same_path_is_not_used(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [("a.bmp", bmp(0)), ("a.cls", b"1")])
    assert open_source([path]).by_position().labels().tolist() == [1]
    with_times_of([path], lambda: write_tar(path, [("a.bmp", bmp(1)), ("a.cls", b"2")]))
    assert open_source([path]).by_position().labels().tolist() == [2]
