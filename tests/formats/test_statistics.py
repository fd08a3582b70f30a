"""Statistics files: ours come back, those of other programs are read, hostile or incomplete ones are refused."""

import io
import zipfile

import numpy as np
import pytest

from titokctl.errors import UserError
from titokctl.formats.npz_reader import NpzReader
from titokctl.formats.statistics import Statistics, has_images, is_statistics, read_statistics, write_statistics


def gaussian(width: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    a = np.random.default_rng(seed).standard_normal((width, width))
    return a[0], a @ a.T


def test_statistics_come_back(tmp_path):
    mean, covariance = gaussian()
    features = np.random.default_rng(1).standard_normal((9, 4)).astype(np.float32)
    made = Statistics(mean, covariance, *gaussian(6), features, 123, {"features": "lite0", "source": {"n": 1}})
    write_statistics(tmp_path / "deep" / "ref.npz", made)
    found = read_statistics(tmp_path / "deep" / "ref.npz")
    for name in ("mean", "covariance", "spatial_mean", "spatial_covariance", "features"):
        assert np.array_equal(getattr(found, name), getattr(made, name)), name
    assert found.count == 123
    assert found.about["features"] == "lite0"
    assert found.about["format"] == "titokctl/statistics"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["ref.npz"]


def test_numpy_and_so_other_evaluators_read_our_file(tmp_path):
    mean, covariance = gaussian()
    write_statistics(tmp_path / "ref.npz", Statistics(mean, covariance))
    with np.load(tmp_path / "ref.npz", allow_pickle=False) as npz:
        assert np.array_equal(npz["mu"], mean)
        assert np.array_equal(npz["sigma"], covariance)


def test_files_of_adm_and_pytorch_fid_are_read(tmp_path):
    (mean, covariance), (mean_s, covariance_s) = gaussian(), gaussian(6)
    images = np.zeros((2, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "adm.npz", mu=mean, sigma=covariance, mu_s=mean_s, sigma_s=covariance_s, arr_0=images)
    np.savez_compressed(tmp_path / "fid.npz", mu=mean.astype(np.float32), sigma=covariance)
    adm, fid = read_statistics(tmp_path / "adm.npz"), read_statistics(tmp_path / "fid.npz")
    assert np.array_equal(adm.spatial_mean, mean_s)
    assert (adm.count, adm.about, fid.spatial_mean) == (0, {}, None)
    assert fid.mean.dtype == np.float64
    assert is_statistics(tmp_path / "fid.npz")
    assert not has_images(tmp_path / "fid.npz")
    assert has_images(tmp_path / "adm.npz")


NEWER = '{"format": "titokctl/statistics", "format_version": 9}'
BAD = {
    "no sigma": ({"mu": np.zeros(4)}, "but no sigma"),
    "no mu": ({"sigma": np.eye(4)}, "but no mu"),
    "other shapes": ({"mu": np.zeros(4), "sigma": np.eye(5)}, r"found \(4,\) and \(5, 5\)"),
    "not finite": ({"mu": np.full(4, np.nan), "sigma": np.eye(4)}, "not finite"),
    "not symmetric": ({"mu": np.zeros(2), "sigma": np.array([[1.0, 2.0], [0.0, 1.0]])}, "not a covariance matrix"),
    "below 0": ({"mu": np.zeros(4), "sigma": -np.eye(4)}, "not a covariance matrix"),
    "text": ({"mu": np.zeros(4), "sigma": np.eye(4), "about": np.array("{")}, "not JSON"),
    "newer": ({"mu": np.zeros(4), "sigma": np.eye(4), "about": np.array(NEWER)}, "newer titokctl"),
    "count": ({"mu": np.zeros(4), "sigma": np.eye(4), "count": np.array(-3)}, "not a number of images"),
    "features": ({"mu": np.zeros(4), "sigma": np.eye(4), "features": np.zeros((2, 5))}, r"\(m, 4\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_incomplete_statistics_are_refused(tmp_path, name):
    arrays, message = BAD[name]
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=message):
        read_statistics(tmp_path / "bad.npz")


def test_objects_are_refused_unread(tmp_path):
    np.savez(tmp_path / "bad.npz", mu=np.array([{"a": 1}, None], dtype=object), sigma=np.eye(2))
    with pytest.raises(UserError, match="objects are never read"):
        read_statistics(tmp_path / "bad.npz")


def test_files_that_are_no_npz_or_cut_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("mu sigma")
    with pytest.raises(UserError, match=r"not an \.npz file"):
        read_statistics(tmp_path / "text.npz")
    np.savez(tmp_path / "whole.npz", mu=np.zeros(400), sigma=np.eye(400))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-200])
    with pytest.raises(UserError, match="cut short"):
        read_statistics(tmp_path / "cut.npz")
    with pytest.raises(UserError, match="cannot read"):
        read_statistics(tmp_path / "absent.npz")


def test_a_changed_byte_is_found(tmp_path):
    np.savez(tmp_path / "a.npz", mu=np.zeros(400), sigma=np.eye(400))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[2000] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        read_statistics(tmp_path / "a.npz")


def test_a_member_that_declares_more_than_it_holds_is_refused_before_memory_is_taken(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as zip_file:
        zip_file.writestr("mu.npy", header.getvalue())
        zip_file.writestr("sigma.npy", header.getvalue())
    with NpzReader(tmp_path / "bad.npz") as npz, pytest.raises(UserError, match="declares 8,000,000,000,000 bytes"):
        npz.array("mu")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_are_read_a_few_at_a_time(tmp_path, save):
    images = np.random.default_rng(0).integers(0, 256, (10, 5, 5, 3), dtype=np.uint8)
    save(tmp_path / "images.npz", images)
    with NpzReader(tmp_path / "images.npz") as npz:
        assert npz.member("arr_0").shape == (10, 5, 5, 3)
        parts = list(npz.rows("arr_0", 4))
    assert [len(part) for part in parts] == [4, 4, 2]
    assert np.array_equal(np.concatenate(parts), images)
    with (
        NpzReader(tmp_path / "images.npz") as npz,
        pytest.raises(UserError, match="has no array arr_1; it has arr_0"),
    ):
        npz.member("arr_1")
