"""One array as .npz, written in pieces in any order; numpy and ZIP readers open it as any other."""

import subprocess
import zipfile
import zlib

import numpy as np
import pytest

from titokctl.formats.npz_stream import NpzArray, crc_of_joined

RANDOM = np.random.default_rng(0)


def written(path, array, pieces):
    target = NpzArray(path, array.shape, array.dtype)
    crcs = {first: (last - first, target.write(first, array[first:last])) for first, last in pieces}
    assert np.array_equal(target.read(*pieces[0][:1], 1), array[pieces[0][0] : pieces[0][0] + 1])
    target.finish([crcs[first] for first in sorted(crcs)])
    target.close()
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_pieces_in_any_order_make_an_ordinary_npz(tmp_path, dtype):
    array = RANDOM.integers(0, 256, (100, 4, 5, 3)).astype(dtype)
    path = written(tmp_path / "a.npz", array, [(64, 96), (0, 10), (96, 100), (10, 64)])
    with np.load(path, allow_pickle=False) as found:
        assert found.files == ["arr_0"]
        assert found["arr_0"].dtype == dtype
        assert np.array_equal(found["arr_0"], array)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_equal_arrays_give_equal_files(tmp_path):
    array = RANDOM.integers(0, 256, (9, 2, 2, 3), dtype=np.uint8)
    one = written(tmp_path / "1.npz", array, [(0, 9)])
    other = written(tmp_path / "2.npz", array, [(4, 9), (0, 4)])
    assert one.read_bytes() == other.read_bytes()


def test_a_changed_byte_is_detected(tmp_path):
    path = written(tmp_path / "a.npz", np.zeros((8, 4, 4, 3), np.uint8), [(0, 8)])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() == "arr_0.npy"


def test_another_process_resumes_it(tmp_path):
    array = RANDOM.integers(0, 256, (6, 2, 2, 3), dtype=np.uint8)
    first = NpzArray(tmp_path / "a.npz", array.shape, np.uint8)
    crc = first.write(3, array[3:])
    first.close()
    second = NpzArray(tmp_path / "a.npz", array.shape, np.uint8)
    second.finish([(3, second.write(0, array[:3])), (3, crc)])
    second.close()
    assert np.array_equal(np.load(tmp_path / "a.npz")["arr_0"], array)


def test_more_than_4_gib_and_no_memory_for_it(tmp_path):
    """A file with holes: only its ends are on the disk."""
    shape = (22_000, 256, 256, 3)
    path = tmp_path / "large.npz"
    large = NpzArray(path, shape, np.uint8)
    row = np.full((1, *shape[1:]), 7, np.uint8)
    large.write(shape[0] - 1, row)
    large.finish([(shape[0], 0)])  # a wrong checksum, which would take long for 4 GiB
    large.close()
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:
        assert archive.getinfo("arr_0.npy").file_size > 1 << 32
        assert np.lib.format.read_magic(member) == (1, 0)
        assert np.lib.format.read_array_header_1_0(member) == (shape, False, np.dtype(np.uint8))
    mapped = np.memmap(path, np.uint8, "r", offset=_data_offset(path), shape=shape)
    assert (mapped[-1] == 7).all()
    assert not mapped[-2].any()
    assert path.stat().st_blocks * 512 < 1 << 22


def _data_offset(path):
    with path.open("rb") as file:
        start = file.read(4096)
    return start.index(b"\n", start.index(b"\x93NUMPY")) + 1


def test_other_tools_open_it(tmp_path):
    path = written(tmp_path / "a.npz", np.zeros((8, 4, 4, 3), np.uint8), [(0, 8)])
    try:
        done = subprocess.run(["unzip", "-t", str(path)], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no unzip here")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("first", "rows"),
    [(0, np.zeros((11, 2), np.uint8)), (9, np.zeros((2, 2), np.uint8)), (-1, np.zeros((1, 2), np.uint8)),
     (0, np.zeros((1, 3), np.uint8)), (0, np.zeros((1, 2), np.int64))],
)  # fmt: skip
def test_pieces_that_do_not_fit(tmp_path, first, rows):
    target = NpzArray(tmp_path / "a.npz", (10, 2), np.uint8)
    with pytest.raises(ValueError, match="expected uint8 rows"):
        target.write(first, rows)
    target.close()


@pytest.mark.parametrize(("a", "b"), [(b"", b""), (b"ab", b""), (b"", b"ab"), (b"x" * 1000, bytes(range(256)) * 33)])
def test_checksum_of_joined_pieces(a, b):
    assert crc_of_joined(zlib.crc32(a), zlib.crc32(b), len(b)) == zlib.crc32(a + b)
